"""`ConnectionPool` on real servers."""

from __future__ import annotations

import gc
import pickle
import threading
from collections import Counter
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import ybsmart
from tests.api.support import Queued, by_node, in_threads, until
from ybsmart import ConnectionPool, PoolClosed, PoolTimeout
from ybsmart.testing import LocalCluster

# Lending


def test_nothing_is_opened_before_it_is_asked_for(cluster: LocalCluster, balanced: str) -> None:
    threads = threading.active_count()

    with ConnectionPool(balanced) as pool:
        assert pool.total_count == 0
        assert threading.active_count() == threads
        assert ybsmart.clusters() == ()


def test_a_connection_is_used_again(pool: ConnectionPool) -> None:
    with pool.connection() as conn:
        pid = conn.info.backend_pid
    with pool.connection() as conn:
        assert conn.info.backend_pid == pid
    assert pool.total_count == 1


def test_the_block_commits(pool: ConnectionPool) -> None:
    pool.query("DROP TABLE IF EXISTS committed")
    with pool.connection() as conn:
        conn.execute("CREATE TABLE committed AS SELECT 1")
        node = conn.node

    with pool.connection() as conn:
        assert conn.node.host == node.host  # type: ignore[union-attr]
        assert conn.execute("SELECT count(*) FROM committed").fetchone() == (1,)
        conn.execute("DROP TABLE committed")


def test_the_block_rolls_back_on_an_exception_and_keeps_the_connection(
    pool: ConnectionPool,
) -> None:
    with pytest.raises(RuntimeError), pool.connection() as conn:
        pid = conn.info.backend_pid
        conn.execute("CREATE TABLE rolled_back AS SELECT 1")
        raise RuntimeError

    with pool.connection() as conn:
        assert conn.info.backend_pid == pid
        assert conn.execute("SELECT to_regclass('rolled_back')").fetchone() == (None,)


def test_a_block_cannot_be_entered_twice(pool: ConnectionPool) -> None:
    block = pool.connection()
    with block, pytest.raises(RuntimeError, match="connection\\(\\)"), block:
        pass


def test_a_transaction_that_is_returned_open_is_rolled_back(
    pool: ConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    conn = pool.getconn()
    pid = conn.info.backend_pid
    conn.execute("CREATE TABLE left_open AS SELECT 1")
    pool.putconn(conn)

    with pool.connection() as conn:
        assert conn.info.backend_pid == pid
        assert conn.execute("SELECT to_regclass('left_open')").fetchone() == (None,)
    assert "INTRANS" in caplog.text


def test_open_connections_are_even_over_the_nodes(cluster: LocalCluster, balanced: str) -> None:
    with ConnectionPool(balanced, max_size=12) as pool:
        held = [pool.getconn() for _ in range(12)]

        assert by_node(cluster) == [4, 4, 4]
        assert [node.in_use for node in ybsmart.clusters()[0].nodes] == [4, 4, 4]
        for conn in held:
            pool.putconn(conn)
        assert [node.in_use for node in ybsmart.clusters()[0].nodes] == [0, 0, 0]


def test_requests_held_at_once_are_even_whatever_was_returned_last(
    cluster: LocalCluster, balanced: str
) -> None:
    with ConnectionPool(balanced, max_size=30) as pool:
        held = [pool.getconn() for _ in range(30)]
        for conn in sorted(held, key=lambda conn: conn.node.host):  # type: ignore[union-attr]
            pool.putconn(conn)

        held = [pool.getconn() for _ in range(12)]

        hosts = Counter(conn.node.host for conn in held)  # type: ignore[union-attr]
        assert sorted(hosts.values()) == [4, 4, 4]
        for conn in held:
            pool.putconn(conn)


def test_psycopgs_own_block_inside_does_not_close_the_connection(pool: ConnectionPool) -> None:
    conn = pool.getconn()
    with conn:
        conn.execute("SELECT 1")
    assert not conn.closed
    pool.putconn(conn)
    assert pool.idle_count == 1


# Waiting


def test_never_more_than_max_size(cluster: LocalCluster, balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2) as pool:
        most = 0

        def use() -> None:
            nonlocal most
            for _ in range(20):
                pool.query("SELECT 1")
                most = max(most, sum(by_node(cluster)))

        assert not in_threads(8, use)
        assert 1 <= most <= 2


def test_waiters_are_served_in_the_order_of_their_arrival(pool: ConnectionPool) -> None:
    held = [pool.getconn() for _ in range(3)]
    queue = [Queued(pool) for _ in range(5)]
    assert pool.waiting_count == 5

    for waiter in queue[:3]:
        conn = held.pop(0)
        pool.putconn(conn)
        assert waiter.result() is conn
        held.append(conn)
    assert all(waiter.thread.is_alive() for waiter in queue[3:])
    for waiter in queue[3:]:
        pool.putconn(held.pop(0))
        held.append(waiter.result())
    for conn in held:
        pool.putconn(conn)


def test_a_waiter_takes_a_returned_connection_before_its_own_is_open(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectionPool(balanced, max_size=2) as pool:
        first = pool.getconn()
        gate = threading.Event()
        connect = ybsmart.Connection.connect

        def slow(*args: Any, **kwargs: Any) -> Any:
            gate.wait(10)
            return connect(*args, **kwargs)

        monkeypatch.setattr(ybsmart.Connection, "connect", slow)
        waiter = Queued(pool)
        assert pool.connecting_count == 1
        pool.putconn(first)
        assert waiter.result() is first

        gate.set()
        until(lambda: pool.connecting_count == 0)
        assert pool.idle_count == 1  # the connection outlived the request for it
        pool.putconn(first)


def test_a_request_that_times_out_says_so_and_leaves_nothing_behind(pool: ConnectionPool) -> None:
    held = [Queued(pool).result() for _ in range(3)]

    with pytest.raises(PoolTimeout, match=r"idle 0.*waiting") as caught:
        pool.getconn(timeout=0.05)

    assert isinstance(caught.value, psycopg.OperationalError)
    assert pool.name in str(caught.value)
    assert pool.waiting_count == 0
    for conn in held:
        pool.putconn(conn)


def test_timeout_zero_is_only_if_one_is_at_hand(pool: ConnectionPool) -> None:
    with pool.connection():
        pass

    conn = pool.getconn(timeout=0)
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0)
    pool.putconn(conn)


def test_an_interrupt_while_waiting_loses_nothing(pool: ConnectionPool) -> None:
    class Interrupt(BaseException):
        pass

    held = [Queued(pool).result() for _ in range(3)]
    original = pool._sleep

    def interrupted(waiter: Any, timeout: Any) -> None:
        pool.putconn(held.pop())  # granted to this waiter, which then is interrupted
        raise Interrupt

    pool._sleep = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        pool.getconn()
    pool._sleep = original  # type: ignore[method-assign]

    assert (pool.waiting_count, pool.idle_count) == (0, 1)
    for conn in held:
        pool.putconn(conn)


# Failing


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
        until(lambda: len(served) == 3 and sum(served.values()) > 300)
        dead = own_cluster.nodes[1]
        own_cluster.kill(dead)
        before = Counter(served)
        until(lambda: sum((served - before).values()) > 600)
        stop.set()
        for thread in threads:
            thread.join()

        assert len(failed) <= 2  # as many as the pool had connections there
        assert not any(isinstance(error, PoolTimeout) for error in failed)
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


# Misuse


def test_returning_what_is_not_on_loan_is_an_error_and_changes_nothing(
    pool: ConnectionPool, balanced: str
) -> None:
    conn = pool.getconn()
    pool.putconn(conn)
    with ybsmart.connect(balanced) as foreign, ConnectionPool(balanced) as other:
        elsewhere = other.getconn()
        before = pool._snapshot()

        for wrong in (conn, foreign, elsewhere):
            with pytest.raises(ybsmart.DoubleRelease) as caught:
                pool.putconn(wrong)
            assert isinstance(caught.value, ValueError)
            assert pool.name in str(caught.value)
        with pytest.raises(TypeError, match="NoneType"):
            pool.putconn(None)

        assert pool._snapshot() == before
        other.putconn(elsewhere)


def test_discarding_closes_the_connection(pool: ConnectionPool) -> None:
    conn = pool.getconn()
    pool.putconn(conn, discard=True)

    assert conn.closed
    assert pool.total_count == 0


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        ({"max_size": 0}, ValueError, "max_size"),
        ({"max_size": "3"}, TypeError, "max_size"),
        ({"max_size": True}, TypeError, "max_size"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"max_connecting": 0}, ValueError, "max_connecting"),
        ({"check_after": -1}, ValueError, "check_after"),
        ({"connect_timeout": float("nan")}, ValueError, "connect_timeout"),
        ({"connection_class": dict}, TypeError, "connection_class"),
        ({"maxsize": 3}, TypeError, "maxsize"),
        ({"kwargs": {"load_balance": "bogus"}}, ValueError, "load_balance"),
    ],
)
def test_a_bad_parameter_is_named_when_the_pool_is_made(
    given: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        ConnectionPool("postgresql://u:sesame@127.0.0.1:1/db", **given)


def test_neither_repr_nor_errors_show_the_password(balanced: str) -> None:
    with ConnectionPool(balanced, kwargs={"password": "sesame"}, max_size=1) as pool:
        with pytest.raises(psycopg.OperationalError) as caught:
            pool.getconn()
        for text in (repr(pool), str(caught.value)):
            assert "sesame" not in text
            assert "yugabyte:yugabyte" not in text


def test_a_pool_refuses_to_be_pickled(pool: ConnectionPool) -> None:
    with pytest.raises(TypeError, match="each process"):
        pickle.dumps(pool)


# query()


def test_query_returns_all_of_the_result(pool: ConnectionPool) -> None:
    result = pool.query("SELECT n, n * n AS square FROM generate_series(1, %s) n", [3])

    assert result.rows == [(1, 1), (2, 4), (3, 9)]
    assert list(result) == result.rows
    assert len(result) == result.rowcount == 3
    assert result.statusmessage == "SELECT 3"
    assert result.description is not None
    assert [column.name for column in result.description] == ["n", "square"]
    assert pool.query("SELECT 1 AS one", row_factory=dict_row).one() == {"one": 1}
    assert pool.query("SELECT 1 AS one", row_factory=dict_row).scalar() == 1
    with pytest.raises(psycopg.ProgrammingError, match="got 3"):
        result.one()


def test_query_runs_in_autocommit_and_leaves_the_connection_as_it_was(
    pool: ConnectionPool,
) -> None:
    assert pool.query("CREATE TEMP TABLE t (n int)").rows == []
    pool.query("VACUUM")  # not allowed in a transaction

    with pool.connection() as conn:
        assert not conn.autocommit


def test_an_sql_error_keeps_the_connection(pool: ConnectionPool) -> None:
    pid = pool.query("SELECT pg_backend_pid()").scalar()

    with pytest.raises(psycopg.errors.UndefinedTable):
        pool.query("SELECT * FROM nowhere")

    assert pool.query("SELECT pg_backend_pid()").scalar() == pid


@pytest.mark.parametrize("wrong", [None, 1, print, ["SELECT 1"]])
def test_something_that_is_no_query_is_refused_before_anything_is_lent(
    pool: ConnectionPool, wrong: Any
) -> None:
    with pytest.raises(TypeError, match=r"query: .*" + type(wrong).__name__):
        pool.query(wrong)

    assert pool.total_count == 0


# Closing


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
    ending = threading.Thread(target=pool.end)
    ending.start()
    until(lambda: pool.closed)

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


# Many threads


def test_fairness_and_nothing_lost_under_contention(cluster: LocalCluster, balanced: str) -> None:
    rounds: Counter[int] = Counter()
    until_round = 60

    with ConnectionPool(balanced, max_size=4, timeout=30) as pool:

        def use() -> None:
            for _ in range(until_round):
                with pool.connection() as conn:
                    conn.execute("SELECT 1")
                rounds[threading.get_ident()] += 1

        assert not in_threads(16, use)
        assert sum(rounds.values()) == 16 * until_round
        pool.check()
        assert pool.idle_count == pool.total_count == sum(by_node(cluster)) == 4


def test_a_query_that_begins_a_transaction_leaves_nothing_behind(pool: ConnectionPool) -> None:
    pool.query("BEGIN")

    with pool.connection() as conn:
        assert not conn.autocommit
        conn.execute("CREATE TEMP TABLE t (n int)")
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
