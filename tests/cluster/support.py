"""What the tests of `LocalCluster` look with: never at its word, but at the system's.

Processes, folders and memory segments are looked for by means other than the code under test.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psycopg
import psycopg.rows
import pytest

import ybsmart
from tests.programs import live_processes
from tests.support import until
from ybsmart.testing import LocalNode

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SOURCE = str(Path(ybsmart.__file__).parents[1])
PACKAGES = str(Path(psycopg.__file__).parents[1])


# The first message of a client.
STARTUP = b"user\0yugabyte\0database\0yugabyte\0\0"
STARTUP = struct.pack("!ii", len(STARTUP) + 8, 196608) + STARTUP


def discover(conninfo: str) -> list[dict[str, Any]]:
    with psycopg.connect(conninfo, row_factory=psycopg.rows.dict_row) as conn:
        return conn.execute("SELECT * FROM yb_servers()").fetchall()


def refused(node: LocalNode) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((node.host, node.port)) != 0


def family(pid: int | None) -> set[int]:
    """The live process and its children."""
    return {child for child, (parent, _) in live_processes().items() if pid in (child, parent)}


def whole_family(pid: int | None) -> set[int]:
    """The server and its children, once it has started those that it has when nobody is connected:
    it may be ready a moment before."""
    until(lambda: len(family(pid)) >= 4)
    return family(pid)


def mentioning(text: str) -> list[int]:
    """The live processes with this text in their command line or title."""
    return [pid for pid, (_, line) in live_processes().items() if text in line]


def segments() -> set[str]:
    """The System V memory segments of the machine."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def segments_of(folder: str) -> set[str]:
    """Those of the servers below the folder, by their own notes."""
    notes = Path(folder).glob("**/data/postmaster.pid")
    found = {note.read_text().splitlines()[6].split()[1] for note in notes}
    assert found <= segments()
    return found


def busy(host: str, port: int) -> socket.socket:
    blocker = socket.socket()
    blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    blocker.bind((host, port))
    blocker.listen(1)
    return blocker


SCRIPT = """
import json, os, pathlib, signal, subprocess, sys, time
from ybsmart.testing import LocalCluster
from ybsmart.testing.home import home as home_of_process
cluster = LocalCluster(2, first_address=sys.argv[1])
home = home_of_process()
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


def assert_gone(told: dict[str, Any]) -> None:
    until(lambda: not set(told["pids"]) & set(live_processes()))
    until(lambda: not any(map(os.path.exists, told["folders"])))
    assert told["segments"]
    assert not set(told["segments"]) & segments()
