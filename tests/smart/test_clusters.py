"""Which cluster a connection belongs to: several URLs of one, several clusters in one process."""

from __future__ import annotations

import pytest

import ybsmart
from tests.servers import NET
from tests.smart.conftest import NewClient
from tests.support import until
from ybsmart.testing import LocalCluster

COLUMNS = [8, 9, 10]


@pytest.mark.parametrize("columns", COLUMNS)
def test_each_release_s_columns_balance_alike(
    three: LocalCluster, client: NewClient, columns: int
) -> None:
    three.discovery(columns=columns)

    client(three).spread(12, [4, 4, 4])

    (info,) = ybsmart.clusters()
    assert info.universe_uuid == (three.universe_uuid if columns == 10 else None)
    uuids = {node.uuid for node in info.nodes}
    assert uuids == ({node.uuid for node in three.nodes} if columns >= 9 else {""})


@pytest.mark.parametrize("columns", COLUMNS)
def test_two_urls_of_one_cluster_are_one_set_of_counts(
    three: LocalCluster, client: NewClient, columns: int
) -> None:
    three.discovery(columns=columns)
    first, second = client(three, 0), client(three, 2)

    for _ in range(3):
        first.open(1)
        second.open(1)

    assert first.counts() == [2, 2, 2]
    assert len(ybsmart.clusters()) == 1
    assert ybsmart.connection_counts(first.url) == ybsmart.connection_counts(second.url)
    first.close()
    assert sum(first.counts()) == 3


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_second_url_after_a_node_was_added_still_means_the_same_cluster(
    three: LocalCluster, client: NewClient, columns: int
) -> None:
    three.discovery(columns=columns)
    first = client(three, 0)
    first.open(3)
    three.add("cloud.region.a")

    second = client(three, 1)
    second.open(5)

    assert len(ybsmart.clusters()) == 1
    assert first.counts() == [2, 2, 2, 2]


@pytest.mark.parametrize("columns", [(8, 10), (10, 8), (9, 10)])
def test_an_upgrade_of_the_catalogue_while_connected_changes_nothing(
    three: LocalCluster, client: NewClient, columns: tuple[int, int]
) -> None:
    before, after = columns
    three.discovery(columns=before)
    app = client(three, yb_servers_refresh_interval=0)
    app.open(6)

    three.discovery(columns=after)
    refreshes = ybsmart.clusters()[0].refreshes
    app.touch_until(lambda: ybsmart.clusters()[0].refreshes > refreshes, True)
    app.open(3)

    assert len(ybsmart.clusters()) == 1
    app.check([3, 3, 3])


def test_other_users_and_databases_of_known_hosts_need_no_look_of_their_own(
    three: LocalCluster, client: NewClient
) -> None:
    roles = ("tenant1", "tenant2")
    for node in three.nodes:
        for role in roles:
            three.execute(node, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        app = client(three)
        app.open(3)
        for role in roles:
            for database in ("yugabyte", "postgres"):
                app.open(3, user=role, password="x", dbname=database)

        app.check([5, 5, 5])
        (info,) = ybsmart.clusters()
        assert info.refreshes == 1
    finally:
        for node in three.nodes:
            for role in roles:
                three.execute(node, f"DROP ROLE {role}")


def test_two_clusters_are_counted_apart(three: LocalCluster, client: NewClient) -> None:
    with LocalCluster(2, first_address="127.0.66.1") as two:
        one_app, other_app = client(three), client(two)
        one_app.open(6)
        other_app.open(4)

        one_app.check([2, 2, 2])
        other_app.check([2, 2])
        assert sum(ybsmart.connection_counts(one_app.url).values()) == 6
        assert sum(ybsmart.connection_counts(other_app.url).values()) == 4
        assert len(ybsmart.clusters()) == 2
        other_app.close()
        one_app.check([2, 2, 2])


def test_two_clusters_that_list_the_same_addresses_are_counted_apart(
    three: LocalCluster, client: NewClient
) -> None:
    # The second one's list names the first one's servers, as if both had the same private
    # addresses.
    with LocalCluster(3, first_address="127.0.66.1") as other:
        for i, node in enumerate(three.nodes):
            other.update(i, advertised_host=node.host, advertised_port=node.port)
        first, second = client(three), client(other)

        first.open(6)
        second.open(3)

        assert list(ybsmart.connection_counts(first.url).values()) == [2, 2, 2]
        assert list(ybsmart.connection_counts(second.url).values()) == [1, 1, 1]
        assert list(ybsmart.connection_counts().values()) == [3, 3, 3]
        first.close()
        assert list(ybsmart.connection_counts(first.url).values()) == [0, 0, 0]
        assert list(ybsmart.connection_counts(second.url).values()) == [1, 1, 1]
        assert second.counts() == [1, 1, 1]


def test_two_clusters_with_the_same_private_addresses_reached_by_public_ones(
    client: NewClient,
) -> None:
    with (
        LocalCluster(3, first_address="127.0.67.1") as one,
        LocalCluster(3, first_address="127.0.68.1") as other,
    ):
        for cluster in (one, other):
            for i, node in enumerate(cluster.nodes):
                # Nothing listens on the private ones.
                cluster.update(i, advertised_host=f"127.0.99.{i + 1}", public_ip=node.host)
        first, second = client(one), client(other)

        first.open(6)
        second.open(3)

        until(first.sessions, [2, 2, 2])
        until(second.sessions, [1, 1, 1])
        assert list(ybsmart.connection_counts(first.url).values()) == [2, 2, 2]
        assert list(ybsmart.connection_counts(second.url).values()) == [1, 1, 1]
        first.close()
        assert list(ybsmart.connection_counts(first.url).values()) == [0, 0, 0]
        assert list(ybsmart.connection_counts(second.url).values()) == [1, 1, 1]


def test_a_cluster_that_was_replaced_behind_its_address_is_a_new_one(client: NewClient) -> None:
    address = f"{NET}.1"  # where nobody else takes the port meanwhile
    with LocalCluster(2, first_address=address) as old:
        port = old.nodes[0].port
        app = client(old, yb_servers_refresh_interval=0)
        app.open(2)
        app.close()
    with LocalCluster(2, first_address=address, port=port) as new:
        app = client(new, yb_servers_refresh_interval=0)
        app.touch_until(
            lambda: new.universe_uuid in [c.universe_uuid for c in ybsmart.clusters()], True
        )
        app.open(4)

        until(app.sessions, [2, 2])
