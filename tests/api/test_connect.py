"""`ybsmart.connect` on real servers: spreading, counting, failing over."""

from __future__ import annotations

import gc
import logging
import selectors
import warnings

import psycopg
import psycopg_pool
import pytest

import ybsmart
from tests.api.support import refresh
from tests.servers import by_node, by_server
from tests.support import in_threads
from ybsmart import registry
from ybsmart.testing import LocalCluster

# The examples of YugabyteDB's documentation, in Python


def documented_url(cluster: LocalCluster) -> str:
    return f"postgresql://yugabyte:yugabyte@localhost:{cluster.nodes[0].port}/yugabyte"


def test_documented_example_thirty_connections_are_ten_on_each_node(cluster: LocalCluster) -> None:
    url = documented_url(cluster) + "?loadBalance=true"

    connections = [ybsmart.connect(url, application_name="uniform") for _ in range(30)]

    assert by_node(cluster) == [10, 10, 10]
    assert by_server(cluster, "uniform") == [10, 10, 10]
    for conn in connections:
        conn.close()
    assert by_node(cluster) == [0, 0, 0]


def test_documented_example_with_a_topology_key_uses_two_nodes(cluster: LocalCluster) -> None:
    # As printed, with the doubled "&" and the property in the singular.
    url = documented_url(cluster) + "?loadBalance=true&&topologyKey=aws.us-west.us-west-2a"

    connections = [ybsmart.connect(url, application_name="zone") for _ in range(30)]

    assert by_node(cluster) == [15, 15, 0]
    assert by_server(cluster, "zone") == [15, 15, 0]
    for conn in connections:
        conn.close()


# Spreading


def test_thirty_threads_that_start_cold_spread_exactly_after_one_look(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Healthy servers, on a machine that may be busy, must not be taken for silent ones.
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)
    url = own_cluster.conninfo(load_balance=True, application_name="cold")
    connections: list[psycopg.Connection] = []

    errors = in_threads(30, lambda: connections.append(ybsmart.connect(url)))

    assert not errors
    assert by_node(own_cluster) == [10, 10, 10]
    assert by_server(own_cluster, "cold") == [10, 10, 10]
    (info,) = ybsmart.clusters()
    assert info.refreshes == 1
    for conn in connections:
        conn.close()


def test_without_load_balancing_it_is_psycopg(cluster: LocalCluster) -> None:
    with ybsmart.connect(cluster.conninfo(cluster.nodes[1])) as conn:
        assert type(conn) is ybsmart.Connection
        assert isinstance(conn, psycopg.Connection)
        assert conn.node is None
        assert conn.info.host == cluster.nodes[1].host
    assert ybsmart.clusters() == ()


def test_two_urls_of_one_cluster_share_their_counts(cluster: LocalCluster) -> None:
    first = cluster.conninfo(cluster.nodes[0], load_balance=True)
    second = cluster.conninfo(cluster.nodes[2], load_balance=True)

    connections = [ybsmart.connect(url) for url in [first, second] * 3]

    assert by_node(cluster) == [2, 2, 2]
    assert len(ybsmart.clusters()) == 1
    assert ybsmart.connection_counts(second) == ybsmart.connection_counts(first)
    for conn in connections:
        conn.close()


def test_the_node_of_a_connection_is_where_it_really_is(balanced: str) -> None:
    for _ in range(6):
        with ybsmart.connect(balanced) as conn:
            node = conn.node
            assert node is not None
            row = conn.execute("SELECT host(inet_server_addr()), inet_server_port()").fetchone()
            assert row == (node.host, node.port)
            assert node.connections == 1
            assert node.state == "up"
            assert node.placement.startswith("aws.us-west.us-west-2")


def test_options_and_classes_of_psycopg_work_as_usual(balanced: str) -> None:
    class Mine(ybsmart.Connection[psycopg.rows.DictRow]):
        pass

    with Mine.connect(balanced, autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
        assert type(conn) is Mine
        assert conn.autocommit
        assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_it_works_under_psycopg_pool(cluster: LocalCluster, balanced: str) -> None:
    with psycopg_pool.ConnectionPool(
        balanced, connection_class=ybsmart.Connection, min_size=6, max_size=6, open=True
    ) as pool:
        pool.wait()
        assert by_node(cluster) == [2, 2, 2]


def test_a_new_node_gets_its_share_after_a_refresh(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, yb_servers_refresh_interval=600)
    connections = [ybsmart.connect(url) for _ in range(9)]
    own_cluster.add("aws.us-west.us-west-2b")

    refresh(url)
    connections += [ybsmart.connect(url) for _ in range(9)]

    assert sorted(by_node(own_cluster)) == [4, 4, 5, 5]
    for conn in connections:
        conn.close()


# Counting


def test_a_connection_counts_until_it_is_closed_and_only_once(
    cluster: LocalCluster, balanced: str
) -> None:
    conn = ybsmart.connect(balanced)
    assert sum(by_node(cluster)) == 1

    conn.close()
    conn.close()

    assert sum(by_node(cluster)) == 0


def test_a_connection_that_the_server_killed_counts_until_closed(
    cluster: LocalCluster, balanced: str
) -> None:
    conn = ybsmart.connect(balanced, autocommit=True)
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert conn.closed

    conn.close()

    assert sum(by_node(cluster)) == 0


def test_a_dropped_connection_is_counted_off(cluster: LocalCluster, balanced: str) -> None:
    conn = ybsmart.connect(balanced)
    assert sum(by_node(cluster)) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # psycopg's, and right
        del conn
        gc.collect()

    assert sum(by_node(cluster)) == 0


def test_a_node_that_fails_keeps_the_count_of_its_open_connections(
    own_cluster: LocalCluster,
) -> None:
    url = own_cluster.conninfo(load_balance=True)
    connections = [ybsmart.connect(url) for _ in range(6)]
    own_cluster.kill(own_cluster.nodes[1])

    connections += [ybsmart.connect(url) for _ in range(4)]

    assert by_node(own_cluster) == [4, 2, 4]
    assert [n.state for n in ybsmart.clusters()[0].nodes] == ["up", "down", "up"]
    for conn in connections:
        conn.close()
    assert by_node(own_cluster) == [0, 0, 0]


# Failing


def test_a_dead_node_is_passed_over_and_comes_back(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=0)
    dead = own_cluster.nodes[0]
    ybsmart.connect(url).close()
    own_cluster.kill(dead)

    during = [ybsmart.connect(url) for _ in range(6)]
    assert by_node(own_cluster) == [0, 3, 3]

    own_cluster.start(dead)
    after = [ybsmart.connect(url) for _ in range(3)]
    assert by_node(own_cluster) == [3, 3, 3]
    assert {n.state for n in ybsmart.clusters()[0].nodes} == {"up"}
    assert {n.last_error for n in ybsmart.clusters()[0].nodes} == {None}
    for conn in during + after:
        conn.close()


def test_the_first_host_of_the_url_may_be_down(own_cluster: LocalCluster) -> None:
    hosts = ",".join(node.host for node in own_cluster.nodes)
    own_cluster.kill(own_cluster.nodes[0])

    with ybsmart.connect(
        own_cluster.conninfo(), host=hosts, load_balance=True, connect_timeout=5
    ) as conn:
        assert conn.node is not None
        assert conn.node.host != own_cluster.nodes[0].host


def test_no_server_reachable_is_one_error_with_each_hosts_reason() -> None:
    registry.forget()

    with pytest.raises(psycopg.OperationalError) as caught:
        ybsmart.connect(
            "host=127.0.0.1,127.0.0.2,no-such-host.invalid port=1 dbname=d user=u "
            "password=sesame load_balance=true connect_timeout=20"
        )

    lines = str(caught.value).splitlines()
    for line, host in zip(
        lines[1:], ["127.0.0.1:1", "127.0.0.2:1", "no-such-host.invalid:1"], strict=True
    ):
        assert host in line
    assert "refused" in lines[1]
    assert caught.value.__cause__ is not None
    assert "sesame" not in str(caught.value)


def test_all_nodes_down_lists_each_nodes_reason(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True)
    ybsmart.connect(url).close()
    for node in own_cluster.nodes:
        own_cluster.kill(node)

    for _ in range(2):  # also when all are quarantined already: tried as a last resort
        with pytest.raises(psycopg.OperationalError) as caught:
            ybsmart.connect(url)
        for node in own_cluster.nodes:
            assert f"{node.host}:{node.port}: " in str(caught.value)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert by_node(own_cluster) == [0, 0, 0]


def test_a_wrong_password_is_the_callers_own_and_costs_one_attempt(
    cluster: LocalCluster, balanced: str
) -> None:
    ybsmart.connect(balanced).close()

    for warm in (True, False):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ybsmart.connect(balanced, password="wrong")
        if warm:
            assert {n.state for n in ybsmart.clusters()[0].nodes} == {"up"}
            registry.forget()
    assert set(ybsmart.connection_counts().values()) <= {0}


def test_an_unknown_database_is_the_callers_own(balanced: str) -> None:
    ybsmart.connect(balanced).close()

    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        ybsmart.connect(balanced, dbname="nowhere")

    assert {n.state for n in ybsmart.clusters()[0].nodes} == {"up"}


def test_a_node_type_that_the_cluster_lacks_is_an_error_not_another_node(balanced: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="no read replicas"):
        ybsmart.connect(balanced, load_balance="only-rr")


def test_plain_postgresql_gives_a_plain_connection_and_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.forget()
    with LocalCluster(1, yugabyte=False) as server:
        url = server.conninfo(load_balance=True)
        with caplog.at_level(logging.WARNING, logger="ybsmart"):
            for _ in range(3):
                with ybsmart.connect(url) as conn:
                    assert conn.node is None

    assert len([r for r in caplog.records if "without load balancing" in r.getMessage()]) == 1
    assert ybsmart.connection_counts() == {}


def test_cold_threads_share_one_failed_look(own_cluster: LocalCluster) -> None:
    for node in own_cluster.nodes:
        own_cluster.kill(node)
    url = own_cluster.conninfo(load_balance=True)

    errors = in_threads(10, lambda: ybsmart.connect(url))

    assert len(errors) == 10
    for error in errors:
        assert isinstance(error, psycopg.OperationalError)
        assert own_cluster.nodes[0].host in str(error)
    assert len({id(error) for error in errors}) == 10


def test_an_interrupted_connect_returns_its_place(
    balanced: str, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ybsmart.connect(balanced).close()

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selectors.DefaultSelector, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ybsmart.connect(balanced)

    assert by_node(cluster) == [0, 0, 0]
