"""Clusters that a test may do anything to, and a pool on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.servers import assert_nothing_counts
from ybsmart import ConnectionPool, registry, tending, upkeep
from ybsmart.testing import LocalCluster

NAME = "faults"  # by which the servers know the sessions of the pools under test


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    """Three nodes: aws.us-west.us-west-2a, -2a, -2b. All counts are zero again at the end."""
    registry.forget()
    with LocalCluster() as cluster:
        yield cluster
        assert_nothing_counts()


@pytest.fixture
def make_pool(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ConnectionPool]]:
    """Makes pools of twelve that soon learn of everything."""
    monkeypatch.setattr(tending, "LEAST_REFRESH", 0.2)
    pools: list[ConnectionPool] = []

    def make(max_size: int = 12, properties: Any = None, **options: Any) -> ConnectionPool:
        settings = {
            "load_balance": True,
            "application_name": NAME,
            "yb_servers_refresh_interval": 0,
            "failed_host_reconnect_delay_secs": 0.2,
            **(properties or {}),
        }
        conninfo = own_cluster.conninfo(**settings)
        options.setdefault("timeout", 10)
        options.setdefault("max_idle", None)
        pools.append(ConnectionPool(conninfo, max_size=max_size, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent node is given up after two seconds instead of six; no sooner, or one that is well
    would be on a busy machine. Likewise, nobody goes elsewhere as soon as users do."""
    monkeypatch.setattr(tending, "SUSPICIOUS", 0.2)
    monkeypatch.setattr(tending, "FIRST_LOOK", 0.4)
    monkeypatch.setattr(tending, "HOPELESS", 1.0)
    monkeypatch.setattr(upkeep, "PROBE_TIMEOUT", 1.5)
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 0.9)
