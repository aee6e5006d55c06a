"""Fixtures for tests of the package on real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import assert_nothing_counts
from tests.support import until
from ybsmart import ConnectionPool, registry
from ybsmart.testing import LocalCluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LocalCluster]:
    """Three nodes that no test takes down: aws.us-west.us-west-2a, -2a, -2b."""
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(
    shared_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalCluster]:
    """The shared cluster, unknown to this process before, with no connection left behind after.

    Its servers are healthy, so a machine that is busy must not send anybody to another node.
    """
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)
    monkeypatch.setattr("ybsmart.listing.ANSWER_TIMEOUT", 30.0)
    registry.forget()
    yield shared_cluster
    assert_nothing_counts()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for a silent node, for the tests about silence; but longer than users do, as
    nodes that are well may take their time on a busy machine."""
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 0.9)


@pytest.fixture
def own_cluster(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalCluster]:
    """Three nodes that the test may do anything to, and has patience with, unless `impatient`."""
    if "impatient" not in request.fixturenames:
        monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)
    registry.forget()
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def balanced(cluster: LocalCluster) -> str:
    """A URL that asks for load balancing."""
    return cluster.conninfo(load_balance=True)


@pytest.fixture
def pool(balanced: str) -> Iterator[ConnectionPool]:
    """Up to three connections, balanced; at the end nothing is missing."""
    with ConnectionPool(balanced, max_size=3, timeout=10) as pool:
        yield pool
        if not pool.closed:
            until(lambda: pool.connecting_count, 0)
            pool.check()
            assert pool.idle_count == pool.total_count
    assert pool.total_count == 0
