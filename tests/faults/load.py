"""The faults, one by one, under load: what users of a pool would have seen.

Starts a cluster of three servers, a client on it (see client.py), lets a fault happen and pass, and
works out what became of the requests and how the connections were spread afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.client import Request
from tests.support import until
from ybsmart.testing import LocalCluster, LocalNode

SIZE, THREADS = 12, 16
NAME = "load"  # by which the servers know the client's sessions

Step = Callable[[LocalCluster], object]

_TABLE = f"ybsmart_{os.getpid()}"  # of packet filters
_filtering: list[subprocess.Popen[str]] = []


@dataclass(frozen=True)
class Fault:
    """What happens to the cluster. Node 1 is the victim; the client was given node 0."""

    name: str
    begins: Step
    ends: Step
    lasts: float
    """Seconds from the one to the other."""
    everywhere: bool = False
    """Every node is a victim."""

    @property
    def harmless(self) -> bool:
        """No request has a reason to fail."""
        return self.name in ("drained", "added")


def _restart(cluster: LocalCluster) -> None:
    cluster.stop(1)
    cluster.start(1)


def _roll(cluster: LocalCluster) -> None:
    for i in range(len(cluster.nodes)):
        cluster.stop(i)
        cluster.start(i)
        time.sleep(1.0)


def _nothing(cluster: LocalCluster) -> None:
    pass


def drop(node: LocalNode, ways: str = "ds") -> None:
    """Nothing that is sent to the node (`d`), or by it (`s`), arrives, and nothing is said about
    it, until `let_pass`.

    Or until this process ends, however that comes: the filters are those of another one, which ends
    with its input, and the kernel removes them with their owner. Otherwise they would be there for
    the next cluster at these addresses.
    """
    process = subprocess.Popen(
        ["nft", "-i"],
        env={**os.environ, "HOME": "/nowhere"},  # where it would leave a history of commands
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    _filtering.append(process)
    rules = [f"ip {w}addr {node.host} tcp {w}port {node.port} drop" for w in ways]
    assert process.stdin is not None
    process.stdin.write(f"add table inet {_TABLE} {{ flags owner ; }}\n")
    process.stdin.write(f"add chain inet {_TABLE} in {{ type filter hook input priority 0 ; }}\n")
    process.stdin.writelines(f"add rule inet {_TABLE} in {rule}\n" for rule in rules)
    process.stdin.flush()
    until(lambda: all(rule in _nft(f"list table inet {_TABLE}") for rule in rules))


def let_pass() -> None:
    """End what `drop` has begun."""
    while _filtering:
        _filtering.pop().communicate()


def _nft(command: str) -> str:
    """What it prints; nothing if it fails."""
    return subprocess.run(
        ["nft", *command.split()],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout


def can_drop() -> bool:
    """Whether there are packet filters to be had: root's, with nftables."""
    if shutil.which("nft") is None:
        return False
    command = f"add table inet {_TABLE}_probe {{ flags owner ; }}"
    return subprocess.run(["nft", command], check=False, capture_output=True).returncode == 0


FAULTS = (
    Fault("killed", lambda c: c.kill(1), lambda c: c.start(1), 6.0),
    Fault("stopped", lambda c: c.pause(1), lambda c: c.resume(1), 15.0),
    Fault("black-holed", lambda c: drop(c.nodes[1]), lambda c: let_pass(), 20.0),
    Fault("restarted", _restart, _nothing, 0.0),
    Fault("all restarted", _roll, _nothing, 0.0, everywhere=True),
    Fault("drained", lambda c: c.update(1, listed=False), lambda c: c.update(1, listed=True), 6.0),
    Fault("added", lambda c: c.add(), _nothing, 0.0),
)
BY_NAME = {fault.name: fault for fault in FAULTS}


@dataclass
class Outcome:
    """What was seen, on the monotonic clock."""

    fault: Fault
    requests: list[Request]
    began: float
    """The fault, as `Fault.begins` was called."""
    begun: float
    """... and when it had returned."""
    ended: float
    """The node was there again."""
    spread: list[tuple[float, list[int]]]
    """Sessions by node, as the servers say."""
    victims: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if request.error]

    @property
    def longest(self) -> float:
        return max(request.seconds for request in self.requests)

    @property
    def even_after(self) -> float | None:
        """Seconds from the end of the fault until the connections were even for good: no two nodes
        differ by more than one. None: they were not at the end."""
        uneven = [at for at, counts in self.spread if max(counts) - min(counts) > 1]
        if not self.spread or (uneven and uneven[-1] == self.spread[-1][0]):
            return None
        return max(0.0, uneven[-1] - self.ended) if uneven else 0.0

    @property
    def empty_after(self) -> float | None:
        """Seconds from the beginning of the fault until the victim had no connection."""
        empty = [at for at, counts in self.spread if at > self.began and not counts[1]]
        return empty[0] - self.began if empty else None

    @property
    def final(self) -> list[int]:
        return self.spread[-1][1] if self.spread else []

    @property
    def slowest_second(self) -> float:
        """The fewest requests that ended well in any second from one second after the fault began,
        as a share of what was usual before it."""
        good = sorted(r.ended for r in self.requests if not r.error)
        first, last = self.began + 1.0, good[-1] - 1.0
        before = [at for at in good if at < self.began]
        usual = len(before) / max(self.began - before[0], 0.1) if before else 0.0
        if not usual or last <= first:
            return 0.0
        steps = int((last - first) / 0.25)
        counts = [
            sum(1 for at in good if first + i * 0.25 <= at < first + i * 0.25 + 1.0)
            for i in range(max(steps, 1))
        ]
        return min(counts) / usual


class Spread:
    """Asks the servers, every now and then, how many sessions the client has on each."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.seen: list[tuple[float, list[int]]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Spread:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            counts = self.now()
            if counts:
                self.seen.append((time.monotonic(), counts))

    def now(self) -> list[int]:
        """Empty while a node is paused or just starting."""
        try:
            return [
                self._cluster.sessions(node, application_name=NAME)
                if node.state != "stopped"
                else 0
                for node in self._cluster.nodes
            ]
        except (psycopg.Error, RuntimeError):
            return []


def unfold(
    cluster: LocalCluster, fault: Fault, *, before: float, after: float, even: bool = False
) -> tuple[float, float, float, list[tuple[float, list[int]]]]:
    """Let it happen; `after` seconds are watched afterwards, or until the connections are even."""
    with Spread(cluster) as spread:
        time.sleep(before)
        began = time.monotonic()
        fault.begins(cluster)
        begun = time.monotonic()
        time.sleep(fault.lasts)
        fault.ends(cluster)
        ended = time.monotonic()
        calm = 0
        while time.monotonic() < ended + after and not (even and calm >= 10):
            time.sleep(0.1)
            counts = spread.now() if even else []
            calm = calm + 1 if counts and max(counts) - min(counts) <= 1 else 0
    return began, begun, ended, spread.seen


@contextlib.contextmanager
def client(
    cluster: LocalCluster, contender: str, python: str, patience: float
) -> Iterator[Callable[[], list[Request]]]:
    """A client in a process of its own; what is yielded ends it and returns its requests."""
    first = cluster.nodes[0]
    hosts = ",".join(node.host for node in cluster.nodes)
    user = "user=yugabyte password=yugabyte dbname=yugabyte"
    setup: dict[str, Any] = {
        "conninfo": cluster.conninfo(0, application_name=NAME),
        "hosts": f"host={hosts} port={first.port} {user} application_name={NAME}",
        "size": SIZE,
        "threads": THREADS,
        "patience": patience,
    }
    program = str(Path(__file__).with_name("client.py"))
    process = subprocess.Popen(
        [python, program, contender, json.dumps(setup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output, asked = process.stdout, process.stdin

    def finish() -> list[Request]:
        asked.write("stop\n")
        asked.flush()
        return [Request(*request) for request in json.loads(output.read())]

    try:
        if output.readline() != "ready\n":
            raise RuntimeError(f"{contender} did not start")
        yield finish
    finally:
        process.kill()
        process.wait()
        asked.close()
        output.close()


def observe(
    fault: Fault,
    contender: str = "ybsmart",
    python: str = sys.executable,
    *,
    before: float = 3.0,
    after: float = 15.0,
) -> Outcome:
    """One fault, one contender, on a cluster of its own."""
    with LocalCluster() as cluster:
        victims = [n.host for n in cluster.nodes] if fault.everywhere else [cluster.nodes[1].host]
        with client(cluster, contender, python, patience=12.0) as finish:
            times = unfold(cluster, fault, before=before, after=after)
            requests = finish()
    return Outcome(fault, requests, *times, victims)
