"""Hooks that raise lose nothing; hooks and finalisers may come back into the pool."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import cycle, repeat
from typing import Any

import pytest

from tests.core.shell import (
    IN_TRANSACTION,
    Conn,
    Interrupt,
    MakePool,
    lent,
)

# Hooks that raise


def raises(error: BaseException) -> Callable[..., None]:
    def script(*_: object) -> None:
        raise error

    return script


@pytest.fixture(params=[RuntimeError, Interrupt])
def error(request: pytest.FixtureRequest) -> BaseException:
    # Each time a new one, because a raised error keeps the frames it came through.
    kind: type[BaseException] = request.param
    return kind("hook")


@pytest.mark.parametrize("hook", ["new_waiter", "sleeping", "open"])
def test_a_hook_that_raises_in_a_request_loses_nothing(
    make_pool: MakePool, hook: str, error: BaseException
) -> None:
    pool = make_pool(2)
    pool.scripts[hook] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.request().result()

    assert caught.value is error
    assert pool.waiting_count == 0
    while pool.asked:
        pool.connected()
    assert pool.is_whole()


@pytest.mark.parametrize("hook", ["is_alive", "close_conn"])
def test_a_hook_that_raises_over_a_dead_connection_loses_nothing(
    make_pool: MakePool, clock: Any, hook: str, error: BaseException
) -> None:
    pool = make_pool(2, check_after=10)
    alive, dead = pool.stock("a", "a")
    dead.alive = False
    clock.now += 11
    pool.scripts[hook] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.getconn()

    assert caught.value is error
    assert pool.closed == [dead.number]
    assert pool.getconn() is alive
    pool.putconn(alive)
    assert pool.is_whole()


@pytest.mark.parametrize("hook", ["clean", "close_conn"])
def test_a_hook_that_raises_in_a_return_loses_nothing(
    make_pool: MakePool, hook: str, error: BaseException
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    conn.pgconn.transaction_status, conn.cleanable = IN_TRANSACTION, False
    request = pool.request()
    pool.scripts[hook] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.putconn(conn)

    assert caught.value is error
    assert pool.closed == [conn.number]
    fresh = pool.connected()
    assert request.result() is fresh
    pool.putconn(fresh)
    assert pool.is_whole()


def test_a_report_of_a_dropped_connection_that_raises_in_a_return_loses_nothing(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(2)
    dropped, conn = pool.grow("a", "a")
    pool.scripts["lost_one"] = raises(error)

    del dropped
    with pytest.raises(type(error)):
        pool.putconn(conn)
    del conn
    gc.collect()

    assert pool.is_whole()


def test_a_transaction_status_that_cannot_be_read_closes_the_connection(
    make_pool: MakePool, error: BaseException
) -> None:
    class Pgconn:
        @property
        def transaction_status(self) -> int:
            raise error

    class Unreadable(Conn):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            self.pgconn = Pgconn()  # type: ignore[assignment]

    pool = make_pool(1)
    pool.new_conn = lambda: Unreadable(1)
    (conn,) = (pool.request(), pool.connected())[1:]
    pool.actors[0].result()

    with pytest.raises(type(error)):
        pool.putconn(conn)

    assert pool.closed == [1]
    assert pool.total_count == 0


def test_a_connection_that_cannot_be_marked_as_lent_is_closed(
    make_pool: MakePool, error: BaseException
) -> None:
    class Rigid(Conn):
        rigid = False

        def __setattr__(self, name: str, value: object) -> None:
            if name == "_pool" and value is not None and self.rigid:
                raise error
            super().__setattr__(name, value)

    pool = make_pool(1)
    pool.new_conn = lambda: Rigid(1)
    pool.nodes = repeat("a")
    conn = pool.getconn()
    pool.nodes = None
    pool.putconn(conn)
    conn.rigid = True

    with pytest.raises(type(error)):
        pool.getconn()

    assert pool.closed == [1]
    assert pool.total_count == 0
    error.__traceback__ = None
    del conn  # which is no loss any more
    gc.collect()
    pool.check()
    assert pool.total_count == 0


def test_an_opening_that_cannot_be_started_is_tried_for_the_next_waiter(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first, second = pool.request(), pool.request()
    error = RuntimeError("can't start new thread")
    pool.scripts["open"] = raises(error)

    pool.putconn(conn, discard=True)  # no concern of this caller

    with pytest.raises(RuntimeError) as caught:
        first.result()
    assert caught.value is error
    fresh = pool.connected()
    assert second.result() is fresh


def test_when_no_opening_can_be_started_every_waiter_hears_of_it(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    requests = [pool.request() for _ in range(3)]

    def cannot(_: object) -> None:
        pool.scripts["open"] = cannot
        raise RuntimeError("can't start new thread")

    pool.scripts["open"] = cannot
    pool.putconn(conn, discard=True)
    pool.scripts.clear()

    for request in requests:
        with pytest.raises(RuntimeError):
            request.result()
    assert pool.is_whole()


def test_an_interrupt_is_for_the_thread_that_it_came_to_and_nobody_else(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.scripts["open"] = raises(Interrupt())

    with pytest.raises(Interrupt):
        pool.putconn(conn, discard=True)

    assert request.asleep
    fresh = pool.connected()  # it is opened for as before
    assert request.result() is fresh


def test_a_report_of_a_closed_connection_that_raises_loses_nothing(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.end()
    pool.scripts["closing_progressed"] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.putconn(conn, discard=True)

    assert caught.value is error
    fresh = pool.connected()
    assert request.result() is fresh


def test_a_report_of_a_failed_opening_that_raises_loses_nothing(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(1)
    pool.request()
    pool.request()  # for which another is to be opened
    pool.end()
    pool.scripts["closing_progressed"] = raises(error)

    with pytest.raises(type(error)):
        pool.failed(OSError())

    # Nobody waits for an opening that nobody was told to begin.
    assert pool.connecting_count == len(pool.asked)


def test_an_idle_connection_whose_closing_raises_is_closed_all_the_same(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool()
    pool.stock("a", "a")
    pool._start_closing()
    pool.scripts["close_conn"] = raises(error)

    with pytest.raises(type(error)):
        pool._retire_idle()

    assert pool.total_count == 1
    assert pool._retire_idle()
    assert not pool._retire_idle()
    assert pool.total_count == 0


# Hooks that come back


@pytest.mark.parametrize("hook", ["clean", "close_conn", "new_waiter", "is_alive"])
def test_a_hook_may_borrow_and_return_a_connection(
    make_pool: MakePool, clock: Any, hook: str
) -> None:
    pool = make_pool(4, check_after=10)
    conn, other, spare = pool.grow("a", "a", "b")
    conn.pgconn.transaction_status, conn.cleanable = IN_TRANSACTION, False

    def use(*_: object) -> None:
        pool.putconn(spare)
        assert pool.getconn() is spare

    pool.scripts[hook] = use
    if hook == "is_alive":
        pool.putconn(other)
        clock.now += 11
        pool.putconn(pool.getconn())
    elif hook == "new_waiter":
        pool.putconn(pool.grow("a")[0])
    else:
        pool.putconn(conn)

    assert hook not in pool.scripts
    pool.check()


def test_the_hook_that_opens_may_serve_the_requester(make_pool: MakePool) -> None:
    pool = make_pool(2)
    (conn,) = pool.grow("a")
    pool.scripts["open"] = lambda _: pool.putconn(conn)

    assert pool.request().result() is conn

    pool.connected()
    assert pool.idle_count == 1


def test_a_finaliser_may_return_a_connection_wherever_the_collector_runs(
    make_pool: MakePool, eager_gc: None
) -> None:
    held: dict[int, Conn] = {}

    class Holder:
        number: int

        def __del__(self) -> None:
            pool.putconn(held.pop(self.number))

    pool = make_pool(4)
    pool.nodes = cycle("ab")

    def use() -> None:
        for number in range(500):
            holder: Any = Holder()
            holder.number, holder.itself = number, holder
            held[number] = pool.getconn()
            del holder
            while len(held) == 4:
                gc.collect()

    pool.actor(use).result()  # which would tell of a deadlock
    gc.collect()

    assert pool.is_whole()


def test_a_finaliser_may_return_a_connection_that_nobody_else_has(make_pool: MakePool) -> None:
    class Holder:
        conn: Conn

        def __del__(self) -> None:
            pool.putconn(self.conn)

    pool = make_pool(2)
    pool.nodes = repeat("a")
    holder: Any = Holder()
    holder.conn, holder.itself = pool.getconn(), holder

    # The collector has told the pool of the drop before it runs the finaliser.
    del holder
    gc.collect()

    conns = [pool.getconn(), pool.getconn()]
    assert conns[0] is not conns[1]
    assert lent(pool) == {"a": 2}
    pool.check()

    # It is noticed again when it is dropped.
    del conns
    gc.collect()
    pool.check()
    assert pool.total_count == 0
