"""Every order in which the steps of two or three actors can happen, one after the other.

A step goes from one stop to the next. There is a stop in every hook, before a waiter is woken, and
in the pure build also before every critical section. The sections are what free-threaded Python
keeps whole, so the orders in the pure build are those that the compiled one can meet there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import combinations, count
from typing import Any

import pytest

from tests.core.actors import Actor
from tests.core.shell import (
    IDLE,
    IN_TRANSACTION,
    Closed,
    Conn,
    Interrupt,
    NotLent,
    StoppingSection,
    TimedOut,
    make_shell,
)

THOROUGH = 10.0  # YBSMART_STRESS_SECONDS from which on it is

HOOKS = ("new_waiter", "open", "clean", "close_conn", "closing_progressed")
STOPS = {
    "c": frozenset({"sleep", "withdraw", "wake", *HOOKS}),
    # What happens between a hook and the next section concerns nobody else.
    "python": frozenset({"sleep", "withdraw", "wake", "section"}),
}


@pytest.fixture(autouse=True)
def stops_before_sections(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if core.name == "python":
        shim = core.pool.cython
        make_mutex = shim.pymutex
        monkeypatch.setattr(shim, "pymutex", lambda: StoppingSection(make_mutex()))


@pytest.fixture(scope="module", autouse=True)
def one_processor() -> Iterator[None]:
    """Actors take turns, which costs a third when they need not be moved between processors."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    yield
    os.sched_setaffinity(0, processors)


class World:
    """A pool in some situation, and the actors that are about to change it."""

    def __init__(self, core: Any, max_size: int) -> None:
        self.pool = make_shell(core)(max_size, max_connecting=2)
        self.stops = STOPS[core.name]
        self.actors: list[Actor] = []  # whose order is varied
        self.others: list[Actor] = []  # who go on afterwards
        self.held: list[Conn] = []
        self.expected: tuple[type[BaseException], ...] = ()  # errors of requests
        self.returning: list[Actor] = []  # the same connection, so that one is to be refused
        self.queued: list[Any] = []  # waiters by arrival
        self.parked: list[Any] = []
        self.conn: Conn
        (self.conn,) = self.held = self.pool.grow("a")

    def wait(self, name: str) -> Actor:
        """A request that is in the queue already."""
        actor: Actor = self.pool.request(name=name)
        assert actor.asleep
        actor.stops = self.stops
        self.others.append(actor)
        self.note_arrival(actor)
        return actor

    def note_arrival(self, actor: Actor) -> None:
        self.queued.append(actor.waiter)
        self.parked.append(actor.waiter.parked_on)

    def act(self, name: str, action: Callable[[], Any], *, request: bool = False) -> Actor:
        actor: Actor = self.pool.actor(action, name=name, stops=self.stops)
        self.actors.append(actor)
        if request:
            self.others.append(actor)
        return actor

    def step(self, actor: Actor) -> None:
        """One step, after which everything must be in order."""
        waiting = self.pool.waiting_count
        before = [waiter.state for waiter in self.queued]
        actor.step()
        after = [waiter.state for waiter in self.queued]
        settled = sum(x != y for x, y in zip(before, after, strict=True))
        if self.pool.waiting_count - waiting + settled > 0 and actor.waiter not in self.queued:
            self.note_arrival(actor)
            after.append(actor.waiter.state)
        self.pool.check()
        granted = [i for i, state in enumerate(after) if state == "granted"]
        for i in granted:
            if i >= len(before) or before[i] == "waiting":
                assert "waiting" not in after[:i], "granted to another than the first"
        if actor.ended and actor.error is not None:
            expected = self.expected if actor in self.others else ()
            if actor in self.returning:
                expected = (NotLent,)
            assert isinstance(actor.error, expected), f"{actor!r}: {actor.error!r}"

    def finish(self) -> None:
        """Let everybody come to an end. Then nothing is missing and nothing there twice."""
        pool = self.pool
        if self.returning:
            assert [actor.error is None for actor in self.returning].count(True) == 1
        for actor in self.actors:
            assert actor.ended or actor in self.others, f"{actor!r} is stuck"
        for turn in count():
            self.collect()
            if not pool.waiting_count:
                break
            assert turn < 20, "there is no end to it"
            if pool.asked:
                pool.connected("c")
            else:
                assert self.held, "somebody waits for nothing"
                pool.putconn(self.held.pop())
            pool.check()
        while pool.asked:
            pool.connected("c")
        for waiter, parked in zip(self.queued, self.parked, strict=True):
            assert parked.wakes == (waiter.state in ("granted", "failed"))
        for conn in self.held:
            pool.putconn(conn)
        pool.check()
        numbers = pool._snapshot()
        assert numbers["lent"] == numbers["connecting"] == numbers["waiting"] == 0
        assert numbers["idle"] == numbers["total"] == len(pool.open)
        if not numbers["closing"]:
            conns = [pool.getconn() for _ in range(numbers["idle"])]
            assert {conn.number for conn in conns} == pool.open
            for conn in conns:
                pool.putconn(conn)
            pool.close()
        assert pool.total_count == 0
        assert sorted(pool.closed) == list(range(1, pool.made + 1))

    def collect(self) -> None:
        """What those requests got that are over."""
        for actor in list(self.others):
            actor.run()
            if actor.ended:
                self.others.remove(actor)
                try:
                    conn = actor.result()
                except self.expected:
                    continue
                assert conn._pool is self.pool
                assert conn.number in self.pool.open
                assert conn not in self.held
                self.held.append(conn)


# Situations: who may act in each


def borrow(world: World, name: str) -> Actor:
    return world.act(name, world.pool.getconn, request=True)


def act(world: World, kind: str) -> None:
    """Add an actor of a kind that needs nothing of the situation."""
    pool = world.pool
    if kind in ("return", "discard"):
        conn = world.conn
        world.held.remove(conn)
        world.act(kind, lambda: pool.putconn(conn, discard=kind == "discard"))
    elif kind == "new":
        world.act(kind, lambda: pool.connected("b", 0))
    elif kind == "failed opening":
        # The last, so that it is another than the one that succeeds.
        world.act(kind, lambda: pool.failed(OSError(), -1))
        world.expected += (OSError,)
    elif kind in ("close", "end"):
        world.act(kind, getattr(pool, kind))
        world.expected += (Closed,)
    elif kind == "time-out":
        borrow(world, kind).time_is_up()
        world.expected += (TimedOut,)
    elif kind == "abandon":
        borrow(world, kind).interrupt(Interrupt())
        world.expected += (Interrupt,)
    else:
        borrow(world, kind)


def crowded(core: Any, kinds: tuple[str, ...]) -> World:
    """Two wait, two are being opened, one is lent."""
    world = World(core, 3)
    first, second = world.wait("first"), world.wait("second")
    for kind in kinds:
        if kind == "time-out":
            world.actors.append(first.time_is_up())
            world.expected += (TimedOut,)
        elif kind == "abandon":
            world.actors.append(second.interrupt(Interrupt()))
            world.expected += (Interrupt,)
        else:
            act(world, kind)
    return world


def calm(core: Any, kinds: tuple[str, ...]) -> World:
    """Nobody waits any more for the two that are being opened; one is lent."""
    world = World(core, 3)
    requests = [world.pool.request(), world.pool.request()]
    for request in requests:
        request.time_is_up().run()
    for kind in kinds:
        act(world, kind)
    return world


def one(core: Any, kinds: tuple[str, ...]) -> World:
    """There is one connection, and it is lent."""
    world = World(core, 1)
    for kind in kinds:
        act(world, kind)
    return world


def half_idle(core: Any, kinds: tuple[str, ...]) -> World:
    """One is idle, one is lent."""
    world = World(core, 2)
    world.pool.stock("b")
    for kind in kinds:
        act(world, kind)
    return world


ALL = ("return", "new", "time-out", "abandon", "close", "failed opening", "newcomer")
SITUATIONS: dict[str, tuple[Callable[..., World], tuple[str, ...]]] = {
    "crowded": (crowded, (*ALL, "end")),
    "calm": (calm, (*ALL, "end")),
    "one": (one, ("return", "newcomer", "another", "time-out", "abandon", "close", "end")),
    "one discarded": (one, ("discard", "newcomer", "another", "time-out", "abandon", "close")),
    "half idle": (
        half_idle,
        ("return", "newcomer", "another", "time-out", "abandon", "close", "end"),
    ),
}


def orders(make: Callable[[], World], preemptions: int | None = None) -> Iterator[list[str]]:
    """Run every order of the steps, from scratch each; yield the names in the order of steps.

    `preemptions`: how often, at most, an actor is followed by another though it could go on.
    """
    choices: list[int] = []
    while True:
        world = make()
        names: list[str] = []
        options: list[int] = []
        last: Actor | None = None
        used = 0
        try:
            while able := [actor for actor in world.actors if actor.can_run]:
                if last in able:
                    able.remove(last)
                    able = [last] if used == preemptions else [last, *able]
                if len(options) == len(choices):
                    choices.append(0)
                actor = able[choices[len(options)]]
                options.append(len(able))
                used += last in able and actor is not last
                names.append(f"{actor.name} from {actor.at}")
                last = actor
                world.step(actor)
            names.append("the rest")
            world.finish()
        except Exception as exc:
            raise AssertionError("\n  ".join(["in this order:", *names])) from exc
        finally:
            for actor in world.pool.actors:
                actor.abandon()
        yield names
        while choices and choices[-1] + 1 == options[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


def scenarios(size: int) -> list[Any]:
    return [
        pytest.param(situation, kinds, id=f"{situation}: {', '.join(kinds)}")
        for situation, (_, possible) in SITUATIONS.items()
        for kinds in combinations(possible, size)
        if not {"close", "end"} <= set(kinds)
    ]


@pytest.fixture
def preemptions(core: Any, stress_seconds: float) -> dict[int, int | None]:
    """By the number of actors, how often one is followed by another though it could go on.

    No race needs many; without a limit there would be tens of thousands of orders for some in the
    pure build, with its stops before the sections. A thorough run has all it can have.
    """
    if stress_seconds >= THOROUGH:
        return {2: None, 3: None if core.name == "c" else 2}
    return {2: None, 3: 3} if core.name == "c" else {2: 3, 3: 1}


@pytest.mark.parametrize(("situation", "kinds"), scenarios(2))
def test_nothing_is_lost_in_any_order_of_two(
    core: Any, preemptions: dict[int, int | None], situation: str, kinds: tuple[str, ...]
) -> None:
    make, _ = SITUATIONS[situation]

    assert sum(1 for _ in orders(lambda: make(core, kinds), preemptions[2])) > 1


@pytest.mark.parametrize(("situation", "kinds"), scenarios(3))
def test_nothing_is_lost_in_any_order_of_three(
    core: Any, preemptions: dict[int, int | None], situation: str, kinds: tuple[str, ...]
) -> None:
    make, _ = SITUATIONS[situation]

    assert sum(1 for _ in orders(lambda: make(core, kinds), preemptions[3])) > 5


# Not with a newcomer in between, who would be the one that a second return takes it from: nothing
# about the connection tells the two holders apart.
@pytest.mark.parametrize("kinds", [(), ("close",), ("new",), ("failed opening",)])
@pytest.mark.parametrize("second", ["return", "discard"])
@pytest.mark.parametrize("status", [IDLE, IN_TRANSACTION], ids=["idle", "in transaction"])
def test_of_two_who_return_the_same_connection_one_is_refused_in_any_order(
    core: Any,
    preemptions: dict[int, int | None],
    status: int,
    second: str,
    kinds: tuple[str, ...],
) -> None:
    def make() -> World:
        world = calm(core, ("return", *kinds))
        world.conn.pgconn.transaction_status = status
        world.held.append(world.conn)  # for the second to take
        act(world, second)
        world.returning = [world.actors[0], world.actors[-1]]
        return world

    assert sum(1 for _ in orders(make, preemptions[3])) > 1
