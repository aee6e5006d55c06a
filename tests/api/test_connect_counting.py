"""A count belongs to a connection, and to the node that it goes to, whatever happens around it."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import warnings
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

import ybsmart
from tests.api.support import close, refresh
from tests.servers import by_node, by_server
from tests.support import in_threads, until
from tests.wire import Forwarder
from ybsmart import registry
from ybsmart.testing import LocalCluster


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg_pool logs connections as objects, and pytest would keep these alive."""
    monkeypatch.setattr(logging.getLogger("psycopg.pool"), "disabled", True)


class Broken(Exception):
    """Raised by users' code in the middle."""


def test_an_exception_in_the_connections_class_returns_the_place(
    cluster: LocalCluster, balanced: str
) -> None:
    class Mine(ybsmart.Connection[Any]):
        def __init__(self, *args: Any) -> None:
            raise Broken

    with pytest.raises(Broken):
        Mine.connect(balanced)

    assert by_node(cluster) == [0, 0, 0]
    until(lambda: by_server(cluster) == [0, 0, 0])


def test_an_exception_in_the_adapters_returns_the_place(
    cluster: LocalCluster, balanced: str
) -> None:
    class Context:
        @property
        def adapters(self) -> Any:
            raise Broken

    with pytest.raises(Broken):
        ybsmart.connect(balanced, context=Context())  # type: ignore[call-overload]

    assert by_node(cluster) == [0, 0, 0]
    until(lambda: by_server(cluster) == [0, 0, 0])


@pytest.mark.usefixtures("forgetful")
def test_a_failing_configure_of_psycopg_pool_leaves_nothing_counted(
    cluster: LocalCluster, balanced: str
) -> None:
    failures = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        failures.append(conn)
        raise Broken

    pool = psycopg_pool.ConnectionPool(
        balanced,
        connection_class=ybsmart.Connection,
        min_size=0,
        max_size=1,
        configure=configure,
        open=True,
        reconnect_timeout=0,
    )
    with pool:
        with pytest.raises(psycopg_pool.PoolTimeout):
            pool.getconn(timeout=1)
        until(lambda: bool(failures))

    failures.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert by_node(cluster) == [0, 0, 0]


@pytest.mark.usefixtures("forgetful")
def test_under_psycopg_pool_counts_follow_the_pool(cluster: LocalCluster, balanced: str) -> None:
    with psycopg_pool.ConnectionPool(
        balanced, connection_class=ybsmart.Connection, min_size=6, max_size=6, open=True
    ) as pool:
        pool.wait()
        assert by_node(cluster) == [2, 2, 2]
        with pool.connection() as conn, pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        del conn  # the pool drops it without closing it
        until(lambda: by_node(cluster) == [2, 2, 2])
    assert by_node(cluster) == [0, 0, 0]


def test_a_node_that_is_missing_from_one_list_keeps_its_count(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True)
    connections = [ybsmart.connect(url) for _ in range(6)]
    own_cluster.update(2, listed=False)
    refresh(url)
    assert by_node(own_cluster) == [2, 2, 2]
    connections += [ybsmart.connect(url) for _ in range(2)]
    own_cluster.update(2, listed=True)
    refresh(url)

    connections += [ybsmart.connect(url) for _ in range(1)]

    assert by_node(own_cluster) == [3, 3, 3]
    close(connections)
    assert by_node(own_cluster) == [0, 0, 0]


@pytest.mark.parametrize("columns", [8, 9])
def test_an_upgrade_that_adds_columns_changes_no_count(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)  # its servers are well, if slow
    registry.forget()
    with LocalCluster(columns=columns) as cluster:
        url = cluster.conninfo(load_balance=True)
        held = [ybsmart.connect(url) for _ in range(6)]
        for now in (10, columns, 10):
            cluster.discovery(columns=now)
            refresh(url)
            assert by_node(cluster) == [2, 2, 2]
            assert len(ybsmart.clusters()[0].nodes) == 3
        # Another way in leads to the same cluster.
        held.append(ybsmart.connect(cluster.conninfo(cluster.nodes[2], load_balance=True)))
        assert len(ybsmart.clusters()) == 1
        close(held)
        assert by_node(cluster) == [0, 0, 0]


def test_an_old_server_without_uuids_is_one_cluster_also_with_a_node_more() -> None:
    registry.forget()
    with LocalCluster(columns=8) as cluster:
        first = ybsmart.connect(cluster.conninfo(cluster.nodes[0], load_balance=True))
        cluster.add("aws.us-west.us-west-2c")
        second = ybsmart.connect(cluster.conninfo(cluster.nodes[2], load_balance=True))

        assert len(ybsmart.clusters()) == 1
        assert sum(by_node(cluster)) == 2
        close([first, second])


def test_two_clusters_with_the_same_private_addresses_are_counted_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)  # their servers are well, if slow
    registry.forget()
    with LocalCluster(2) as one, LocalCluster(2, first_address="127.0.0.11") as two:
        # Both say 10.0.0.1 and .2; each is reached by its public addresses.
        for cluster in (one, two):
            for i, node in enumerate(cluster.nodes):
                cluster.update(
                    node,
                    advertised_host=f"10.0.0.{i + 1}",
                    advertised_port=5433,
                    public_ip=node.host,
                )
        urls = [
            make_conninfo(
                cluster.conninfo(),
                **{"application_name": "apart"},
            )
            for cluster in (one, two)
        ]
        maps = [
            ",".join(
                f"10.0.0.{i + 1}:5433={node.host}:{node.port}"
                for i, node in enumerate(cluster.nodes)
            )
            for cluster in (one, two)
        ]
        held = [
            ybsmart.connect(url, load_balance=True, address_map=addresses)
            for url, addresses in zip(urls * 4, maps * 4, strict=True)
        ]

        assert ybsmart.connection_counts(urls[0]) == {"10.0.0.1:5433": 2, "10.0.0.2:5433": 2}
        assert ybsmart.connection_counts() == {"10.0.0.1:5433": 4, "10.0.0.2:5433": 4}
        assert by_server(one, "apart") == by_server(two, "apart") == [2, 2]
        close(held[::2])
        assert sum(ybsmart.connection_counts(urls[0]).values()) == 0
        assert sum(ybsmart.connection_counts(urls[1]).values()) == 4
        close(held[1::2])


def test_nodes_on_one_address_with_ports_of_their_own_are_nodes(own_cluster: LocalCluster) -> None:
    ports = [Forwarder(node.host, node.port) for node in own_cluster.nodes]
    try:
        own_cluster.discovery(columns=8)
        for node, port in zip(own_cluster.nodes, ports, strict=True):
            own_cluster.update(node, advertised_host=port.host, advertised_port=port.port)
        url = own_cluster.conninfo(load_balance=True, application_name="ports")

        held = [ybsmart.connect(url) for _ in range(12)]

        assert by_server(own_cluster, "ports") == [4, 4, 4]
        assert sorted(ybsmart.connection_counts()) == sorted(f"127.0.0.1:{p.port}" for p in ports)
        close(held)
    finally:
        for port in ports:
            port.close()


def test_threads_that_start_while_a_node_joins(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True)
    held: list[ybsmart.Connection[Any]] = []
    assert not in_threads(24, lambda: held.append(ybsmart.connect(url)))
    assert by_node(own_cluster) == [8, 8, 8]
    own_cluster.add("aws.us-west.us-west-2b")
    refresh(url)

    assert not in_threads(24, lambda: held.append(ybsmart.connect(url)))

    assert by_node(own_cluster) == [12, 12, 12, 12]
    assert by_server(own_cluster) == [12, 12, 12, 12]
    close(held)


def _in_child(url: str, held: Any, out: Any) -> None:
    before = ybsmart.connection_counts()
    conn = ybsmart.connect(url)
    mine = sum(ybsmart.connection_counts().values())
    conn.close()
    held.clear()
    gc.collect()
    out.put((before, mine, sum(ybsmart.connection_counts().values())))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_a_forked_child_starts_empty_and_leaves_the_parents_counts(
    cluster: LocalCluster, balanced: str
) -> None:
    held = [ybsmart.connect(balanced) for _ in range(3)]
    context = multiprocessing.get_context("fork")
    out = context.Queue()

    child = context.Process(target=_in_child, args=(balanced, [], out))
    child.start()
    answer = out.get(timeout=60)
    child.join(60)

    assert answer == ({}, 1, 0)
    assert child.exitcode == 0
    assert by_node(cluster) == [1, 1, 1]
    for conn in held:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    close(held)


def test_sixty_processes_with_one_connection_each_do_not_meet_on_one_node(
    cluster: LocalCluster, balanced: str
) -> None:
    hosts = set()
    for _ in range(60):
        registry.forget()  # as a fresh process starts: knowing nothing
        with ybsmart.connect(balanced) as conn:
            assert conn.node is not None
            hosts.add(conn.node.host)

    assert len(hosts) == 3  # misses one once in ten billion runs
