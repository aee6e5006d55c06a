"""The servers that the processes of these tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ybsmart.testing import LocalCluster


@pytest.fixture(scope="session")
def servers() -> Iterator[LocalCluster]:
    """Three nodes that no test takes down, used by other processes than this one."""
    with LocalCluster(max_connections=200) as cluster:
        yield cluster


@pytest.fixture
def url(servers: LocalCluster, request: pytest.FixtureRequest) -> str:
    """A URL that asks for load balancing, with the test's name as the application's."""
    name = request.node.name[:60]
    return servers.conninfo(load_balance=True, application_name=name)


@pytest.fixture
def sessions(servers: LocalCluster, request: pytest.FixtureRequest) -> Callable[[], int]:
    """How many sessions of this test the servers have."""
    name = request.node.name[:60]
    return lambda: sum(servers.sessions(n, application_name=name) for n in servers.nodes)
