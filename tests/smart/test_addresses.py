"""Under which address a node is reached: private or public, by name, with `hostaddr`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ybsmart
from tests.smart.conftest import NewClient
from tests.smart.scenario import states
from ybsmart.testing import LocalCluster


@pytest.fixture
def behind_public() -> Iterator[LocalCluster]:
    """Three nodes whose private addresses lead nowhere from here, and whose public ones work."""
    with LocalCluster(3, first_address="127.0.71.1") as cluster:
        for i, node in enumerate(cluster.nodes):
            cluster.update(i, advertised_host=f"127.0.98.{i + 1}", public_ip=node.host)
        yield cluster


def test_a_url_with_a_public_address_means_the_public_addresses(
    behind_public: LocalCluster, client: NewClient
) -> None:
    app = client(behind_public)

    app.open(6)

    app.check([2, 2, 2])
    for conn in app.held:
        assert conn.node is not None
        assert conn.info.hostaddr == conn.node.public_ip


def test_a_refresh_by_public_addresses_keeps_the_counts(
    behind_public: LocalCluster, client: NewClient
) -> None:
    app = client(behind_public, yb_servers_refresh_interval=0)
    app.open(3)
    refreshes = ybsmart.clusters()[0].refreshes
    app.touch_until(lambda: ybsmart.clusters()[0].refreshes > refreshes + 2, True)

    app.open(3)

    app.check([2, 2, 2])


def test_private_addresses_that_lead_nowhere_are_given_up_for_public_ones(
    behind_public: LocalCluster, client: NewClient
) -> None:
    # The URL names neither kind: the first node stands for a load balancer.
    behind_public.update(0, listed=False)
    app = client(behind_public)

    app.touch()
    app.open(4)

    app.check([0, 2, 2])
    assert states(behind_public)[1:] == ["up", "up"]


def test_private_addresses_are_used_where_the_url_names_one(client: NewClient) -> None:
    with LocalCluster(3, first_address="127.0.72.1") as cluster:
        for i in range(3):
            cluster.update(i, public_ip=f"127.0.97.{i + 1}")
        app = client(cluster)

        app.open(6)

        app.check([2, 2, 2])
        assert {conn.info.hostaddr for conn in app.held} == {node.host for node in cluster.nodes}


def test_a_name_in_the_url_and_addresses_in_the_list_are_the_same_nodes(
    three: LocalCluster, client: NewClient
) -> None:
    client(three, host="localhost").spread(12, [4, 4, 4])


def test_names_in_the_list_are_resolved(client: NewClient) -> None:
    with LocalCluster(3) as cluster:
        cluster.update(0, advertised_host="localhost")
        app = client(cluster)

        app.open(6)

        app.check([2, 2, 2])


def test_a_name_in_the_list_that_nobody_knows_costs_only_itself(client: NewClient) -> None:
    with LocalCluster(3, first_address="127.0.73.1") as cluster:
        cluster.update(1, advertised_host="no-such-host.invalid")
        app = client(cluster)

        app.open(6)

        app.check([3, 0, 3])
        assert states(cluster) == ["up", "down", "up"]


def test_hostaddr_says_where_to_start_not_where_all_go(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, host="a-name-for-tls.invalid", hostaddr=three.nodes[0].host)

    app.open(6)

    app.check([2, 2, 2])


def test_several_hostaddrs_are_several_ways_in(three: LocalCluster, client: NewClient) -> None:
    three.kill(0)
    addresses = ",".join(node.host for node in three.nodes)

    app = client(three, host="a.invalid,b.invalid,c.invalid", hostaddr=addresses)

    app.open(4)
    app.check([0, 2, 2])


def test_plain_postgresql_is_connected_to_plainly(client: NewClient) -> None:
    with LocalCluster(1, yugabyte=False, first_address="127.0.74.1") as server:
        app = client(server)

        app.open(2)

        assert [conn.node for conn in app.held] == [None, None]
        assert app.sessions() == [2]
        assert ybsmart.clusters() == ()
        assert ybsmart.connection_counts() == {}


def test_a_server_that_will_not_list_its_nodes_is_connected_to_plainly(
    three: LocalCluster, client: NewClient
) -> None:
    three.discovery(error="permission denied for function yb_servers")
    app = client(three)

    app.open(2)

    assert [conn.node for conn in app.held] == [None, None]
    assert {conn.info.host for conn in app.held} == {three.nodes[0].host}
