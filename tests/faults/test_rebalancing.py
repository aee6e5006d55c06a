"""Balance that returns: when a node comes back, joins, leaves, or is preferred again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

import ybsmart
from tests.faults.support import audit, borrowed, fill, soon, spread, state, swept
from tests.servers import pid
from tests.support import Threads, until
from ybsmart import ConnectionPool
from ybsmart.testing import LocalCluster

MakePool = Callable[..., ConnectionPool]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node falls silent here, so one that is slow on a busy machine must not be passed over: the
    connection would go back to where it was moved from, and be moved once more."""
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)


def lose(pool: ConnectionPool, cluster: LocalCluster, index: int = 1) -> None:
    """Kill a node, and have the pool find its places elsewhere."""
    cluster.kill(index)
    soon(lambda: spread(pool, cluster)[index] == 0, pool)
    fill(pool)
    assert spread(pool, cluster)[index] == 0
    assert state(cluster, index) == "down"


def come_back(cluster: LocalCluster, index: int = 1) -> None:
    cluster.start(index)
    until(lambda: state(cluster, index) == "up")


def test_idle_connections_to_a_dead_node_are_dropped_as_one(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool()
    fill(pool)
    assert spread(pool, own_cluster) == [4, 4, 4]
    own_cluster.kill(1)
    # Whoever finds the first of them dead has the others looked at.
    for _ in range(12):
        pool.query("SELECT 1", retry=True)
        if spread(pool, own_cluster)[1] < 4:
            break
    soon(lambda: spread(pool, own_cluster) == [4, 0, 4], pool)
    assert pool.get_stats()["requests_errors"] == 0


def test_a_node_that_returns_gets_its_share(own_cluster: LocalCluster, make_pool: MakePool) -> None:
    pool = make_pool()
    fill(pool)
    lose(pool, own_cluster)
    assert spread(pool, own_cluster) == [6, 0, 6]

    come_back(own_cluster)

    soon(lambda: spread(pool, own_cluster) == [4, 4, 4], pool)
    assert pool.get_stats()["removed_rebalance"] == 4
    assert pool.get_stats()["requests_errors"] == 0
    swept(pool, 3)
    assert pool.get_stats()["removed_rebalance"] == 4
    audit(pool, own_cluster)


def test_with_a_delay_of_zero_too(own_cluster: LocalCluster, make_pool: MakePool) -> None:
    """Then nobody passes the node over, and a full pool has no reason to try it."""
    pool = make_pool(properties={"failed_host_reconnect_delay_secs": 0})
    fill(pool)
    own_cluster.kill(1)
    soon(lambda: spread(pool, own_cluster)[1] == 0, pool)
    fill(pool)
    assert spread(pool, own_cluster) == [6, 0, 6]
    swept(pool, 20)
    assert spread(pool, own_cluster) == [6, 0, 6]
    assert state(own_cluster, 1) == "up"  # as far as callers are concerned

    own_cluster.start(1)

    soon(lambda: spread(pool, own_cluster) == [4, 4, 4], pool)
    assert pool.get_stats()["removed_rebalance"] == 4
    assert pool.get_stats()["requests_errors"] == 0


def test_what_is_lent_is_not_touched_and_moves_when_it_is_returned(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool()
    fill(pool)
    lose(pool, own_cluster)
    with borrowed(pool) as conns:
        before = [pid(conn) for conn in conns]
        come_back(own_cluster)
        swept(pool, 20)
        assert [conn.execute("SELECT pg_backend_pid()").fetchone()[0] for conn in conns] == before
        assert pool.get_stats()["removed_rebalance"] == 0
    soon(lambda: spread(pool, own_cluster) == [4, 4, 4], pool)
    assert pool.total_count == 12


def test_without_rebalance_nothing_moves(own_cluster: LocalCluster, make_pool: MakePool) -> None:
    pool = make_pool(rebalance=False)
    fill(pool)
    lose(pool, own_cluster)
    come_back(own_cluster)
    swept(pool, 20)
    assert spread(pool, own_cluster) == [6, 0, 6]
    assert pool.get_stats()["removed_rebalance"] == 0


def test_a_node_that_joins_gets_its_share(own_cluster: LocalCluster, make_pool: MakePool) -> None:
    pool = make_pool()
    fill(pool)
    own_cluster.add()
    # Nobody connects: the pool itself looks at the list from time to time.
    soon(lambda: spread(pool, own_cluster) == [3, 3, 3, 3], pool)
    audit(pool, own_cluster)


def test_a_preferred_level_that_returns_gets_all(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    keys = "aws.us-west.us-west-2b:1,aws.us-west.us-west-2a:2"
    pool = make_pool(6, {"topology_keys": keys})
    fill(pool, 6)
    assert spread(pool, own_cluster) == [0, 0, 6]
    own_cluster.kill(2)
    soon(lambda: pool.total_count == 0, pool)
    fill(pool, 6)
    assert spread(pool, own_cluster) == [3, 3, 0]

    come_back(own_cluster, 2)

    soon(lambda: spread(pool, own_cluster) == [0, 0, 6], pool)
    assert pool.get_stats()["removed_rebalance"] == 6


def test_a_node_that_leaves_the_list_is_left(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool()
    fill(pool)
    with borrowed(pool) as conns:
        there = [conn for conn in conns if conn.node.host == own_cluster.nodes[1].host]
        kept, others = there[0], [conn for conn in conns if conn is not there[0]]
        for conn in others:
            pool.putconn(conn)
        conns[:] = [kept]
        own_cluster.update(1, listed=False)
        soon(lambda: spread(pool, own_cluster)[1] == 1, pool)
        assert kept.execute("SELECT 1").fetchone() == (1,)
        kept.commit()
    assert kept.closed
    assert pool.get_stats()["removed_drain"] == 4
    fill(pool)
    assert spread(pool, own_cluster) == [6, 0, 6]

    own_cluster.update(1, listed=True)

    soon(lambda: spread(pool, own_cluster) == [4, 4, 4], pool)


def test_a_connection_on_its_way_to_a_node_that_leaves_goes_too(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    arrived, go_on = threading.Event(), threading.Event()
    go_on.set()

    def configure(conn: ybsmart.Connection) -> None:
        if conn.node is not None and conn.node.host == own_cluster.nodes[1].host:
            arrived.set()
            assert go_on.wait(30)

    pool = make_pool(configure=configure)
    fill(pool, 3)
    assert spread(pool, own_cluster) == [1, 1, 1]
    go_on.clear()
    arrived.clear()
    filling = Threads([lambda: fill(pool, 6)])
    try:
        assert arrived.wait(30)
        own_cluster.update(1, listed=False)
        until(lambda: pool.connecting_count == 1)
        soon(lambda: state(own_cluster, 1) == "gone", pool)
        swept(pool, 3)
    finally:
        go_on.set()
    filling.join()

    soon(lambda: pool.get_stats()["removed_drain"] == 2, pool)


def test_two_pools_come_to_rest(own_cluster: LocalCluster, make_pool: MakePool) -> None:
    pools = [make_pool(), make_pool()]
    for pool in pools:
        fill(pool)
    own_cluster.kill(1)
    soon(lambda: all(spread(pool, own_cluster)[1] == 0 for pool in pools), *pools)
    for pool in pools:
        fill(pool)

    come_back(own_cluster)

    def together() -> list[int]:
        both = zip(*(spread(pool, own_cluster) for pool in pools), strict=True)
        return [sum(counts) for counts in both]

    soon(lambda: together() == [8, 8, 8], *pools)
    moved = sum(pool.get_stats()["removed_rebalance"] for pool in pools)
    assert moved <= 10  # 8 would do


def test_what_cannot_be_reopened_is_not_closed_one_after_the_other(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    """The password has been changed meanwhile: the connections there are stay."""
    password = "yugabyte"
    pool = make_pool(kwargs=lambda: {"password": password})
    fill(pool)
    lose(pool, own_cluster)
    own_cluster.execute(0, "ALTER ROLE yugabyte PASSWORD 'other'")
    own_cluster.execute(2, "ALTER ROLE yugabyte PASSWORD 'other'")
    own_cluster.start(1)
    own_cluster.execute(1, "ALTER ROLE yugabyte PASSWORD 'other'")
    password = "wrong"
    until(lambda: state(own_cluster, 1) == "up")
    soon(lambda: pool.get_stats()["removed_rebalance"] == 1, pool)
    swept(pool, 20)
    assert pool.get_stats()["removed_rebalance"] == 1
    soon(lambda: pool.total_count == 11, pool)
    with pytest.raises(psycopg.OperationalError):
        with borrowed(pool, 12):
            pass


def test_a_pool_that_nobody_uses_does_not_grow(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    """Moving keeps what there is, and opens nothing that nobody needs."""
    pool = make_pool()
    fill(pool)
    own_cluster.kill(1)
    soon(lambda: spread(pool, own_cluster) == [4, 0, 4], pool)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_cluster.conninfo(1))
    own_cluster.start(1)
    swept(pool, 10)
    assert pool.total_count <= 8
