"""The demo's scenario on real servers: what it measures is what it is there to show.

Must never look at a view: what is not in a snapshot was not measured.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import ybsmart
from ybsmart import registry
from ybsmart.demo import scenario as module
from ybsmart.demo.load import Load
from ybsmart.demo.scenario import Scenario
from ybsmart.demo.states import NodeState, Phase, Progress, Snapshot
from ybsmart.testing import LocalCluster

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Linux or macOS")


@pytest.fixture(autouse=True, scope="module")
def _unknown_addresses() -> Iterator[None]:
    """Other tests had other clusters at the same addresses. And servers that are well must not be
    passed over because the machine is busy."""
    registry.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)
        yield
    registry.forget()


@pytest.fixture(scope="module")
def progress() -> Progress:
    """A run from beginning to end, after which nothing is left."""
    with recorded_clusters() as started:
        scenario = Scenario(2)
        assert scenario.run()
    assert_nothing_is_left(started)
    return scenario.progress


@pytest.fixture
def seen(progress: Progress) -> Callable[[Phase], Snapshot]:
    by_phase = {snapshot.phase: snapshot for snapshot in progress.completed}
    return by_phase.__getitem__


@pytest.fixture
def started() -> Iterator[list[LocalCluster]]:
    """The clusters that scenarios have started."""
    with recorded_clusters() as clusters:
        yield clusters


@contextlib.contextmanager
def recorded_clusters() -> Iterator[list[LocalCluster]]:
    clusters: list[LocalCluster] = []

    def start() -> LocalCluster:
        clusters.append(LocalCluster())
        return clusters[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LocalCluster", start)
        yield clusters


def connections(snapshot: Snapshot) -> list[int]:
    return [node.connections for node in snapshot.nodes]


def assert_servers_agree(snapshot: Snapshot) -> None:
    for node in snapshot.nodes:
        assert node.sessions == (node.connections if node.running else None)


def is_working(node: NodeState) -> bool:
    return node.served > 0 and node.rate is not None and node.rate > 0


def assert_nothing_is_left(clusters: list[LocalCluster]) -> None:
    states = [node.state for cluster in clusters for node in cluster.nodes]
    assert states in ([], ["stopped"] * 3)  # it may have been stopped before it started any
    assert set(ybsmart.connection_counts().values()) <= {0}
    names = {thread.name for thread in threading.enumerate()}
    # Those of the process end when they find nothing more to look after.
    names -= {"ybsmart-sweep", "ybsmart-probe", "ybsmart-refresh"}
    assert not {name for name in names if name.startswith(("ybsmart", "pool-"))}


def test_each_phase_is_completed_once_and_in_order(progress: Progress) -> None:
    assert [snapshot.phase for snapshot in progress.completed] == list(Phase)
    assert progress.now == progress.completed[-1]


def test_thirty_connections_are_spread_evenly(seen: Callable[[Phase], Snapshot]) -> None:
    uniform = seen(Phase.UNIFORM)
    assert connections(uniform) == [10, 10, 10]
    assert_servers_agree(uniform)
    assert "?loadBalance=true" in uniform.call


def test_topology_keys_keep_to_the_zone(seen: Callable[[Phase], Snapshot]) -> None:
    topology = seen(Phase.TOPOLOGY)
    assert [node.zone for node in topology.nodes] == ["us-west-2a", "us-west-2a", "us-west-2b"]
    assert connections(topology) == [15, 15, 0]
    assert_servers_agree(topology)
    assert "topologyKeys=aws.us-west.us-west-2a" in topology.call


def test_the_pool_uses_all_nodes(seen: Callable[[Phase], Snapshot]) -> None:
    pool = seen(Phase.POOL)
    assert connections(pool) == [2, 2, 2]
    assert_servers_agree(pool)
    assert all(is_working(node) for node in pool.nodes)
    assert pool.load is not None
    assert pool.load.threads == 6
    assert pool.load.failed == 0


def test_after_the_kill_the_others_do_the_work(seen: Callable[[Phase], Snapshot]) -> None:
    killed = seen(Phase.KILLED)
    dead, *others = killed.nodes
    assert dead.address == killed.victim
    assert (dead.running, dead.served) == (False, 0)
    assert connections(killed) == [0, 3, 3]
    assert_servers_agree(killed)
    assert all(is_working(node) for node in others)


def test_only_requests_on_the_killed_node_fail(seen: Callable[[Phase], Snapshot]) -> None:
    loads = [load for phase in Phase if (load := seen(phase).load) is not None]
    # It had two connections, and a request at a time on each.
    assert [load.failed for load in loads[1:]] == [loads[-1].failed] * len(loads[1:])
    assert 1 <= loads[-1].failed <= 2
    assert loads[-1].error
    assert [load.requests for load in loads] == sorted(load.requests for load in loads)


def test_connections_move_to_the_node_that_is_back(seen: Callable[[Phase], Snapshot]) -> None:
    back = seen(Phase.BACK)
    assert [(node.running, node.passed_over) for node in back.nodes] == [(True, False)] * 3
    assert connections(back) == [2, 2, 2]
    assert_servers_agree(back)
    assert all(is_working(node) for node in back.nodes)


def test_more_load_is_shared_by_all_nodes(seen: Callable[[Phase], Snapshot]) -> None:
    grown = seen(Phase.GROWN)
    assert connections(grown) == [4, 4, 4]
    assert_servers_agree(grown)
    assert all(is_working(node) for node in grown.nodes)
    assert grown.load is not None
    assert grown.load.threads == 12


@pytest.mark.parametrize("phase", [Phase.START, Phase.UNIFORM, Phase.KILLED])
def test_it_can_be_stopped(phase: Phase, started: list[LocalCluster]) -> None:
    scenario = Scenario(3)
    outcome: list[bool] = []
    thread = threading.Thread(target=lambda: outcome.append(scenario.run()))
    thread.start()
    while scenario.progress.now.phase is not phase:
        thread.join(0.01)
        assert thread.is_alive()
    scenario.stop()
    thread.join(60)
    assert outcome == [False]
    assert phase not in [snapshot.phase for snapshot in scenario.progress.completed]
    assert_nothing_is_left(started)


def test_stopped_before_it_runs_it_starts_nothing(started: list[LocalCluster]) -> None:
    scenario = Scenario(1)
    scenario.stop()
    assert not scenario.run()
    assert started == []


def test_a_broken_thread_is_an_error_and_no_failed_request(
    monkeypatch: pytest.MonkeyPatch, started: list[LocalCluster]
) -> None:
    monkeypatch.setattr(Load, "_REQUEST", None)
    with pytest.raises(TypeError, match="query"):
        Scenario(0).run()
    assert_nothing_is_left(started)
