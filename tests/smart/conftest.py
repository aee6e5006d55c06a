"""The clusters of the scenarios. Each starts once; a test may take nodes down or add some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from tests.servers import assert_nothing_counts
from ybsmart import registry
from ybsmart.testing import LocalCluster, LocalNode

pytest.register_assert_rewrite("tests.smart.scenario")  # before it is imported

from tests.smart.scenario import Client  # noqa: E402


class NewClient(Protocol):
    def __call__(
        self, cluster: LocalCluster, contact: LocalNode | int = 0, **params: Any
    ) -> Client: ...


@pytest.fixture
def impatient() -> None:
    """Do not wait for a silent node; for the tests about silence."""


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others wait for healthy servers, however slow the machine is.

    A quarter of a second without an answer, on a machine that is busy with something else, sends
    a connection elsewhere, which is right, and the numbers are no longer the documents'.
    """
    patience = 0.9 if "impatient" in request.fixturenames else 10.0
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", patience)
    monkeypatch.setattr("ybsmart.listing.ANSWER_TIMEOUT", 30.0)  # for the node list, likewise


def _restored(cluster: LocalCluster, original: tuple[LocalNode, ...]) -> None:
    cluster.discovery()
    for node in cluster.nodes:
        if node.state == "paused":
            cluster.resume(node)
        if node not in original:
            cluster.remove(node)
        elif node.state == "stopped":
            cluster.start(node)


@pytest.fixture
def borrow() -> Iterator[Callable[[LocalCluster], LocalCluster]]:
    """Lend a cluster to the test, unknown to the driver; afterwards it is as it was."""
    lent: list[tuple[LocalCluster, tuple[LocalNode, ...]]] = []
    registry.forget()

    def lend(cluster: LocalCluster) -> LocalCluster:
        lent.append((cluster, cluster.nodes))
        return cluster

    yield lend
    for cluster, original in lent:
        _restored(cluster, original)


@pytest.fixture
def client(borrow: object) -> Iterator[NewClient]:
    """Make clients. Whatever a test has done, nothing may count once its connections are closed."""
    clients: list[Client] = []

    def new(cluster: LocalCluster, contact: LocalNode | int = 0, **params: Any) -> Client:
        clients.append(Client(cluster, contact, **params))
        return clients[-1]

    yield new
    for each in clients:
        each.close()
    assert_nothing_counts()


@pytest.fixture(scope="session")
def _three() -> Iterator[LocalCluster]:
    with LocalCluster([f"cloud.region.{zone}" for zone in "abc"]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _six() -> Iterator[LocalCluster]:
    zones = ("dc1", "dc2", "dc3", "dc2", "dc3", "dc4")
    with LocalCluster([f"cloud.region.{zone}" for zone in zones]) as cluster:
        for replica in cluster.nodes[3:]:
            cluster.update(replica, node_type="read_replica")
        yield cluster


@pytest.fixture
def three(_three: LocalCluster, borrow: Callable[[LocalCluster], LocalCluster]) -> LocalCluster:
    """Nodes 1 to 3 in the zones a, b and c of cloud.region."""
    return borrow(_three)


@pytest.fixture
def six(_six: LocalCluster, borrow: Callable[[LocalCluster], LocalCluster]) -> LocalCluster:
    """Nodes 1 to 3: primaries in dc1, dc2, dc3; 4 to 6: read replicas in dc2, dc3, dc4.

    The set-up of YugabyteDB's own tests, and its documents' example of the modes.
    """
    return borrow(_six)
