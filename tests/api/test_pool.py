"""`ConnectionPool` on real servers."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.servers import by_node
from tests.support import in_threads, until
from ybsmart import ConnectionPool
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


def test_a_pool_keeps_nothing_in_a_dictionary(pool: ConnectionPool) -> None:
    """Its methods would be found the slow way."""
    with pool.connection():
        pool.query("SELECT 1")
    pool.end()

    assert vars(pool) == {}


def test_a_pool_refuses_to_be_pickled(pool: ConnectionPool) -> None:
    with pytest.raises(TypeError, match="each process"):
        pickle.dumps(pool)


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
        until(lambda: pool.connecting_count, 0)
        pool.check()
        assert pool.idle_count == pool.total_count == sum(by_node(cluster)) == 4
