"""Connects that fail, connections that break, nodes that go away and come back."""

from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from collections import Counter
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.api.support import Queued, controlled
from tests.servers import by_node, kill_backend, pid
from tests.support import in_threads, until
from ybsmart import ConnectionPool, PoolTimeout
from ybsmart.liveness import any_has_news
from ybsmart.testing import LocalCluster

# Connecting


def test_the_requester_gets_the_original_error_and_others_are_not_affected(balanced: str) -> None:
    connection_class = controlled()
    with ConnectionPool(
        balanced, max_size=2, connection_class=connection_class, timeout=10
    ) as pool:
        held = pool.getconn()
        connection_class.error = failure = psycopg.OperationalError("no luck")
        with pytest.raises(psycopg.OperationalError) as caught:
            pool.getconn()
        assert caught.value is failure
        assert held.execute("SELECT 1").fetchone() == (1,)
        assert (pool.total_count, pool.waiting_count) == (1, 0)
        connection_class.error = None
        pool.putconn(pool.getconn())
        pool.putconn(held)
        assert pool.get_stats()["requests_errors"] == 1


def test_a_failure_frees_the_place_for_the_next_in_line(balanced: str) -> None:
    connection_class = controlled()
    connection_class.gate.clear()
    with ConnectionPool(balanced, max_size=1, connection_class=connection_class) as pool:
        first, second = Queued(pool), Queued(pool)
        until(lambda: connection_class.attempts == 1)

        # The attempt under way fails, the one after it succeeds.
        connection_class.error = psycopg.OperationalError("no luck")
        pool.connection_class = controlled()
        connection_class.gate.set()
        with pytest.raises(psycopg.OperationalError, match="no luck"):
            first.result()
        pool.putconn(second.result())
        assert pool.get_stats()["connections_num"] == 2


def test_a_slow_connect_is_overtaken_by_a_return_and_outlives_its_requester(balanced: str) -> None:
    connection_class = controlled()
    with ConnectionPool(
        balanced, max_size=2, connection_class=connection_class, timeout=10
    ) as pool:
        held = pool.getconn()
        connection_class.gate.clear()
        waiter = Queued(pool)
        until(lambda: pool.connecting_count == 1)
        pool.putconn(held)
        assert pid(waiter.result()) == pid(held)
        connection_class.gate.set()
        until(lambda: pool.idle_count == 1)
        assert pool.total_count == 2
        pool.putconn(waiter.result())


def test_a_timeout_carries_the_last_failure_and_the_holders(balanced: str) -> None:
    connection_class = controlled()
    with ConnectionPool(
        balanced, max_size=2, connection_class=connection_class, fail_fast=False, name="busy"
    ) as pool:
        held = pool.getconn(10)
        connection_class.error = psycopg.OperationalError("no luck")
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(1)
        text = str(caught.value)
        assert "busy" in text
        assert "total 1 of 2" in text
        assert threading.current_thread().name in text
        assert str(caught.value.__cause__) == "no luck"
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        pool.putconn(held)


def test_without_fail_fast_it_is_tried_until_it_works(balanced: str) -> None:
    connection_class = controlled()
    connection_class.error = psycopg.OperationalError("no luck")
    with ConnectionPool(
        balanced, connection_class=connection_class, fail_fast=False, timeout=10
    ) as pool:
        waiter = Queued(pool)
        until(lambda: connection_class.attempts >= 3)
        connection_class.error = None
        pool.putconn(waiter.result())
        assert pool.get_stats()["requests_errors"] == 0


@pytest.mark.parametrize("fail_fast", [True, False])
def test_an_outage_is_not_stormed(balanced: str, fail_fast: bool) -> None:
    connection_class = controlled()
    connection_class.error = psycopg.OperationalError("all down")
    stop = time.monotonic() + 1.0
    with ConnectionPool(
        balanced, max_size=10, connection_class=connection_class, fail_fast=fail_fast
    ) as pool:

        def ask() -> None:
            while time.monotonic() < stop:
                try:
                    pool.putconn(pool.getconn(0.3))
                except psycopg.OperationalError:
                    pass

        assert in_threads(16, ask) == []
        # Doubling from 10 ms, a second has room for 7 attempts, jitter for a few more.
        assert connection_class.attempts <= 25
        attempts = connection_class.attempts
        connection_class.error = None
        # And it recovers, though nobody tells it.
        conns: list[Any] = []
        assert in_threads(10, lambda: conns.append(pool.getconn(15))) == []
        assert connection_class.attempts <= attempts + 10
        for conn in conns:
            pool.putconn(conn)
        assert pool.get_stats()["pool_size"] <= 10


def test_all_nodes_down_and_back(own_cluster: LocalCluster) -> None:
    conninfo = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=0)
    with ConnectionPool(conninfo, max_size=6, timeout=30) as pool:
        conns = [pool.getconn() for _ in range(6)]
        for conn in conns:
            pool.putconn(conn)
        for node in own_cluster.nodes:
            own_cluster.kill(node)
        with pytest.raises(psycopg.OperationalError):
            pool.query("SELECT 1")
        for node in own_cluster.nodes:
            own_cluster.start(node)
        answers: list[Any] = []

        def ask() -> None:
            while not answers or answers[-1] != 1:
                try:
                    answers.append(pool.query("SELECT 1").scalar())
                except psycopg.OperationalError:
                    continue

        assert in_threads(1, ask) == []
        # Once it works it works for all.
        assert in_threads(12, lambda: answers.append(pool.query("SELECT 1").scalar())) == []


def test_the_requesters_variables_are_not_kept_by_the_last_failure(balanced: str) -> None:
    class Thing:
        pass

    connection_class = controlled()
    connection_class.error = psycopg.OperationalError("no luck")
    with ConnectionPool(balanced, connection_class=connection_class) as pool:

        def ask() -> weakref.ref[Thing]:
            thing = Thing()
            try:
                pool.getconn(10)
            except psycopg.OperationalError:
                pass
            return weakref.ref(thing)

        kept = ask()
        connection_class.error = None  # it has been raised, and has the variables
        until(lambda: (gc.collect(), kept())[1], None)  # the connector may be at it for a moment
        with pytest.raises(PoolTimeout) as caught:  # which still has its reason
            pool.getconn(0)
        assert str(caught.value.__cause__) == "no luck"


# Connections that break


def test_eight_idle_backends_killed_then_twenty_requests(cluster: LocalCluster) -> None:
    conninfo = cluster.conninfo(load_balance=True)
    # Looked at however short they have been idle: a fast machine kills all within half a second.
    with ConnectionPool(conninfo, max_size=8, timeout=10, check_after=0) as pool:
        conns = [pool.getconn() for _ in range(8)]
        for conn in conns:
            pool.putconn(conn)
        for conn in conns:
            kill_backend(conn)
        for _ in range(20):
            assert pool.query("SELECT 1").scalar() == 1
        until(lambda: all(conn.closed for conn in conns))


@pytest.mark.parametrize("sqlstate", ["25006", "57P01", "57P02", "57P03"])
def test_a_node_that_is_read_only_or_going_loses_its_connections(
    cluster: LocalCluster, balanced: str, sqlstate: str
) -> None:
    with ConnectionPool(balanced, max_size=9, timeout=10) as pool:
        others: list[Any] = []
        with pytest.raises(psycopg.Error) as caught, pool.connection() as teller:
            others += [pool.getconn() for _ in range(8)]
            siblings = [conn for conn in others if conn.node.host == teller.node.host]  # type: ignore[union-attr]
            lent = siblings[0]
            for conn in others:
                if conn is not lent:
                    pool.putconn(conn)
            teller.execute(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$")
        assert caught.value.sqlstate == sqlstate
        assert teller.closed
        assert [conn for conn in others if conn.closed] == siblings[1:]
        pool.putconn(lent)
        assert lent.closed
        assert pool.get_stats()["removed_evict"] == 3
        assert pool.total_count == 6


def test_a_transaction_that_is_to_be_read_only_says_nothing_about_its_node(
    pool: ConnectionPool,
) -> None:
    def write(conn: psycopg.Connection[Any]) -> None:
        conn.execute("CREATE TABLE forbidden ()")

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        pool.run_transaction(write, read_only=True)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), pool.connection() as conn:
        conn.read_only = True
        write(conn)
    conn.read_only = None
    assert pool.get_stats()["removed_evict"] == 0


def test_an_ordinary_error_retires_nobody(pool: ConnectionPool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        pool.query("SELECT 1/0")
    assert pool.idle_count == 1
    assert pool.get_stats()["removed_evict"] == 0


def test_query_with_retry_is_executed_again_when_its_connection_breaks(
    pool: ConnectionPool,
) -> None:
    def ends(conn: Any) -> str:
        """A statement that ends the session of this connection, and of no other."""
        return (
            f"SELECT CASE WHEN pg_backend_pid() = {pid(conn)} "
            "THEN pg_terminate_backend(pg_backend_pid()) ELSE false END"
        )

    with pool.connection() as conn:
        pass
    with pytest.raises(psycopg.OperationalError):
        pool.query(ends(conn))
    with pool.connection() as conn:
        pass
    assert pool.query(ends(conn), retry=True).scalar() is False


def test_a_thousand_outages(balanced: str) -> None:
    """After each the pool grows again: nothing is ever counted twice or not at all."""
    connection_class = controlled()
    with ConnectionPool(
        balanced, max_size=2, connection_class=connection_class, timeout=10, max_idle=0
    ) as pool:
        held = pool.getconn()
        for _ in range(1000):
            connection_class.error = psycopg.OperationalError("down")
            pool._forgive()  # or the waits between attempts would take most of the time
            with pytest.raises(psycopg.OperationalError):
                pool.getconn()
        connection_class.error = None
        pool._forgive()
        pool.putconn(pool.getconn())
        pool.putconn(held)
        pool._check_invariants()
        assert pool.idle_count == 2


def test_conn_and_node_of_a_lent_connection_count_as_in_use(
    cluster: LocalCluster, pool: ConnectionPool
) -> None:
    with pool.connection() as conn:
        assert conn.node is not None
        assert conn.node.in_use == 1
    assert all(node.in_use == 0 for info in ybsmart.clusters() for node in info.nodes)


def test_a_failed_connect_reaches_the_one_who_asked_and_frees_the_place(
    cluster: LocalCluster,
) -> None:
    url = cluster.conninfo(load_balance=True)
    with ConnectionPool(url, kwargs={"password": "wrong"}, max_size=1) as pool:
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="password authentication"):
                pool.getconn()
            assert pool.total_count == 0


def test_a_connection_that_broke_while_lent_is_not_lent_again(pool: ConnectionPool) -> None:
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert pool.total_count == 0
    assert pool.query("SELECT 1").scalar() == 1


def test_connections_killed_while_idle_cost_no_request(
    cluster: LocalCluster, balanced: str
) -> None:
    with ConnectionPool(balanced, max_size=8, check_after=0) as pool:
        held = [pool.getconn() for _ in range(8)]
        for conn in held:
            pool.putconn(conn)
        for node in cluster.nodes:
            cluster.execute(
                node,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE usename = 'yugabyte' AND pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'",
            )

        for _ in range(20):
            assert pool.query("SELECT 1").scalar() == 1


def test_one_broken_connection_puts_its_nodes_others_under_suspicion(
    own_cluster: LocalCluster,
) -> None:
    url = own_cluster.conninfo(load_balance=True)
    # check_after is so long that only suspicion can find the dead ones.
    with ConnectionPool(url, max_size=6, check_after=3600) as pool:
        held = [pool.getconn() for _ in range(6)]
        dead = held[0].node
        assert dead is not None
        for conn in held[1:]:
            pool.putconn(conn)
        own_cluster.kill(next(n for n in own_cluster.nodes if n.host == dead.host))
        with pytest.raises(psycopg.OperationalError):
            held[0].execute("SELECT 1")
        pool.putconn(held[0])

        for _ in range(12):
            assert pool.query("SELECT 1").scalar() == 1


def test_a_killed_node_fails_only_what_was_running_on_it(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True)
    failed: list[BaseException] = []
    served: Counter[str] = Counter()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                served[pool.query("SELECT host(inet_server_addr())").scalar()] += 1
            except psycopg.OperationalError as exc:
                failed.append(exc)

    with ConnectionPool(url, max_size=6, timeout=10) as pool:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(served) == 3 and sum(served.values()) > 300)
            own_cluster.kill(own_cluster.nodes[1])
            before = Counter(served)
            until(lambda: sum((served - before).values()) > 600)
        finally:
            stop.set()
            for thread in threads:
                thread.join()

        assert len(failed) <= 2  # as many as the pool had connections there
        assert not any(isinstance(error, PoolTimeout) for error in failed)
        until(lambda: pool.connecting_count, 0)
        pool.check()
        assert pool.total_count == pool.idle_count == sum(by_node(own_cluster))
        assert by_node(own_cluster)[1] == 0


def test_a_dropped_connection_gives_its_place_back(pool: ConnectionPool) -> None:
    for _ in range(10):  # more than max_size
        conn = pool.getconn()
        del conn
        gc.collect()

    assert pool.query("SELECT 1").scalar() == 1
    assert pool.total_count == 1


def test_where_there_is_no_poll_a_connection_that_is_closed_meanwhile_is_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("select.poll", raising=False)  # as on Windows
    one, other = socket.socketpair()
    with one, other:
        conn: Any = SimpleNamespace(pgconn=SimpleNamespace(socket=one.fileno()))
        assert not any_has_news([conn])
        one.close()
        assert any_has_news([conn])
