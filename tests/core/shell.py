"""What the tests of the pool put around it: a shell whose connections are only pretended."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from itertools import repeat
from typing import Any

from tests.core.actors import Actor, stop

IDLE = 0
IN_TRANSACTION = 2
MakePool = Callable[..., Any]  # the fixture `make_pool`
NEVER = 1e9  # seconds of idleness that no test reaches


class Closed(Exception):
    """The shell's error for requests to a closing pool."""


class TooMany(Exception):
    """The shell's error for requests that find the queue full."""


class NotLent(Exception):
    """The shell's error for connections that are not on loan."""


class TimedOut(Exception):
    """The shell's error for requests that waited too long."""


class Interrupt(BaseException):
    """What may come at any time, as KeyboardInterrupt does."""


class Parked:
    """What a waiter sleeps on."""

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        stop("wake")
        self.wakes += 1


class StoppingSection:
    """A critical section of the pure build with a stop in front of it."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        stop("section")
        self._guard.acquire()

    def __exit__(self, *_: object) -> None:
        self._guard.release()


class Pgconn:
    def __init__(self) -> None:
        self.transaction_status = IDLE


class Conn:
    """What the core needs of a psycopg connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pgconn = Pgconn()
        self.alive = True  # what `_is_alive` says
        self.cleanable = True  # whether `_clean` succeeds
        self.exits: list[tuple[object, ...]] = []
        self._pool: Any = None

    def __exit__(self, *exc: object) -> None:
        self.exits.append(exc)
        self.pgconn.transaction_status = IDLE

    def __repr__(self) -> str:
        return f"<Conn {self.number}>"


class Shell:
    """The hooks. It is made a pool by `make_shell`, which adds the `PoolCore` of one build.

    Nothing sleeps: a request that has to wait must be an actor. Openings are written down in
    `asked`, until a test has them succeed or fail, or succeed at once while `nodes` says where.
    """

    core: Any
    max_size: Any  # the core's

    def __init__(
        self,
        max_size: int = 3,
        *,
        min_size: int = 0,
        max_connecting: int = 3,
        max_idle: float = NEVER,
        max_uses: int = sys.maxsize,
        max_waiting: int = 0,
        check_after: float = NEVER,
        stagger: float = 0.0,
        lifo: bool = True,
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            *(min_size, max_size, max_connecting, max_idle, max_uses, max_waiting),
            *(check_after, stagger, lifo, IDLE),
        )
        self.retries = 0
        self.lifetime = 1e18  # until when the next connections live
        self.nodes: Iterator[str] | None = None
        self.asked: list[Any] = []
        self.made = 0
        self.open: set[int] = set()  # numbers, because a connection may be dropped
        self.closed: list[int] = []
        self.reasons: list[str] = []  # why, in the same order
        self.vetted: list[int] = []
        self.pauses: list[tuple[Any, float, int]] = []  # time-out, since when, failures so far
        self.looked_at: list[int] = []
        self.waiters: list[Any] = []  # those asleep
        self.timeouts: list[Any] = []
        self.progress = 0
        self.actors: list[Actor] = []
        self.scripts: dict[str, Callable[..., object]] = {}

    @property
    def pool(self) -> Any:
        """Itself, with the methods of the core."""
        return self

    def _ran(self, hook: str, *args: Any) -> None:
        """Run what a test has put in front of the next call of a hook; stop there."""
        stop(hook)
        script = self.scripts.pop(hook, None)
        if script is not None:
            script(*args)

    def _new_waiter(self, timeout: Any) -> Any:
        self._ran("new_waiter", timeout)
        parked = Parked()
        waiter = self.core.pool.Waiter(parked.wake, parked)
        actor = Actor.running()
        if actor is not None:
            actor.waiter = waiter
        return waiter

    def _sleep(self, waiter: Any, timeout: Any) -> None:
        self.timeouts.append(timeout)
        self.waiters.append(waiter)
        try:
            self._ran("sleeping", waiter)
            actor = Actor.running()
            if actor is not None:
                woken = actor.sleep()
            else:
                woken = waiter.parked_on.wakes > 0
            if not woken and self.pool._withdraw(waiter):
                raise TimedOut
        finally:
            # Not kept any longer than by others: it refers to what it was granted.
            self.waiters.remove(waiter)

    def _open(self, opening: Any) -> None:
        self._ran("open", opening)
        self.asked.append(opening)
        while self.asked and self.nodes is not None:
            self.connected(next(self.nodes))

    def _is_alive(self, conn: Conn) -> bool:
        self.looked_at.append(conn.number)
        self._ran("is_alive", conn)
        return conn.alive

    def _passes(self, conn: Conn, thorough: bool) -> bool:
        self.looked_at.append(conn.number)
        self._ran("passes", conn)
        return conn.alive

    def _vet(self, conn: Conn) -> bool:
        self.vetted.append(conn.number)
        self._ran("vet", conn)
        return conn.alive

    def _pause(self, timeout: Any, started: float, failures: int) -> Any:
        self.pauses.append((timeout, started, failures))
        self._ran("pause")
        return timeout

    def _too_many(self) -> Exception:
        return TooMany()

    def _clean(self, conn: Conn) -> bool:
        self._ran("clean", conn)
        if conn.cleanable:
            conn.pgconn.transaction_status = IDLE
        return conn.cleanable

    def _close_conn(self, conn: Conn, reason: str) -> None:
        try:
            self._ran("close_conn", conn)
        finally:
            self.open.discard(conn.number)
            self.closed.append(conn.number)
            self.reasons.append(reason)

    def _progressed(self) -> None:
        self._ran("closing_progressed")
        self.progress += 1

    def _notify(self, event: str, conn: Any, about: Any) -> None:
        pass

    def _failed_with(self, conn: Any, error: Any) -> None:
        pass

    def _lost_one(self, slot: Any) -> None:
        self._ran("lost_one", slot)

    def _retry_later(self) -> None:
        self.retries += 1
        opening = self.pool._retry()
        if opening is not None:
            self._open(opening)

    def check(self) -> None:
        self.pool._check_invariants()

    def _retire_idle(self) -> bool:
        return bool(self.pool._sweep())

    def _not_lent(self, conn: Any) -> Exception:
        return NotLent(repr(conn))

    def _closed_error(self) -> Exception:
        return Closed()

    # What a test has it do

    def new_conn(self) -> Conn:
        """Connect, with no opening."""
        self.made += 1
        conn = Conn(self.made)
        self.open.add(self.made)
        weakref.finalize(conn, self.open.discard, self.made).atexit = False
        assert len(self.open) <= self.max_size
        return conn

    def connected(self, key: str = "a", which: int = 0) -> Conn:
        """Have an opening succeed."""
        opening = self.asked.pop(which)
        conn = self.new_conn()
        self._followed_by(self.pool._opened(opening, conn, key, key, self.lifetime))
        return conn

    def failed(self, error: BaseException, which: int = 0, *, delay: float = 0.0) -> None:
        """Have an opening fail; the next attempt is not before `delay` seconds."""
        self._followed_by(self.pool._opening_failed(self.asked.pop(which), error, delay, True))

    def retry(self) -> None:
        """Somebody goes by who was to wait until more may be opened."""
        if self.pool._claim_retry():
            self._followed_by(self.pool._retry())

    def _followed_by(self, opening: Any) -> None:
        if opening is not None:
            self.asked.append(opening)

    def grow(self, *keys: str) -> list[Any]:
        """Borrow a new connection to each of these nodes."""
        conns = []
        for key in keys:
            made, self.nodes = self.made, repeat(key)
            try:
                conns.append(self.pool.getconn())
            finally:
                self.nodes = None
            assert self.made == made + 1
        return conns

    def stock(self, *keys: str) -> list[Any]:
        """Have an idle connection to each of these nodes, the last returned last."""
        conns = self.grow(*keys)
        for conn in conns:
            self.pool.putconn(conn)
        return conns

    def request(self, timeout: Any = None, **options: Any) -> Actor:
        """Ask for a connection, as far as that goes by itself."""
        return self.actor(lambda: self.pool.getconn(timeout), **options).run()

    def actor(self, action: Callable[[], Any], **options: Any) -> Actor:
        actor = Actor(action, **options)
        self.actors.append(actor)
        return actor

    def close(self) -> None:
        """As `ConnectionPool.close` does."""
        self.pool._start_closing()
        while self.pool._fail_first(self._closed_error()):
            pass
        while self.pool._retire_idle():
            pass

    def end(self) -> None:
        """As `ConnectionPool.end` does, up to where it waits."""
        self.pool._start_closing()
        while self.pool._retire_idle():
            pass

    def is_whole(self) -> bool:
        """Whether nothing is lost: all places can be lent at once, and each connection once."""
        self.pool.check()
        assert (self.pool.waiting_count, self.pool.connecting_count) == (0, 0)
        self.nodes = repeat("a")
        conns = [self.pool.getconn() for _ in range(self.max_size)]
        self.nodes = None
        assert sorted(conn.number for conn in conns) == sorted(self.open)
        for conn in conns:
            self.pool.putconn(conn)
        self.pool.check()
        return bool(self.pool.idle_count == self.max_size == len(self.open))


@cache
def make_shell(core: Any) -> Any:
    """The shell as a subclass of one build's `PoolCore`."""
    return type("Pool", (Shell, core.pool.PoolCore), {"core": core})


def lent(pool: Any) -> dict[str, int]:
    """How many connections to each node are lent."""
    return {shelf.key: shelf.lent for shelf in pool._list_shelves()}


def idle(pool: Any) -> dict[str, int]:
    """How many to each node are idle."""
    return {shelf.key: shelf.idle for shelf in pool._list_shelves()}
