"""A pool with real threads, real locks, and interruptions at any moment.

What these find is found by chance. What is known to go wrong is tested step by step elsewhere.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from tests.core.shell import IDLE, IN_TRANSACTION, NEVER, Closed, Conn, Interrupt, NotLent, TimedOut
from tests.support import Threads

FOR_EVER = 60.0  # seconds; a request that waits for so long has been forgotten


class Worked:
    """A connection that notices when it is lent to two, or closed while it is lent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pgconn = Conn(number).pgconn
        self.holder: object = None
        self.closed = False
        self._pool: Any = None

    def __exit__(self, *_: object) -> None:
        self.pgconn.transaction_status = IDLE

    def use(self) -> None:
        me = object()
        assert self.holder is None, "lent to two"
        assert not self.closed, "lent though it is closed"
        self.holder = me
        for _ in range(random.randrange(20)):
            assert self.holder is me, "lent to two"
        self.holder = None


class Threaded:
    """The hooks of a shell for threads. Connecting takes no time."""

    core: Any
    max_size: Any  # the core's

    def __init__(
        self, max_size: int, *, check_after: float = NEVER, failing: float = 0.0, threads: int = 2
    ) -> None:
        """`failing`: the share of openings, checks and cleanings that fail."""
        super().__init__(  # type: ignore[call-arg]
            0, max_size, 2, NEVER, sys.maxsize, 0, check_after, 0.0, True, IDLE
        )
        self.failing = failing
        self.counting = threading.Lock()
        self.made = 0
        self.open = 0  # only what is certainly open: the dropped ones are not counted off
        # Queues of the interpreter's own: an interruption cannot break them.
        self.sleeping: SimpleQueue[Any] = SimpleQueue()
        self.errors: list[BaseException] = []
        self.openings: SimpleQueue[Any] = SimpleQueue()
        self.latest: Any = None  # of them
        self.connectors = [threading.Thread(target=self._connect) for _ in range(threads)]
        for thread in self.connectors:
            thread.start()

    @property
    def pool(self) -> Any:
        """Itself, with the methods of the core."""
        return self

    def fails(self) -> bool:
        return random.random() < self.failing

    def stop(self) -> None:
        for _ in self.connectors:
            self.openings.put(None)
        for thread in self.connectors:
            thread.join()

    def _next(self) -> Any:
        """The next opening; None at the end."""
        while True:
            try:
                # Without the GIL, what is dropped elsewhere is let go of by the thread that made
                # it, when it next does anything; connectors that end do so for good.
                return self.openings.get(timeout=0.05)
            except Empty:
                pass

    def _connect(self) -> None:
        while (opening := self._next()) is not None:
            try:
                while opening is not None:
                    opening = self._connect_one(opening)
            except BaseException as exc:
                self.errors.append(exc)

    def _connect_one(self, opening: Any) -> Any:
        if self.fails():
            return self.pool._opening_failed(opening, OSError(), 0.0, True)
        with self.counting:
            self.made += 1
            self.open += 1
            conn = Worked(self.made)
        node = "abc"[conn.number % 3]
        return self.pool._opened(opening, conn, node, node, float("inf"))

    def _new_waiter(self, timeout: float) -> Any:
        lock = threading.Lock()
        lock.acquire()
        return self.core.pool.Waiter(lock.release, lock)

    def _sleep(self, waiter: Any, timeout: float) -> None:
        self.sleeping.put(waiter)
        deadline = time.monotonic() + timeout
        while not waiter.parked_on.acquire(True, min(timeout, 0.1)):
            # As the sweeper does: with every connection dropped, nobody else comes by.
            self.pool._sweep()
            if time.monotonic() >= deadline:
                if self.pool._withdraw(waiter):
                    raise TimedOut(timeout)
                return

    def _open(self, opening: Any) -> None:
        self.latest = opening
        self.openings.put(opening)

    def _is_alive(self, conn: Worked) -> bool:
        assert conn.holder is None
        return not self.fails()

    def _clean(self, conn: Worked) -> bool:
        assert conn.holder is None
        if self.fails():
            self.pool._suspect(conn)
            return False
        conn.pgconn.transaction_status = IDLE
        return True

    def _close_conn(self, conn: Worked, reason: str) -> None:
        assert conn.holder is None, "closed while it is lent"
        assert not conn.closed, "closed twice"
        conn.closed = True
        with self.counting:
            self.open -= 1

    def _progressed(self) -> None:
        pass

    def _retry_later(self) -> None:
        opening = self.pool._retry()
        if opening is not None:
            self._open(opening)

    def _notify(self, event: str, conn: Any, about: Any) -> None:
        pass

    def _failed_with(self, conn: Any, error: Any) -> None:
        pass

    def _lost_one(self, slot: Any) -> None:
        pass

    def _retire_idle(self) -> bool:
        return bool(self.pool._sweep())

    def check(self) -> None:
        self.pool._check_invariants()

    def _not_lent(self, conn: Any) -> Exception:
        return NotLent()

    def _closed_error(self) -> Exception:
        return Closed()


@pytest.fixture
def make_pool(core: Any) -> Iterator[Callable[..., Any]]:
    shell = type("Pool", (Threaded, core.pool.PoolCore), {"core": core})
    pools: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        pools.append(shell(*args, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop()
        assert pool.errors == []
        pool._check_invariants()


def use(pool: Any, over: threading.Event) -> None:
    """Do whatever may be done to a pool, until it is over."""
    while not over.is_set():
        try:
            borrow(pool)
        except TimedOut as exc:
            if exc.args[0] == FOR_EVER:
                raise AssertionError(f"forgotten: {pool._snapshot()}") from exc
        except OSError:
            assert pool.failing
        except Closed:
            return


def borrow(pool: Any) -> None:
    timeout = random.choice([0, 0.0001, 0.001, FOR_EVER, FOR_EVER, FOR_EVER])
    what = random.choice(["return", "return", "return", "block", "block", "discard", "drop"])
    if what == "block":
        with pool.connection(timeout) as conn:
            conn.use()
            conn.pgconn.transaction_status = random.choice([IDLE, IDLE, IN_TRANSACTION])
        return
    conn = pool.getconn(timeout)
    conn.use()
    if what == "drop":
        with pool.counting:
            pool.open -= 1
    else:
        conn.pgconn.transaction_status = random.choice([IDLE, IDLE, IN_TRANSACTION])
        pool.putconn(conn, discard=what == "discard")


@pytest.mark.parametrize("end", ["stop", "close", "end"])
@pytest.mark.parametrize("failing", [0.0, 0.05])
def test_nothing_is_lost_whatever_eight_threads_do(
    make_pool: Callable[..., Any],
    fast_switching: None,
    eager_gc: None,
    stress_seconds: float,
    end: str,
    failing: float,
) -> None:
    pool = make_pool(3, failing=failing, check_after=0 if failing else NEVER)
    over = threading.Event()
    threads = Threads([lambda: use(pool, over)] * 8)

    # Not to wait for anything: for as long as this takes, the threads do what they do.
    deadline = time.monotonic() + stress_seconds / 6
    most = 0
    while time.monotonic() < deadline:
        most = max(most, pool.total_count)
        over.wait(0.01)
    if end != "stop":
        pool._start_closing()
        while end == "close" and pool._fail_first(Closed()):
            pass
        pool._sweep()
    else:
        over.set()
    threads.join()
    pool.stop()

    gc.collect()
    pool._check_invariants()
    numbers = pool._snapshot()
    assert most <= 3
    assert (numbers["lent"], numbers["connecting"], numbers["waiting"]) == (0, 0, 0)
    assert numbers["total"] == numbers["idle"] == pool.open
    assert end == "stop" or numbers["total"] == 0


def test_reports_may_be_read_and_notes_be_set_while_connections_come_and_go(
    core: Any, make_pool: Callable[..., Any], fast_switching: None, stress_seconds: float
) -> None:
    pool = make_pool(3, failing=0.05)
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for slot in pool._list_slots():
                slot.note = [slot.note is None]
                assert slot.note is None or len(slot.note) == 1
                assert slot.holder >= 0
            assert len(pool._numbers(False)["wait_buckets"]) == 32
            now = pool._snapshot()
            assert now["idle"] + now["lent"] + now["connecting"] == now["total"] <= 3
            assert len(pool._waiters()) <= 6
            assert all(waiter.state for waiter in pool._waiters())
            assert all(conn.pgconn for conn in pool._idle_conns())
            opening = pool.latest
            assert opening is None or opening.has_owner in (True, False)
            pool._numbers(True)

    threads = Threads([lambda: use(pool, over)] * 6 + [look] * 3)
    over.wait(stress_seconds / 5)
    over.set()
    threads.join()


def test_threads_are_served_in_the_order_in_which_they_went_to_sleep(
    make_pool: Callable[..., Any], fast_switching: None
) -> None:
    pool = make_pool(1)
    served: list[int] = []
    conn = pool.getconn(FOR_EVER)
    pool.sleeping.get()

    def borrow(number: int) -> None:
        mine = pool.getconn(FOR_EVER)
        served.append(number)
        pool.putconn(mine)

    threads = [threading.Thread(target=borrow, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
        pool.sleeping.get(timeout=FOR_EVER)
    pool.putconn(conn)
    for thread in threads:
        thread.join(FOR_EVER + 10)
        assert not thread.is_alive(), "forgotten"

    assert served == list(range(32))


def test_every_thread_gets_its_share(make_pool: Callable[..., Any], fast_switching: None) -> None:
    """Whoever asks again at once does not overtake those who wait."""
    pool = make_pool(1)
    served: list[int] = []
    conn = pool.getconn(FOR_EVER)
    pool.sleeping.get()

    def borrow(number: int) -> None:
        for _ in range(20):
            with pool.connection(FOR_EVER):
                served.append(number)
                # However the system shares out its time, all others wait before it is returned.
                pool.sleeping.get(timeout=FOR_EVER)
        pool.sleeping.put("will not ask again")

    threads = Threads([partial(borrow, number) for number in range(16)])
    for _ in threads:
        pool.sleeping.get(timeout=FOR_EVER)
    pool.sleeping.put("will not ask again")
    pool.putconn(conn)
    threads.join()

    assert sorted(served[:16]) == [*range(16)]
    assert served == served[:16] * 20


# Interruptions


def interrupt(thread: threading.Thread) -> None:
    """Raise `Interrupt` in a thread, between any two of its bytecodes, as Ctrl-C does."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt)
    )


def interrupt_again_and_again(seconds: float, action: Callable[[], None]) -> None:
    """Run an action in four threads, each being interrupted once it has caught the last one."""
    over = threading.Event()
    ready: SimpleQueue[threading.Thread] = SimpleQueue()

    def loop() -> None:
        ready.put(threading.current_thread())
        while not over.is_set():
            action()

    def run() -> None:
        while not over.is_set():
            try:
                # Not itself the loop: Python 3.13 leaves the jump at its end outside of `try`.
                loop()
            except Interrupt:
                pass

    # Hypothesis has the garbage collector call a function, and what is raised there reaches nobody.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    try:
        threads = Threads([run] * 4)
        deadline = time.monotonic() + seconds
        interrupted = 0
        while time.monotonic() < deadline or interrupted < 100:  # however slow the machine is
            thread = ready.get(timeout=FOR_EVER)
            for _ in range(random.randrange(200)):  # to come at any point of the action
                pass
            interrupt(thread)
            interrupted += 1
        over.set()
        threads.wait()
    finally:
        gc.callbacks[:] = callbacks
    # The last ones may have come when their threads were done with everything.
    assert all(isinstance(error, Interrupt) for error in threads.errors), threads.errors


@pytest.fixture
def compiled_only(core: Any) -> Iterator[None]:
    if core.name == "python":
        pytest.skip("it is made of bytecodes, and an interruption may come between any two")
    # Those of hypothesis: an interruption in one of them is lost, and reported as an error.
    callbacks = [*gc.callbacks]
    gc.callbacks.clear()
    yield
    gc.callbacks.extend(callbacks)


def test_no_interruption_of_a_block_loses_a_connection(
    core: Any,
    compiled_only: None,
    make_pool: Callable[..., Any],
    fast_switching: None,
    stress_seconds: float,
) -> None:
    pool = make_pool(2)  # for four threads, so that most of them wait
    statuses = [IDLE, IDLE, IDLE, IN_TRANSACTION]

    def borrow() -> None:
        with pool.connection(FOR_EVER) as conn:
            conn.pgconn.transaction_status = random.choice(statuses)

    interrupt_again_and_again(stress_seconds, borrow)

    pool.stop()
    if sys.version_info >= (3, 14):
        # Which may drop a connection between `__enter__` and the block, see test_checkout.py; and
        # without the GIL, what one thread drops another may have to collect.
        gc.collect()
        pool._sweep()
    # Before that, nothing is left to any collector.
    assert pool._snapshot()["lent"] == 0
    assert pool.idle_count == pool.total_count
    pool._check_invariants()


def test_what_an_interruption_between_getconn_and_putconn_loses_is_found_again(
    core: Any,
    compiled_only: None,
    make_pool: Callable[..., Any],
    fast_switching: None,
    stress_seconds: float,
) -> None:
    pool = make_pool(2)

    def borrow() -> None:
        # An interruption before `try` or at the beginning of `finally` is beyond what a pool can
        # help: the caller had the connection, and has it no more.
        conn = pool.getconn(FOR_EVER)
        try:
            conn.pgconn.transaction_status = random.choice([IDLE, IN_TRANSACTION])
        finally:
            pool.putconn(conn)

    interrupt_again_and_again(stress_seconds, borrow)

    gc.collect()
    pool._check_invariants()
    assert pool._snapshot()["lent"] == 0
    conns = [pool.getconn(FOR_EVER), pool.getconn(FOR_EVER)]
    assert conns[0] is not conns[1]
    for conn in conns:
        pool.putconn(conn)
