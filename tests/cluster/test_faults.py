"""Nodes that are killed, paused, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import psycopg
import psycopg.errors
import pytest

from tests.cluster.support import (
    STARTUP,
    discover,
    family,
    linux_only,
    mentioning,
    refused,
)
from tests.programs import live_processes
from tests.support import until
from ybsmart.testing import LocalCluster


@linux_only
def test_kill_leaves_no_process_and_refuses(cluster: LocalCluster) -> None:
    node = cluster.nodes[1]
    conns = [psycopg.connect(cluster.conninfo(node), autocommit=True) for _ in range(5)]
    conns[0].execute("CREATE TABLE t AS SELECT 42 AS x")
    before = family(node.pid)
    assert len(before) > 5
    cluster.kill(node)
    assert not before & set(live_processes())
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
        assert not processes & set(live_processes())
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
        until(lambda: node.state == "stopped")
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
