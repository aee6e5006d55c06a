"""Servers that say nothing, not even that they are gone: what a pool's connections do about it."""

from __future__ import annotations

import socket

import psycopg
import pytest

from tests.servers import kill_backend
from ybsmart import ConnectionPool
from ybsmart.testing import LocalCluster

on_linux = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="TCP_USER_TIMEOUT is Linux's"
)


def tcp_options(conn: psycopg.Connection) -> tuple[int, ...]:
    """Idle seconds, interval, count, milliseconds unacknowledged: as its socket has them."""
    with socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        return tuple(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, n)) for n in names)


@on_linux
def test_pooled_connections_notice_in_seconds_that_the_other_end_is_gone(
    cluster: LocalCluster, balanced: str
) -> None:
    for conninfo in (balanced, cluster.conninfo()):
        with ConnectionPool(conninfo) as pool, pool.connection() as conn:
            assert tcp_options(conn) == (5, 5, 5, 30_000)
    with psycopg.connect(cluster.conninfo()) as plain:
        assert tcp_options(plain)[3] == 0


@on_linux
def test_what_the_user_says_about_tcp_goes(balanced: str) -> None:
    with (
        ConnectionPool(f"{balanced}&tcp_user_timeout=7000", kwargs={"keepalives_idle": 11}) as pool,
        pool.connection() as conn,
    ):
        assert tcp_options(conn) == (11, 5, 5, 7000)


@on_linux
def test_a_service_file_is_not_overruled(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    file = f"{tmp_path}/services"
    with open(file, "w") as services:
        services.write("[mine]\ntcp_user_timeout=7000\n")
    monkeypatch.setenv("PGSERVICEFILE", file)
    with ConnectionPool(f"{cluster.conninfo()}?service=mine") as pool, pool.connection() as conn:
        assert tcp_options(conn)[3] == 7000


def test_a_check_does_not_wait_for_a_server_that_is_silent(own_cluster: LocalCluster) -> None:
    conninfo = own_cluster.conninfo(load_balance=True)
    with ConnectionPool(conninfo, max_size=3, timeout=10, max_idle=0) as pool:
        conns = [pool.getconn() for _ in range(3)]
        for conn in conns:
            pool.putconn(conn)
        silent = own_cluster.nodes[1]
        own_cluster.pause(silent)
        try:
            pool.check()
        finally:
            own_cluster.resume(silent)
        assert [conn.closed for conn in conns] == [
            conn.node is not None and conn.node.host == silent.host for conn in conns
        ]
        assert (pool.idle_count, pool.get_stats()["removed_check"]) == (2, 1)


def test_the_check_of_a_request_goes_on_to_a_server_that_answers(own_cluster: LocalCluster) -> None:
    conninfo = own_cluster.conninfo(load_balance=True)
    check = ConnectionPool.check_connection
    with ConnectionPool(conninfo, max_size=3, timeout=10, max_idle=0, check=check) as pool:
        first, second, third = [pool.getconn() for _ in range(3)]
        for conn in (first, second, third):
            pool.putconn(conn)
        # Requests that do not overlap get one node after the other.
        last = pool.getconn()
        pool.putconn(last)
        order = [first, second, third]
        following = order[(order.index(last) + 1) % 3]
        silent = [node.host for node in own_cluster.nodes].index(following.info.host)
        own_cluster.pause(silent)
        try:
            lent = pool.getconn()
        finally:
            own_cluster.resume(silent)
        assert following.closed
        assert lent is order[(order.index(last) + 2) % 3]
        pool.putconn(lent)


def test_a_check_says_what_the_server_said_and_leaves_a_transaction_open(
    pool: ConnectionPool,
) -> None:
    with pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE here (x int)")
        pool.check_connection(conn)
        assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        conn.rollback()
        kill_backend(conn)
        with pytest.raises(psycopg.OperationalError, match="terminat"):
            pool.check_connection(conn)
        assert conn.broken
