"""Topology keys on nodes 1 to 3 in the zones a, b and c: where twelve connections go."""

from __future__ import annotations

import re
from collections import Counter

import psycopg
import pytest

import ybsmart
from tests.smart.conftest import NewClient
from tests.smart.scenario import sessions_so_far, stop
from tests.support import until
from ybsmart.testing import LocalCluster


def keys(zones: str) -> str:
    """ "a,b:2" -> "cloud.region.a,cloud.region.b:2" """
    return ",".join(f"cloud.region.{zone}" for zone in zones.split(","))


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ("a,c", [6, 0, 6]),
        ("a,b:1,c:2", [6, 6, 0]),
        ("a:1,b:2,c:3", [12, 0, 0]),
        ("*,b:1,c:2", [4, 4, 4]),
        ("*:1,b:2", [4, 4, 4]),
        # A level without any node is passed over.
        ("BAD:1,b:2,c:3", [0, 12, 0]),
        ("BAD:1,b:2,c:2", [0, 6, 6]),
        ("a:1,BAD:2,c:3", [12, 0, 0]),
        ("BAD:1,BAD:2,*:3", [4, 4, 4]),
        # There need not be a level 1, nor every one between.
        ("b:2", [0, 12, 0]),
        ("c:10", [0, 0, 12]),
        ("BAD:1,c:7", [0, 0, 12]),
        # In two levels, the better one counts.
        ("a:2,*:1", [4, 4, 4]),
        ("*:2,b:1", [0, 12, 0]),
        # Named twice is named.
        ("a,a,b", [6, 6, 0]),
        ("a,*", [4, 4, 4]),
        # Nothing matches: the rest of the cluster.
        ("BAD", [4, 4, 4]),
    ],
)
def test_twelve_connections_go_where_the_keys_say(
    three: LocalCluster, client: NewClient, zones: str, expected: list[int]
) -> None:
    client(three, topology_keys=keys(zones)).spread(12, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CLOUD.Region.A", [12, 0, 0]),
        (" cloud.region.a , cloud.region.b:2 ", [12, 0, 0]),
        ("cloud.region.b:1 ,\tcloud.region.c", [0, 6, 6]),
        ("other.region.a,cloud.other.b,cloud.region.c", [0, 0, 12]),
    ],
)
def test_case_and_blanks_around_keys_do_not_matter(
    three: LocalCluster, client: NewClient, text: str, expected: list[int]
) -> None:
    client(three, topology_keys=text).spread(12, expected)


@pytest.mark.parametrize(
    ("zones", "down", "expected"),
    [
        ("a:1,c:3", (1,), [0, 0, 12]),  # over the gap
        ("a:1,b:2,c:3", (1,), [0, 12, 0]),
        ("a:1,b:2,c:3", (1, 2), [0, 0, 12]),
        ("a,b:1,c:2", (2,), [12, 0, 0]),
        ("a:1", (1,), [0, 6, 6]),  # the rest of the cluster
        ("*:1", (3,), [6, 6, 0]),
    ],
)
def test_the_next_level_stands_in_for_nodes_that_are_down(
    three: LocalCluster, client: NewClient, zones: str, down: tuple[int, ...], expected: list[int]
) -> None:
    app = client(three, topology_keys=keys(zones))
    app.touch()
    stop(three, *down)

    app.spread(12, expected)


@pytest.mark.parametrize(
    ("zones", "expected"), [("a,a,b", [1 / 2, 1 / 2, 0]), ("a,*", [1 / 3] * 3)]
)
def test_a_node_that_is_named_twice_has_no_double_chance(
    three: LocalCluster, client: NewClient, zones: str, expected: list[float]
) -> None:
    app = client(three, topology_keys=keys(zones))
    draws = 800

    drawn: Counter[str] = Counter()
    for _ in range(draws):  # nothing is held: each time, all are equal
        with app.connect() as conn:
            assert conn.node is not None
            drawn[conn.node.host] += 1
        app.held.clear()

    # Six standard deviations: one run in 100 million fails by chance. A double weight is off by
    # more than nine.
    for node, share in zip(three.nodes, expected, strict=True):
        deviation = (draws * share * (1 - share)) ** 0.5
        assert abs(drawn[node.host] - draws * share) <= 6 * deviation


def test_without_a_match_the_flag_decides_between_the_cluster_and_an_error(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, topology_keys=keys("BAD"))
    app.spread(12, [4, 4, 4], fallback_to_topology_keys_only=False)
    until(app.sessions, [0, 0, 0])
    before = sessions_so_far(three)

    with pytest.raises(psycopg.OperationalError, match="topology_keys"):
        app.connect(fallback_to_topology_keys_only=True)

    assert sessions_so_far(three) == before  # nobody was bothered
    app.check([0, 0, 0])


def test_with_keys_only_nothing_outside_the_keys_is_ever_connected_to(
    three: LocalCluster, client: NewClient
) -> None:
    # The contact host, which lists the nodes, is one of those inside.
    app = client(three, 1, topology_keys=keys("b"), fallback_to_topology_keys_only=True)
    before = sessions_so_far(three)

    app.spread(4, [0, 4, 0])
    stop(three, 2)
    with pytest.raises(psycopg.OperationalError, match=re.escape(three.nodes[1].host)):
        app.connect()

    after = sessions_so_far(three)
    assert (after[0], after[2]) == (before[0], before[2])


def test_a_new_node_inside_the_keys_gets_its_share_and_one_outside_gets_nothing(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, topology_keys=keys("a,b"), yb_servers_refresh_interval=0)
    app.open(6)
    app.check([3, 3, 0])
    three.add("cloud.region.c")
    inside = three.add("cloud.region.a")
    app.until(inside, "up")

    app.open(6)

    app.check([4, 4, 0, 0, 4])


def test_a_node_inside_the_keys_that_stops_and_returns(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, topology_keys=keys("a,b"), failed_host_reconnect_delay_secs=0)
    app.touch()
    stop(three, 1)
    app.open(4)
    app.check([0, 4, 0])

    three.start(0)
    app.until(three.nodes[0], "up")
    app.open(5)

    assert sorted(app.counts()) == [0, 4, 5]
    app.check(app.counts())


def test_a_node_that_moves_is_found_in_its_new_placement(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, topology_keys=keys("a"), yb_servers_refresh_interval=0)
    app.open(2)
    app.check([2, 0, 0])

    three.update(1, placement="cloud.region.a")
    try:
        app.touch_until(lambda: ybsmart.clusters()[0].nodes[1].zone, "a")
        app.open(2)
        app.check([2, 2, 0])
    finally:
        three.update(1, placement="cloud.region.b")
