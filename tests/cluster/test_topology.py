"""What `yb_servers()` says, and how a test changes it."""

from __future__ import annotations

import threading
import time

import psycopg
import psycopg.errors
import pytest

from tests.cluster.support import (
    busy,
    discover,
    refused,
)
from tests.servers import NET
from ybsmart.testing import LocalCluster


def test_a_node_that_is_added_is_listed_until_it_is_removed(cluster: LocalCluster) -> None:
    added = cluster.add(node_type="read_replica", public_ip="192.0.2.7")
    assert cluster.nodes[3] is added
    assert (added.host, added.port) == (f"{NET}.4", cluster.nodes[0].port)
    assert added.placement == "aws.us-west.us-west-2b"
    for node in cluster.nodes:
        row = discover(cluster.conninfo(node))[3]
        assert row["host"] == f"{NET}.4"
        assert row["node_type"] == "read_replica"
        assert row["public_ip"] == "192.0.2.7"
        assert row["uuid"] == added.uuid
    with psycopg.connect(cluster.conninfo(added)) as conn:
        cluster.remove(added)
        with pytest.raises(psycopg.errors.AdminShutdown):
            conn.execute("SELECT 1")
    assert added.state == "stopped"
    assert refused(added)
    assert len(cluster.nodes) == len(discover(cluster.conninfo())) == 3
    with pytest.raises(ValueError, match=r"^node "):
        cluster.start(added)
    # A new node is never mistaken for one that left.
    assert cluster.add().host == f"{NET}.5"
    cluster.pause(0)
    cluster.remove(0)
    cluster.kill(0)
    cluster.remove(0)
    assert [row["host"] for row in discover(cluster.conninfo())] == [f"{NET}.3", f"{NET}.5"]
    cluster.remove(1)
    with pytest.raises(ValueError, match="last"):
        cluster.remove(0)


def test_add_passes_over_an_address_in_use() -> None:
    with (
        LocalCluster(1, port=15997, first_address=f"{NET}.1") as cluster,
        busy(f"{NET}.2", 15997),
    ):
        assert cluster.add().host == f"{NET}.3"


def test_update_changes_what_is_said_and_nothing_else(cluster: LocalCluster) -> None:
    node = cluster.nodes[1]
    pid = node.pid
    cluster.update(
        node,
        placement="gcp.eu.b",
        node_type="read_replica",
        public_ip="n2.example.org",
        advertised_host="10.0.0.2",
        advertised_port=6433,
    )
    for uri in map(cluster.conninfo, cluster.nodes):
        row = discover(uri)[1]
        assert [row[name] for name in ("cloud", "region", "zone")] == ["gcp", "eu", "b"]
        assert (row["host"], row["port"]) == ("10.0.0.2", 6433)
        assert (row["node_type"], row["public_ip"]) == ("read_replica", "n2.example.org")
    assert (node.cloud, node.region, node.zone) == ("gcp", "eu", "b")
    assert (node.host, node.pid) == (f"{NET}.2", pid)
    cluster.update(1, listed=False)
    assert [row["host"] for row in discover(cluster.conninfo(1))] == [f"{NET}.1", f"{NET}.3"]
    assert len(cluster.nodes) == 3
    cluster.update(1, listed=True)
    assert len(discover(cluster.conninfo())) == 3


def test_yb_servers_can_be_made_slow_wrong_or_empty(cluster: LocalCluster) -> None:
    cluster.discovery(delay=1.5)
    start = time.monotonic()
    assert len(discover(cluster.conninfo(1))) == 3
    assert time.monotonic() - start >= 1.5
    cluster.discovery(error="100% 'broken'")
    for node in cluster.nodes:
        with pytest.raises(psycopg.errors.RaiseException, match=r"^100% 'broken'"):
            discover(cluster.conninfo(node))
    cluster.discovery(empty=True)
    assert discover(cluster.conninfo(2)) == []
    cluster.discovery(delay=600)
    cluster.discovery()
    assert len(discover(cluster.conninfo(2))) == 3


def test_discovery_columns_reach_nodes_that_come_back(cluster: LocalCluster) -> None:
    cluster.kill(1)
    cluster.pause(2)
    cluster.discovery(columns=9)
    cluster.start(1)
    cluster.resume(2)
    for node in cluster.nodes:
        assert len(discover(cluster.conninfo(node))[0]) == 9
        uri = cluster.conninfo(node).removesuffix("yugabyte") + "postgres"
        assert len(discover(uri)[0]) == 9
    cluster.discovery()
    for node in cluster.nodes:
        assert len(discover(cluster.conninfo(node))[0]) == 10


def test_no_call_sees_half_a_topology(cluster: LocalCluster) -> None:
    done = threading.Event()

    def flicker() -> None:
        while not done.is_set():
            cluster.update(0, public_ip="x" * 50_000)
            cluster.update(0, public_ip="")

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        with psycopg.connect(cluster.conninfo(), autocommit=True) as conn:
            lengths = [
                conn.execute("SELECT length(public_ip) FROM yb_servers()").fetchall()[0][0]
                for _ in range(500)
            ]
    finally:
        done.set()
        thread.join()
    assert set(lengths) == {0, 50_000}
