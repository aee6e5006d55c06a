"""What several test files here need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import ybsmart
from tests.faults.conftest import NAME
from tests.servers import by_node, by_server
from tests.support import until
from ybsmart import ConnectionPool, sweeper
from ybsmart.testing import LocalCluster


@contextlib.contextmanager
def borrowed(pool: ConnectionPool, count: int = 12) -> Iterator[list[Any]]:
    """That many connections, each of which works."""
    conns = [pool.getconn() for _ in range(count)]
    try:
        yield conns
    finally:
        for conn in conns:
            pool.putconn(conn)


def soon(condition: Callable[[], object], *pools: ConnectionPool) -> None:
    """Wait until it is so, with the sweeper coming by these pools all the time."""

    def look() -> bool:
        for pool in pools:
            sweeper.watch(pool)
        return bool(condition())

    until(look)


def swept(pool: ConnectionPool, times: int = 20) -> None:
    """Have the sweeper come by that often."""
    calls = 0
    tidy = pool._tidy

    def counted() -> float | None:
        nonlocal calls
        calls += 1
        return tidy()

    pool._tidy = counted  # type: ignore[method-assign]
    try:
        soon(lambda: calls >= times, pool)
    finally:
        del pool._tidy


def fill(pool: ConnectionPool, count: int = 12) -> None:
    with borrowed(pool, count):
        pass


def spread(pool: ConnectionPool, cluster: LocalCluster) -> list[int]:
    """The pool's own connections, in the order of the nodes."""
    nodes = pool.get_stats()["nodes"]
    return [nodes.get(f"{n.host}:{n.port}", {"total": 0})["total"] for n in cluster.nodes]


def state(cluster: LocalCluster, index: int) -> str:
    """What the process thinks of a node: up, down or gone; empty if it does not know it."""
    node = cluster.nodes[index]
    for info in ybsmart.clusters():
        for known in info.nodes:
            if known.address == f"{node.host}:{node.port}":
                return known.state
    return ""


def audit(pool: ConnectionPool, cluster: LocalCluster) -> None:
    """With nothing lent: the pool's books, the process's counts and the servers agree."""
    until(lambda: pool.connecting_count, 0)
    pool.check()
    assert pool.waiting_count == 0
    assert pool.idle_count == pool.total_count
    pool._check_invariants()
    assert spread(pool, cluster) == by_node(cluster)
    until(lambda: by_server(cluster, NAME) == by_node(cluster))
