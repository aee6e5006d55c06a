"""Opening, waiting until it is ready, closing, ending."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.api.support import Queued, controlled, until_none_runs
from tests.servers import pid
from tests.support import Threads, until
from ybsmart import ConnectionPool, DoubleRelease, PoolClosed, PoolTimeout


def begin_to_end(pool: ConnectionPool[Any]) -> threading.Thread:
    """A thread that is in `end`, which refuses newcomers already."""
    ending = threading.Thread(target=pool.end)
    ending.start()
    until(lambda: pool.closed)
    return ending


@pytest.mark.parametrize("timeout", [1e10, float("inf"), 10**400], ids=["long", "inf", "int"])
@pytest.mark.parametrize("way", [ConnectionPool.wait, ConnectionPool.close])
def test_a_pool_is_waited_for_as_long_as_numbers_are(
    balanced: str, way: Callable[[ConnectionPool[Any], float], None], timeout: float
) -> None:
    connection_class = controlled()
    connection_class.gate.clear()
    with ConnectionPool(balanced, min_size=1, connection_class=connection_class) as pool:
        until(lambda: pool.connecting_count, 1)
        called = Threads([partial(way, pool, timeout)])
        until(lambda: bool(pool._onlookers or called.errors))
        connection_class.gate.set()
        called.join()


def test_before_it_is_opened_a_pool_refuses(balanced: str) -> None:
    pool = ConnectionPool(balanced, open=False)
    assert pool.closed
    with pytest.raises(PoolClosed, match="is not open yet"):
        pool.getconn()
    pool.open()
    assert not pool.closed
    pool.open()
    pool.query("SELECT 1")
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed, match="is already closed"):
        pool.getconn()
    with pytest.raises(PoolClosed, match="cannot be reused"):
        pool.open()
    with pytest.raises(PoolClosed):
        pool.wait()


def test_wait_raises_and_closes_when_nothing_can_be_connected_to(balanced: str) -> None:
    for min_size in (0, 2):
        connection_class = controlled()
        connection_class.error = psycopg.OperationalError("no luck")
        pool = ConnectionPool(balanced, min_size=min_size, connection_class=connection_class)
        with pytest.raises(PoolTimeout) as caught:
            pool.open(wait=True, timeout=1)
        assert str(caught.value.__cause__) == "no luck"
        assert pool.closed


def test_wait_without_a_minimum_opens_one(balanced: str) -> None:
    with ConnectionPool(balanced) as pool:
        pool.wait(10)
        assert pool.idle_count == 1


def test_wait_with_connections_in_use_returns(balanced: str) -> None:
    with ConnectionPool(balanced, min_size=2) as pool:
        with pool.connection():
            pool.wait(10)
            assert (pool.total_count, pool.idle_count) == (2, 1)


def test_a_pool_does_not_count_as_filled_by_a_connection_that_is_being_closed(
    balanced: str,
) -> None:
    closing, go_on = threading.Event(), threading.Event()

    class Slow(ybsmart.Connection[Any]):
        def close(self) -> None:
            closing.set()
            assert go_on.wait(10)
            super().close()

    pool = ConnectionPool(balanced, connection_class=Slow, min_size=1)
    conn = pool.getconn()
    discarding = threading.Thread(target=pool.putconn, args=(conn,), kwargs={"discard": True})
    discarding.start()
    try:
        assert closing.wait(10)
        with pytest.raises(PoolTimeout):
            pool.wait(0.05)
    finally:
        go_on.set()
        discarding.join(10)


def test_an_interrupt_before_anybody_hears_of_a_removal_does_not_hold_up_the_end(
    balanced: str,
) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_name == "_notify":
            raise Interrupt

    pool = ConnectionPool(balanced)
    conn = pool.getconn()
    sys.settrace(interrupt)
    try:
        with pytest.raises(Interrupt):
            pool.putconn(conn, discard=True)
    finally:
        sys.settrace(None)
    del conn
    gc.collect()
    pool.end(5)


def test_end_with_a_connect_under_way_serves_its_requester(balanced: str) -> None:
    connection_class = controlled()
    connection_class.gate.clear()
    pool = ConnectionPool(balanced, connection_class=connection_class, timeout=10)
    waiter = Queued(pool)
    ending = begin_to_end(pool)
    with pytest.raises(PoolClosed):
        pool.getconn()
    connection_class.gate.set()
    conn = waiter.result()
    assert ending.is_alive()
    pool.putconn(conn)
    ending.join(10)
    assert not ending.is_alive()
    assert conn.closed


def test_end_with_a_connect_under_way_that_fails(balanced: str) -> None:
    connection_class = controlled()
    connection_class.gate.clear()
    connection_class.error = psycopg.OperationalError("no luck")
    pool = ConnectionPool(balanced, connection_class=connection_class, timeout=10)
    waiter = Queued(pool)
    ending = begin_to_end(pool)
    connection_class.gate.set()
    with pytest.raises(psycopg.OperationalError, match="no luck"):
        waiter.result()
    ending.join(10)
    assert not ending.is_alive()


def test_end_twice_is_an_error_and_close_after_it_is_not(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    pool.end()
    with pytest.raises(PoolClosed):
        pool.end()
    pool.close()


def test_end_is_not_held_up_by_a_connection_that_was_dropped(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    conn = [pool.getconn()]
    ending = begin_to_end(pool)
    conn.clear()
    gc.collect()
    ending.join(10)
    assert not ending.is_alive()


def test_end_names_those_it_waited_for_in_vain(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    conn = pool.getconn()
    with pytest.raises(PoolTimeout, match=threading.current_thread().name):
        pool.end(0.05)
    pool.putconn(conn)
    assert conn.closed


def test_twenty_on_one_connection_all_complete_before_end_returns(balanced: str) -> None:
    pool = ConnectionPool(balanced, max_size=1, timeout=10)
    held = pool.getconn()
    waiters = [Queued(pool) for _ in range(20)]
    ending = begin_to_end(pool)
    pool.putconn(held)
    for waiter in waiters:
        conn = waiter.result()
        assert conn.execute("SELECT 1").fetchone() == (1,)
        pool.putconn(conn)
    ending.join(10)
    assert not ending.is_alive()


def test_close_returns_gives_the_connection_back(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, close_returns=True, timeout=10) as pool:
        conn = pool.getconn()
        first = pid(conn)
        conn.close()
        assert not conn.closed
        assert pool.idle_count == 1
        with pool.connection() as conn:
            assert pid(conn) == first
        assert pool.query("SELECT 1").scalar() == 1
        with ConnectionPool(
            balanced, max_uses=1, close_returns=True, discard_on_query_error=True, timeout=10
        ) as other:
            once = other.getconn()
            once.close()
            assert once.closed
            with pytest.raises(psycopg.errors.DivisionByZero):
                other.query("SELECT 1/0")
            assert other.total_count == 0
    assert conn.closed


def test_close_returns_gives_a_broken_connection_back_too(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, close_returns=True, timeout=10) as pool:
        conn = pool.getconn()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        conn.close()
        assert pool.total_count == 0
        conn.close()  # as often as one likes
        assert pool.query("SELECT 1").scalar() == 1


def test_a_pool_that_is_dropped_is_collected_though_a_connection_is_kept(balanced: str) -> None:
    pool = ConnectionPool(balanced, min_size=2)
    pool.wait(10)
    with pool.connection() as conn:
        pass
    until_none_runs(f"{pool.name}-connect")
    gone = weakref.ref(pool)
    del pool

    def is_collected() -> bool:
        gc.collect()
        return gone() is None

    until(is_collected)
    assert not conn.closed


# What is not on loan


def test_a_stale_return_does_not_take_what_another_thread_has_in_a_block(
    pool: ConnectionPool,
) -> None:
    pool.resize(0, 1)
    stale = pool.getconn()
    pool.putconn(stale)
    entered, leave = threading.Event(), threading.Event()

    def use() -> None:
        with pool.connection() as conn:
            assert conn is stale
            entered.set()
            leave.wait(10)
            conn.execute("SELECT 1")

    thread = threading.Thread(target=use)
    thread.start()
    entered.wait(10)
    with pytest.raises(DoubleRelease):
        pool.putconn(stale)
    assert (pool.total_count, pool.idle_count) == (1, 0)
    leave.set()
    thread.join()
    assert pool.idle_count == 1


@pytest.mark.parametrize("stale", [True, False])
def test_what_a_block_was_lent_only_the_block_returns(pool: ConnectionPool, stale: bool) -> None:
    pool.resize(0, 1)
    if stale:
        kept = pool.getconn()
        pool.putconn(kept)
    with pool.connection() as conn:
        assert not stale or conn is kept
        conn.execute("CREATE TEMP TABLE here AS SELECT 1")
        with pytest.raises(DoubleRelease, match="only the block"):
            pool.putconn(kept if stale else conn)
        assert conn.execute("SELECT count(*) FROM here").fetchone() == (1,)
    with pool.connection() as conn:
        assert conn.execute("SELECT count(*) FROM here").fetchone() == (1,)  # committed


def test_closing_inside_a_block_of_a_pool_with_close_returns_is_refused(balanced: str) -> None:
    with ConnectionPool(balanced, close_returns=True, timeout=10) as pool:
        with pool.connection() as conn:
            with pytest.raises(DoubleRelease):
                conn.close()
            assert conn.execute("SELECT 1").fetchone() == (1,)
        assert pool.idle_count == 1


def test_a_connection_of_another_pool(pool: ConnectionPool, balanced: str) -> None:
    with ConnectionPool(balanced, name="the-other") as other:
        conn: Any = other.getconn()
        with pytest.raises(ValueError, match="the-other"):
            pool.putconn(conn)
        other.putconn(conn)
        with pytest.raises(ValueError, match="any pool"):
            pool.putconn(conn)
    with pytest.raises(TypeError, match="NoneType"):
        pool.putconn(None)


def test_close_refuses_newcomers_and_the_queue_and_closes_what_comes_back(balanced: str) -> None:
    pool = ConnectionPool(balanced, max_size=1)
    conn = pool.getconn()
    waiter = Queued(pool)

    pool.close()
    pool.close()

    with pytest.raises(PoolClosed, match=pool.name):
        waiter.result()
    with pytest.raises(PoolClosed):
        pool.getconn()
    assert pool.closed
    assert not conn.closed
    pool.putconn(conn)
    assert conn.closed
    assert pool.total_count == 0


def test_end_serves_the_queue_and_waits_for_the_holders(balanced: str) -> None:
    pool = ConnectionPool(balanced, max_size=1)
    conn = pool.getconn()
    waiter = Queued(pool)
    ending = begin_to_end(pool)

    with pytest.raises(PoolClosed):
        pool.getconn()
    pool.putconn(conn)
    assert waiter.result() is conn
    assert ending.is_alive()
    pool.putconn(conn)
    ending.join(10)

    assert not ending.is_alive()
    assert conn.closed
    assert pool.total_count == 0
    with pytest.raises(PoolClosed):
        pool.end()


def test_end_gives_up_after_its_timeout_and_the_rest_closes_when_returned(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    conn = pool.getconn()

    with pytest.raises(PoolTimeout, match="has not ended"):
        pool.end(timeout=0.05)

    pool.putconn(conn)
    assert conn.closed


def test_end_of_an_unused_pool_returns_at_once(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    pool.end()
    assert pool.closed


def test_a_connection_that_is_opened_while_closing_is_closed(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ConnectionPool(balanced)
    gate = threading.Event()
    opened: list[psycopg.Connection[Any]] = []
    connect = ybsmart.Connection.connect

    def slow(*args: Any, **kwargs: Any) -> Any:
        gate.wait(10)
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(ybsmart.Connection, "connect", slow)
    waiter = Queued(pool)
    closing = threading.Thread(target=pool.close)
    closing.start()
    with pytest.raises(PoolClosed):
        waiter.result()
    gate.set()
    closing.join(10)

    assert pool.total_count == 0
    assert opened[0].closed
