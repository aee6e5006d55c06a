"""Four levels of keys on nine nodes in five placements, nodes going down one after the other.

Nodes 1 to 3 are in us-west, 4 and 5 in us-east, 6 and 9 in two zones of eu-north, 7 and 8 in
eu-west. The steps and the numbers are those of YugabyteDB's own tests of fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.smart.conftest import NewClient
from tests.smart.scenario import Client, stop
from ybsmart.testing import LocalCluster

KEYS = "aws.us-west.*:1,aws.us-east.*:2,aws.eu-west.*:3,aws.eu-north.*:4"
PLACEMENTS = (
    *["aws.us-west.us-west-1a"] * 3,
    *["aws.us-east.us-east-1a"] * 2,
    "aws.eu-north.eu-north-1a",
    *["aws.eu-west.eu-west-1a"] * 2,
    "aws.eu-north.eu-north-1b",
)


@pytest.fixture(scope="module")
def _nine() -> Iterator[LocalCluster]:
    with LocalCluster(PLACEMENTS) as cluster:
        yield cluster


@pytest.fixture
def nine(_nine: LocalCluster, borrow: Callable[[LocalCluster], LocalCluster]) -> LocalCluster:
    return borrow(_nine)


def on(spread: dict[int, int]) -> list[int]:
    """{2: 12} -> twelve on node 2, none elsewhere."""
    return [spread.get(number, 0) for number in range(1, 10)]


def start(client: Client, number: int) -> None:
    client.cluster.start(number - 1)
    client.until(client.cluster.nodes[number - 1], "up")


def new_client(nine: LocalCluster, client: NewClient) -> Client:
    return client(
        nine,
        topology_keys=KEYS,
        yb_servers_refresh_interval=0,
        failed_host_reconnect_delay_secs=0,
    )


def test_each_loss_moves_twelve_connections_down_the_levels_and_a_return_up_again(
    nine: LocalCluster, client: NewClient
) -> None:
    app = new_client(nine, client)

    app.spread(12, on({1: 4, 2: 4, 3: 4}))
    stop(nine, 1, 3)
    app.spread(12, on({2: 12}))
    stop(nine, 2)
    app.spread(12, on({4: 6, 5: 6}))
    stop(nine, 4)
    app.spread(12, on({5: 12}))
    stop(nine, 5)
    app.spread(12, on({7: 6, 8: 6}))
    stop(nine, 7, 8)
    app.spread(12, on({6: 6, 9: 6}))
    stop(nine, 9)
    app.spread(12, on({6: 12}))
    start(app, 2)
    app.spread(12, on({2: 12}))


def test_connections_that_stay_open_pile_up_where_the_levels_send_them(
    nine: LocalCluster, client: NewClient
) -> None:
    app = new_client(nine, client)

    app.open(18)
    app.check(on({1: 6, 2: 6, 3: 6}))

    stop(nine, 1, 2, 3, 4, 5, 7, 8)
    app.open(18)
    # Those of the dead nodes count until the application lets go of them.
    app.check(on({1: 6, 2: 6, 3: 6, 6: 9, 9: 9}), alive=on({6: 9, 9: 9}))
    app.close_broken()
    app.check(on({6: 9, 9: 9}))

    stop(nine, 9)
    app.close_broken()
    app.open(18)
    app.check(on({6: 27}))

    start(app, 2)
    app.open(18)
    app.check(on({6: 27, 2: 18}))

    stop(nine, 2)
    app.close_broken()
    app.open(18)
    app.check(on({6: 45}))

    start(app, 5)
    app.open(18)
    app.check(on({6: 45, 5: 18}))

    stop(nine, 5)
    app.close_broken()
    app.open(18)
    app.check(on({6: 63}))
