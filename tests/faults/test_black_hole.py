"""A node behind rules that drop: not a word arrives there, or not a word of it comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

import ybsmart
from tests.faults import load
from tests.faults.conftest import NAME
from tests.faults.support import state
from tests.servers import by_node, by_server
from tests.support import until
from ybsmart.testing import LocalCluster

pytestmark = pytest.mark.skipif(not load.can_drop(), reason="needs root and nftables")

# What a caller who is held up by the node would wait for, and what nobody has to.
CONNECT_TIMEOUT, PROMPT = 20, 10.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """More so than users are: the other nodes are well, and may be slow on a busy machine."""
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 0.9)


@pytest.fixture
def drop(own_cluster: LocalCluster) -> Iterator[Callable[..., None]]:
    """Begin to drop what is sent to a node (`d`), or by it (`s`), or both."""
    yield lambda index, ways="ds": load.drop(own_cluster.nodes[index], ways)
    load.let_pass()


def url(cluster: LocalCluster, **more: object) -> str:
    settings = {"failed_host_reconnect_delay_secs": 0.2, "connect_timeout": CONNECT_TIMEOUT}
    properties = {**settings, "load_balance": True, "application_name": NAME, **more}
    return cluster.conninfo(**properties)  # type: ignore[arg-type]


@pytest.mark.parametrize("ways", ["ds", "d", "s"], ids=["both ways", "to it", "from it"])
@pytest.mark.parametrize("index", [0, 1], ids=["the host of the URL", "another"])
def test_it_costs_no_caller_its_connect_timeout_and_gets_its_share_when_it_is_back(
    own_cluster: LocalCluster, drop: Callable[..., None], index: int, ways: str
) -> None:
    conninfo = url(own_cluster)
    conns = [ybsmart.connect(conninfo) for _ in range(3)]
    assert by_node(own_cluster) == [1, 1, 1]

    drop(index, ways)
    for _ in range(4):
        started = time.monotonic()
        conns.append(ybsmart.connect(conninfo))
        assert time.monotonic() - started < PROMPT

    expected = [3, 3, 3]
    expected[index] = 1
    assert by_node(own_cluster) == expected
    until(lambda: state(own_cluster, index) == "down", limit=30)

    load.let_pass()
    until(lambda: state(own_cluster, index) == "up", limit=30)
    conns += [ybsmart.connect(conninfo) for _ in range(2)]
    assert by_node(own_cluster) == [3, 3, 3]
    until(lambda: by_server(own_cluster, NAME) == [3, 3, 3])
    for conn in conns:  # the one that was there too
        assert conn.execute("SELECT 1").fetchone() == (1,)
        conn.close()


def test_as_the_first_host_of_several_it_is_passed_over(
    own_cluster: LocalCluster, drop: Callable[..., None]
) -> None:
    drop(0)
    hosts = ",".join(node.host for node in own_cluster.nodes)
    started = time.monotonic()
    conns = [ybsmart.connect(url(own_cluster), host=hosts) for _ in range(4)]

    assert time.monotonic() - started < PROMPT
    assert by_node(own_cluster) == [0, 2, 2]
    for conn in conns:
        conn.close()


def test_the_node_list_is_had_from_another(
    own_cluster: LocalCluster, drop: Callable[..., None]
) -> None:
    conninfo = url(own_cluster, yb_servers_refresh_interval=0)
    ybsmart.connect(conninfo).close()
    drop(0)
    own_cluster.add()

    def knows_the_new_one() -> bool:
        ybsmart.connect(conninfo).close()
        return state(own_cluster, 3) == "up"

    until(knows_the_new_one, limit=30)
