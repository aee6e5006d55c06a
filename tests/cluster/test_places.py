"""Where the servers are to be reached: addresses, ports, passwords."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import psycopg.errors
import pytest

from tests.cluster.support import (
    busy,
    discover,
    linux_only,
    refused,
)
from tests.servers import NET
from ybsmart.testing import LocalCluster
from ybsmart.testing import home as home_module
from ybsmart.testing import places as places_module


def test_conninfo_names_a_node_and_carries_parameters(cluster: LocalCluster) -> None:
    port = cluster.nodes[0].port
    base = f"postgresql://yugabyte:yugabyte@{NET}.%d:{port}/yugabyte"
    assert cluster.conninfo() == base % 1
    assert cluster.conninfo(cluster.nodes[1]) == base % 2
    assert cluster.conninfo(2) == base % 3
    assert cluster.conninfo(load_balance=True) == base % 1 + "?load_balance=true"
    keys = "aws.us-west.*:1,a&b=c d/%"
    uri = cluster.conninfo(1, load_balance=False, topology_keys=keys, connect_timeout=3)
    assert parse_qs(urlsplit(uri).query) == {
        "load_balance": ["false"],
        "topology_keys": [keys],
        "connect_timeout": ["3"],
    }
    assert re.fullmatch(r"[\w.~%&=-]+", urlsplit(uri).query)
    with psycopg.connect(
        cluster.conninfo(1, application_name="a b&c=%/+", options="-c jit=on")
    ) as conn:
        row = conn.execute("SELECT current_setting('application_name'), current_setting('jit')")
        assert row.fetchone() == ("a b&c=%/+", "on")


def test_a_wrong_password_is_refused(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        wrong = cluster.conninfo(node).replace(":yugabyte@", ":wrong@")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(cluster.conninfo(node).replace(":yugabyte@", "@"), passfile="/nowhere")


def test_the_port_is_5433_only_where_it_is_free_on_every_address() -> None:
    first = f"{NET}.1"
    with LocalCluster(2, first_address=first) as cluster:
        assert {node.port for node in cluster.nodes} == {5433}
    with busy(f"{NET}.2", 5433), LocalCluster(2, first_address=first) as cluster:
        (port,) = {node.port for node in cluster.nodes}
        assert port != 5433
        # Outgoing connections must not be able to take it while a node is down.
        low, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        assert port < int(low)


def test_a_given_port_is_used_or_refused() -> None:
    with LocalCluster(2, port=15999, first_address=f"{NET}.1") as cluster:
        assert [node.port for node in cluster.nodes] == [15999, 15999]
        with pytest.raises(OSError, match=rf"15999 is taken on {NET}\.2"):
            LocalCluster(2, port=15999, first_address=f"{NET}.2")


def test_a_port_lost_to_another_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    free, lies = places_module._is_free, iter([True, True])
    with busy(f"{NET}.2", 5433):
        monkeypatch.setattr(
            places_module, "_is_free", lambda *place: next(lies, None) or free(*place)
        )
        with LocalCluster(2, first_address=f"{NET}.1") as cluster:
            (port,) = {node.port for node in cluster.nodes}
            assert port != 5433
            assert len(discover(cluster.conninfo(1))) == 2
            with socket.socket() as probe:
                assert probe.connect_ex((f"{NET}.1", 5433)) != 0


def test_two_clusters_side_by_side() -> None:
    with (
        LocalCluster(2, port=15998, first_address=f"{NET}.1") as one,
        LocalCluster(2, port=15998, first_address=f"{NET}.11") as two,
    ):
        assert [row["host"] for row in discover(one.conninfo(1))] == [f"{NET}.1", f"{NET}.2"]
        assert [row["host"] for row in discover(two.conninfo(1))] == [f"{NET}.11", f"{NET}.12"]
        assert one.universe_uuid != two.universe_uuid
        one.kill(0)
        assert len(discover(two.conninfo(0))) == 2
        one.close()
        assert len(discover(two.conninfo(0))) == 2


@linux_only
def test_the_place_of_a_node_that_is_down_stays_its_own() -> None:
    elsewhere = f"""if True:
        from ybsmart.testing import LocalCluster
        with LocalCluster(1, first_address="{NET}.2") as cluster:
            print(cluster.nodes[0].port)
    """

    def others_port() -> int:
        done = subprocess.run(
            [sys.executable, "-c", elsewhere], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    with LocalCluster(2, first_address=f"{NET}.1") as cluster:
        port = cluster.nodes[0].port
        cluster.kill(1)
        assert others_port() != port
        with pytest.raises(OSError, match=rf"{port} is taken on {NET}\.2"):
            LocalCluster(1, port=port, first_address=f"{NET}.2")
        cluster.start(1)
    assert port == others_port() == 5433


def test_closing_the_first_cluster_spares_the_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_module.home()
    monkeypatch.setattr(home, "_clusters", 7000)
    with LocalCluster(1, first_address=f"{NET}.1") as first:
        monkeypatch.setattr(home, "_clusters", 70009)
        with LocalCluster(1, first_address=f"{NET}.11") as tenth:
            assert tenth._folder.startswith(first._folder)
            first.close()
            assert len(discover(tenth.conninfo())) == 1


def test_two_threads_start_clusters_at_once() -> None:
    clusters: list[LocalCluster] = []
    threads = [
        threading.Thread(target=lambda: clusters.append(LocalCluster(2, first_address=f"{NET}.1")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({cluster.nodes[0].port for cluster in clusters}) == 3
    for cluster in clusters:
        assert len(discover(cluster.conninfo(1))) == 2
        cluster.close()


def test_one_address_and_several_ports_where_there_are_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = places_module._is_free

    def like_macos(host: str, port: int) -> bool:
        if host != "127.0.0.1":
            raise OSError(49 if sys.platform == "darwin" else 99, "no such address")
        return free(host, port)

    monkeypatch.setattr(places_module, "_is_free", like_macos)
    with LocalCluster() as cluster:
        cluster.add()
        assert {node.host for node in cluster.nodes} == {"127.0.0.1"}
        assert len({node.port for node in cluster.nodes}) == 4
        for node in cluster.nodes:
            places = [(row["host"], row["port"]) for row in discover(cluster.conninfo(node))]
            assert places == [(other.host, other.port) for other in cluster.nodes]
        cluster.kill(1)
        assert refused(cluster.nodes[1])
        assert [node.state for node in cluster.nodes].count("running") == 3
