"""Without topology keys, every node gets the same number of connections."""

from __future__ import annotations

import pytest

import ybsmart
from tests.smart.conftest import NewClient
from tests.smart.scenario import Client, sessions_so_far
from tests.support import until
from ybsmart.testing import LocalCluster


@pytest.mark.parametrize(("count", "each"), [(12, 4), (24, 8)])
def test_each_of_three_nodes_gets_a_third(
    three: LocalCluster, client: NewClient, count: int, each: int
) -> None:
    client(three).spread(count, [each] * 3)


@pytest.mark.parametrize("contact", [0, 1, 2])
def test_one_contact_host_is_enough_whichever_it_is(
    three: LocalCluster, client: NewClient, contact: int
) -> None:
    client(three, contact).spread(12, [4, 4, 4])


def test_all_hosts_may_be_given_with_one_port_or_with_one_each(
    three: LocalCluster, client: NewClient
) -> None:
    hosts = ",".join(node.host for node in three.nodes)
    ports = ",".join(str(node.port) for node in three.nodes)

    client(three, host=hosts).spread(6, [2, 2, 2])
    client(three, host=hosts, port=ports).spread(6, [2, 2, 2])


def test_thirty_threads_in_a_cold_process_spread_exactly_after_one_look(
    three: LocalCluster, client: NewClient
) -> None:
    before = sum(sessions_so_far(three))
    threads = client(three)

    threads.open_in_threads(30)

    threads.check([10, 10, 10])
    threads.close()
    # The thirty, and the one that asked for the nodes.
    until(lambda: sum(sessions_so_far(three)) - before, 31)


def test_twenty_four_threads_twice_with_a_node_added_between(
    three: LocalCluster, client: NewClient
) -> None:
    threads = client(three, yb_servers_refresh_interval=0)
    threads.open_in_threads(24)
    threads.check([8, 8, 8])
    new = three.add("cloud.region.a")
    threads.until(new, "up")

    threads.open_in_threads(24)

    threads.check([12, 12, 12, 12])


def test_a_new_node_is_filled_up_first(three: LocalCluster, client: NewClient) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    app.open(9)
    app.check([3, 3, 3])
    new = three.add("cloud.region.a")
    app.until(new, "up")

    app.open(9)

    assert sorted(app.counts()) == [4, 4, 5, 5]
    app.check(app.counts())


def test_with_an_interval_of_zero_the_next_connection_knows_a_new_node(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    app.open(3)
    three.add("cloud.region.a")

    app.open(1)

    app.check([1, 1, 1, 1])


def test_within_the_interval_the_node_list_is_not_asked_for_again(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=600)
    app.open(3)
    (before,) = ybsmart.clusters()
    three.add("cloud.region.a")

    app.open(3)

    app.check([2, 2, 2, 0])
    assert ybsmart.clusters()[0].refreshes == before.refreshes == 1


def test_several_ports_on_one_host_are_several_nodes(client: NewClient) -> None:
    # On Linux a LocalCluster takes one address per node. Three of them on the same address, the
    # first of which lists all, are what one machine with three servers looks like.
    with (
        LocalCluster(3, first_address="127.0.61.1") as first,
        LocalCluster(1, yugabyte=False, first_address="127.0.61.1") as second,
        LocalCluster(1, yugabyte=False, first_address="127.0.61.1") as third,
    ):
        for node, other in ((1, second), (2, third)):
            port = other.nodes[0].port
            first.update(node, advertised_host="127.0.61.1", advertised_port=port)
        app = client(first)

        app.open(12)

        ports = {cluster.nodes[0].port for cluster in (first, second, third)}
        assert ybsmart.connection_counts() == {f"127.0.61.1:{port}": 4 for port in ports}
        assert len(ports) == 3
        for cluster in (first, second, third):
            until(lambda c=cluster: c.sessions(0, application_name=app.name), 4)  # type: ignore[misc]


def test_connections_of_several_clients_are_balanced_together(
    three: LocalCluster, client: NewClient
) -> None:
    clients: list[Client] = [client(three, contact) for contact in (0, 1, 2)]

    for _ in range(4):
        for each in clients:
            each.open(1)

    assert clients[0].counts() == [4, 4, 4]
    by_servers = [sum(n) for n in zip(*(each.sessions() for each in clients), strict=True)]
    assert by_servers == [4, 4, 4]
