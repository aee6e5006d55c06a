"""How many connections there are, and for how long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psycopg
import pytest

import ybsmart
from tests.api.support import Controlled, Queued, controlled, until_none_runs
from tests.servers import kill_backend, pid
from tests.support import in_threads, until
from ybsmart import ConnectionPool, PoolTimeout, TooManyRequests, sweeper
from ybsmart.testing import LocalCluster


@pytest.fixture
def no_sweeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tidies up: what has to be right without is."""
    monkeypatch.setattr(sweeper, "watch", lambda pool: None)


# Idle time, lifetime, uses


def test_an_idle_connection_is_closed_by_the_sweeper(balanced: str) -> None:
    with ConnectionPool(balanced, max_idle=0.05) as pool:
        with pool.connection():
            pass
        until(lambda: pool.total_count == 0)
        assert pool.get_stats()["removed_idle"] == 1


@pytest.mark.usefixtures("no_sweeper")
def test_an_expired_idle_connection_is_not_lent_even_if_nobody_has_swept(balanced: str) -> None:
    with ConnectionPool(balanced, max_idle=0.02, max_size=1) as pool:
        with pool.connection() as conn:
            first = pid(conn)
        time.sleep(0.03)  # what is tested is that time passes
        with pool.connection() as conn:
            assert pid(conn) != first
        assert pool.get_stats()["removed_idle"] == 1


def test_using_a_connection_starts_its_idle_time_anew(balanced: str) -> None:
    with ConnectionPool(balanced, max_idle=30, max_size=1) as pool:
        with pool.connection() as conn:
            first = pid(conn)
        for _ in range(3):
            with pool.connection() as conn:
                assert pid(conn) == first


@pytest.mark.parametrize("off", [0, None])
def test_zero_and_none_switch_the_limits_off(balanced: str, off: int | None) -> None:
    with ConnectionPool(balanced, max_idle=off, max_lifetime=off) as pool:
        with pool.connection():
            pass
        pool._sweep()
        assert pool.idle_count == 1


def test_idle_connections_are_closed_down_to_the_minimum_the_oldest_first(balanced: str) -> None:
    with ConnectionPool(balanced, min_size=2, max_size=4, max_idle=0.2) as pool:
        conns = [pool.getconn() for _ in range(4)]
        pids = [pid(conn) for conn in conns]
        for conn in conns:
            pool.putconn(conn)
        until(lambda: pool.total_count == 2)
        left = [pool.getconn() for _ in range(2)]
        assert {pid(conn) for conn in left} == set(pids[2:])
        for conn in left:
            pool.putconn(conn)


@pytest.mark.usefixtures("no_sweeper")
def test_lifetime_is_enforced_on_return(balanced: str) -> None:
    with ConnectionPool(balanced, max_lifetime=0.02) as pool:
        with pool.connection() as conn:
            time.sleep(0.03)
        assert conn.closed
        assert pool.get_stats()["removed_lifetime"] == 1


@pytest.mark.usefixtures("no_sweeper")
def test_lifetime_is_enforced_before_lending(balanced: str) -> None:
    with ConnectionPool(balanced, max_lifetime=0.1) as pool:
        with pool.connection() as conn:
            first = pid(conn)
        time.sleep(0.11)
        with pool.connection() as conn:
            assert pid(conn) != first


def test_lifetime_is_enforced_by_the_sweeper(balanced: str) -> None:
    with ConnectionPool(balanced, max_lifetime=0.1) as pool:
        with pool.connection():
            pass
        until(lambda: pool.get_stats()["removed_lifetime"] == 1)


def test_lifetimes_differ_so_that_not_all_end_at_once(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=3, max_lifetime=1e6) as pool:
        ends: list[float] = []
        opened = pool._opened

        def note(*args: object) -> object:
            ends.append(float(args[-1]) - time.monotonic())  # type: ignore[arg-type]
            return opened(*args)  # type: ignore[arg-type]

        pool._opened = note  # type: ignore[assignment, method-assign]
        held = [pool.getconn() for _ in range(3)]
        for conn in held:
            pool.putconn(conn)
    assert len({round(end, 3) for end in ends}) == 3
    assert all(899_900 < end <= 1e6 for end in ends)


def test_a_connection_is_closed_after_max_uses_and_the_queue_gets_a_new_one(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, max_uses=2, timeout=10) as pool:
        with pool.connection() as conn:
            first = pid(conn)
        conn = pool.getconn()
        assert pid(conn) == first
        waiter = Queued(pool)
        pool.putconn(conn)
        assert conn.closed
        second = waiter.result()
        assert pid(second) != first
        assert pool.waiting_count == 0
        pool.putconn(second)
        assert pool.get_stats()["removed_uses"] == 1


# The minimum


def test_the_minimum_is_filled_when_opened(balanced: str) -> None:
    with ConnectionPool(balanced, min_size=3) as pool:
        pool.wait(10)
        assert (pool.total_count, pool.idle_count) == (3, 3)
        assert pool.get_stats()["connections_num"] == 3


def test_a_lazy_pool_fills_its_minimum_with_the_first_request(balanced: str) -> None:
    pool = ConnectionPool(balanced, min_size=2)
    assert pool.total_count == 0
    with pool.connection():
        until(lambda: pool.total_count == 2 and not pool.connecting_count)
    pool.close()


def test_the_minimum_is_refilled_whatever_removed_a_connection(balanced: str) -> None:
    with ConnectionPool(balanced, min_size=2, max_size=2, max_idle=0) as pool:

        def is_full_again() -> bool:
            return pool.idle_count == 2

        pool.wait(10)
        with pool.connection() as conn:
            conn.close()
        until(is_full_again)
        pool.putconn(pool.getconn(), discard=True)
        until(is_full_again)
        pool.drain()
        until(is_full_again)
        conn = pool.getconn()
        pool.putconn(conn)
        kill_backend(conn)
        until(lambda: conn.closed)  # found by the sweeper: nobody asks
        until(is_full_again)


def test_refilling_is_given_up_and_begun_again_by_the_next_request(balanced: str) -> None:
    connection_class = controlled()
    connection_class.error = psycopg.OperationalError("no luck")
    told: list[object] = []
    with ConnectionPool(
        balanced,
        min_size=2,
        connection_class=connection_class,
        reconnect_timeout=0.1,
        reconnect_failed=told.append,
    ) as pool:
        until(lambda: bool(told))
        assert told == [pool]
        until_none_runs(f"{pool.name}-connect")
        attempts = connection_class.attempts
        connection_class.error = None
        with pool.connection(30):
            assert connection_class.attempts > attempts
        pool.wait(30)
        assert pool.idle_count == 2


def test_what_reconnect_failed_raises_is_logged_and_an_interrupt_goes_on(
    balanced: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: went_on.append(args.exc_value))
    errors = [ValueError("oops"), KeyboardInterrupt()]
    for error in errors:
        connection_class = controlled()
        connection_class.error = psycopg.OperationalError("no luck")

        def fail(_: object, error: BaseException = error) -> None:
            raise error

        with ConnectionPool(
            balanced,
            min_size=2,
            connection_class=connection_class,
            reconnect_timeout=0.05,
            reconnect_failed=fail,
        ) as pool:
            until(lambda: "no connection for" in caplog.text)
            until_none_runs(f"{pool.name}-connect")
            connection_class.error = None
            pool.wait(10)
            pool._check_invariants()
        caplog.clear()
    assert went_on == [errors[1]]


def failing_pool(
    conninfo: str,
    connection_class: type[Controlled],
    reconnect_failed: Callable[[ConnectionPool[Any]], None],
) -> ConnectionPool[Controlled]:
    """One that soon gives up refilling, but lets requests wait."""
    connection_class.error = psycopg.OperationalError("no luck")
    return ConnectionPool(
        conninfo,
        min_size=1,
        max_size=1,
        fail_fast=False,
        connection_class=connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=reconnect_failed,
    )


def assert_is_tried_again(pool: ConnectionPool[Any], connection_class: type[Controlled]) -> None:
    """That a request for which connecting fails is served once it does not."""
    until_none_runs(f"{pool.name}-connect")
    attempts = connection_class.attempts
    waiter = Queued(pool)
    until(lambda: connection_class.attempts > attempts + 1)
    connection_class.error = None
    pool.putconn(waiter.result())


def test_after_reconnect_failed_has_ended_its_thread_what_fails_is_tried_again(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    connection_class = controlled()
    with failing_pool(balanced, connection_class, lambda _: sys.exit("no database")) as pool:
        until(lambda: not pool._is_refilling())
        assert_is_tried_again(pool, connection_class)


def test_where_reconnect_failed_ends_a_thread_that_nothing_can_replace_it_goes_on(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    connection_class = controlled()
    refused = threading.Event()

    def end_the_last(pool: ConnectionPool[Any]) -> None:
        start = threading.Thread.start

        def refuse(self: threading.Thread) -> None:
            monkeypatch.setattr(threading.Thread, "start", start)
            refused.set()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        sys.exit("no database")

    with failing_pool(balanced, connection_class, end_the_last) as pool:
        assert refused.wait(60)
        assert_is_tried_again(pool, connection_class)


def test_a_listener_that_ends_the_sweep_ends_it_for_nobody_else(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    went_on: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: went_on.append(args.exc_type))

    def stop(_: object) -> None:
        if threading.current_thread().name == "ybsmart-sweep":
            raise Stop

    with (
        ConnectionPool(balanced, max_idle=0.02) as pool,
        ConnectionPool(balanced, max_idle=0.2) as other,
    ):
        other.query("SELECT 1")
        pool.on("remove", stop)
        pool.query("SELECT 1")
        until(lambda: went_on == [Stop])
        until(lambda: other.total_count == 0)
        pool.off("remove", stop)
        pool.query("SELECT 1")
        until(lambda: pool.total_count == 0)


# The maximum


def test_a_dropped_connection_is_closed_before_another_takes_its_place(balanced: str) -> None:
    closed_before: list[bool] = []

    class Watching(ybsmart.Connection[Any]):
        sockets: ClassVar[list[tuple[int, int]]] = []

        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            closed_before.extend(not is_open(*socket) for socket in cls.sockets)
            conn = super().connect(*args, **kwargs)
            cls.sockets = [(conn.fileno(), os.fstat(conn.fileno()).st_ino)]
            return conn

    def is_open(fd: int, inode: int) -> bool:
        try:
            return os.fstat(fd).st_ino == inode
        except OSError:
            return False

    with ConnectionPool(balanced, max_size=1, connection_class=Watching, timeout=10) as pool:
        for _ in range(5):
            conn = pool.getconn()
            del conn
        pool.query("SELECT 1")
        # Without the GIL, another thread may be the one who counts it.
        until(lambda: pool.get_stats()["removed_leak"], 5)
    assert closed_before == [True] * 5


def test_connections_being_opened_count(balanced: str) -> None:
    connection_class = controlled()
    connection_class.gate.clear()
    with ConnectionPool(
        balanced, max_size=2, max_connecting=5, connection_class=connection_class, timeout=10
    ) as pool:
        waiters = [Queued(pool) for _ in range(4)]
        until(lambda: connection_class.attempts == 2)
        assert (pool.total_count, pool.connecting_count, pool.waiting_count) == (2, 2, 4)
        connection_class.gate.set()
        for waiter in waiters:
            pool.putconn(waiter.result())
        assert connection_class.attempts == 2


def test_no_more_than_max_connecting_are_opened_at_a_time(balanced: str) -> None:
    connection_class = controlled()
    connection_class.gate.clear()
    with ConnectionPool(
        balanced, max_size=10, max_connecting=2, connection_class=connection_class, timeout=10
    ) as pool:
        waiters = [Queued(pool) for _ in range(5)]
        assert pool.connecting_count == 2
        connection_class.gate.set()
        for conn in [waiter.result() for waiter in waiters]:
            pool.putconn(conn)


def test_resize_up_serves_the_queue_and_down_closes_the_surplus(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=10) as pool:
        held = pool.getconn()
        waiter = Queued(pool)
        pool.resize(0, 3)
        second = waiter.result()
        third = pool.getconn()
        assert (pool.min_size, pool.max_size, pool.total_count) == (0, 3, 3)
        pool.putconn(third)
        pool.resize(0, 1)
        assert third.closed
        pool.putconn(second)
        assert second.closed
        pool.putconn(held)
        assert not held.closed
        assert pool.total_count == 1


@pytest.mark.parametrize("sizes", [(-1, None), (4, 2), (0, 0), ("1", 2), (1.5, 2)])
def test_resize_refuses_what_the_constructor_does(
    pool: ConnectionPool, sizes: tuple[int, int]
) -> None:
    with pytest.raises((ValueError, TypeError), match="_size"):
        pool.resize(*sizes)
    assert (pool.min_size, pool.max_size) == (0, 3)


def test_max_waiting_is_exact(pool: ConnectionPool, balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, max_waiting=3, timeout=10) as pool:
        held = pool.getconn()
        start = threading.Barrier(20)
        refused: list[TooManyRequests] = []

        def ask() -> None:
            start.wait()
            try:
                pool.putconn(pool.getconn())
            except TooManyRequests as exc:
                refused.append(exc)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: len(refused) == 17)
        assert pool.waiting_count == 3
        pool.putconn(held)
        for thread in threads:
            thread.join()
        assert pool.name in str(refused[0])
        assert "3" in str(refused[0])
        stats = pool.get_stats()
        assert stats["requests_errors"] == stats["requests_rejected"] == 17


def test_no_node_gets_more_than_max_per_node(cluster: LocalCluster, balanced: str) -> None:
    with ConnectionPool(balanced, max_size=9, max_per_node=1, timeout=10) as pool:
        with ThreadPoolExecutor(6) as executor:
            held = list(executor.map(lambda _: pool.getconn(), range(3)))
            assert sorted(n["total"] for n in pool.get_stats()["nodes"].values()) == [1, 1, 1]
            waiter = Queued(pool)
            with pytest.raises(PoolTimeout):
                pool.getconn(0.05)
            pool.putconn(held[0])
            assert pid(waiter.result()) == pid(held[0])
            # The place of one that is closed is taken by another on the same node.
            waiter = Queued(pool)
            pool.putconn(held[1], discard=True)
            held[1] = waiter.result()
        for conn in held:
            pool.putconn(conn)
        assert pool.get_stats()["requests_errors"] == 1


def test_a_connection_that_has_just_been_opened_does_not_count_twice_for_its_node(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ybsmart.connector._SQUEEZE", 1000.0)
    waiters: list[Queued] = []
    opened = threading.Lock()

    class Pool(ConnectionPool):
        def _progressed(self) -> None:
            if opened.acquire(False):  # the first has just been
                waiters.append(Queued(self))
                until(lambda: self.get_stats()["connections_num"] == 2 or self.total_count == 2)
                until(lambda: not self.connecting_count)
            super()._progressed()

    conninfo = cluster.conninfo(
        load_balance=True,
        topology_keys="aws.us-west.us-west-2b",
        fallback_to_topology_keys_only=True,
    )
    with Pool(conninfo, max_size=3, max_per_node=2, timeout=10) as pool:
        pool._watch_progress(True)
        conn = pool.getconn()
        until(lambda: bool(waiters))
        pool.putconn(waiters[0].result())
        assert pool.total_count == 2
        pool.putconn(conn)


# A server that has no room for more


@pytest.mark.parametrize(
    ("at_once", "sizes", "refusals"), [(1, {3}, {1}), (3, {1, 2, 3}, {*range(1, 7)})]
)
def test_too_many_clients_shrinks_the_pool_and_serves_everybody(
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    sizes: set[int],
    refusals: set[int],
) -> None:
    """To PostgreSQL such a limit is approximate: of those that come at the same time it may refuse
    all, even if there is room for some."""
    monkeypatch.setattr("ybsmart.connector._SQUEEZE", 1000.0)
    node = cluster.nodes[0]
    cluster.execute(node, "CREATE ROLE cramped LOGIN PASSWORD 'x' CONNECTION LIMIT 3")
    try:
        conninfo = cluster.conninfo(node, user="cramped", password="x")
        with ConnectionPool(conninfo, max_size=10, max_connecting=at_once, timeout=20) as pool:

            def use() -> None:
                with pool.connection() as conn:
                    until(lambda: pool.get_stats()["connections_errors"] > 0)
                    conn.execute("SELECT 1")

            assert in_threads(10, use) == []
            until(lambda: pool.connecting_count, 0)
            stats = pool.get_stats()
            assert stats["pool_size"] in sizes
            assert stats["requests_errors"] == 0
            assert stats["connections_errors"] in refusals
    finally:
        cluster.execute(node, "DROP ROLE cramped")


def test_too_many_clients_without_any_connection_is_the_requesters_error(
    cluster: LocalCluster,
) -> None:
    node = cluster.nodes[0]
    cluster.execute(node, "CREATE ROLE barred LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    try:
        conninfo = cluster.conninfo(node, user="barred", password="x")
        with ConnectionPool(conninfo) as pool, pytest.raises(psycopg.OperationalError, match="too"):
            pool.getconn()
        assert pool.total_count == 0
    finally:
        cluster.execute(node, "DROP ROLE barred")
