"""Outage after outage, and everything at random: nothing is lost, and nothing grows.

A few seconds each; `-m long` takes the long forms, minutes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.client import Load
from tests.faults.support import audit, fill, soon, spread
from tests.support import until
from ybsmart import ConnectionPool, PoolTimeout
from ybsmart.testing import LocalCluster

MakePool = Callable[..., ConnectionPool]


def also_long(short: int, long: int) -> list[Any]:
    return [short, pytest.param(long, marks=pytest.mark.long)]


@pytest.fixture(autouse=True)
def nothing_logged() -> Iterator[None]:
    """pytest keeps what is logged, and with it the connections that it is about."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


class Footprint:
    """What this process has: descriptors, threads, and memory in MB."""

    def __init__(self) -> None:
        gc.collect()
        self.files = len(os.listdir("/proc/self/fd"))
        self.threads = threading.active_count()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def __repr__(self) -> str:
        return f"{self.files} descriptors, {self.threads} threads, {self.memory:.1f} MB"


on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@on_linux
@pytest.mark.parametrize("cycles", also_long(8, 1000))
def test_outages_one_after_the_other_leave_nothing_behind(
    own_cluster: LocalCluster, make_pool: MakePool, capsys: pytest.CaptureFixture[str], cycles: int
) -> None:
    """A node is killed and started again, with somebody on it each time."""
    faulthandler.cancel_dump_traceback_later()  # a thousand times take longer than a test may
    pool = make_pool()
    errors: Counter[str] = Counter()
    lots = random.Random(1)
    early: Footprint | None = None
    fill(pool)
    for cycle in range(cycles):
        victim = lots.randrange(3)
        own_cluster.kill(victim)
        for _ in range(12):
            try:
                pool.query("SELECT 1", retry=True)
            except psycopg.OperationalError as exc:
                errors[str(exc).split("\n")[0]] += 1
        own_cluster.start(victim)
        # All twelve can be had, wherever.
        fill(pool)
        pool._check_invariants()
        if cycle == cycles // 5:
            early = Footprint()
    soon(lambda: sorted(spread(pool, own_cluster)) == [4, 4, 4], pool)
    assert not errors
    audit(pool, own_cluster)
    late = _at_rest()
    assert early is not None
    with capsys.disabled():
        print(f"\n{cycles} outages: {early} after a fifth of them, {late} at the end")
    assert late.files <= early.files + 8
    assert late.memory <= early.memory + 8 + cycles / 200


def _at_rest() -> Footprint:
    """Once the connectors have ended, which nobody waits for."""
    until(lambda: not [t for t in threading.enumerate() if t.name.endswith("-connect")])
    return Footprint()


class Trouble:
    """Everything that may happen to a pool and its cluster, at random. One thing at a time."""

    def __init__(self, pool: ConnectionPool, cluster: LocalCluster, seed: int) -> None:
        self.pool, self.cluster, self.lots = pool, cluster, random.Random(seed)
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        what = self.lots.choice(
            [
                *(self.kill, self.stop, self.pause, self.unlist, self.resize, self.drain),
                *(self.evict, self.cancel, self.terminate, self.check, self.drop),
            ]
        )
        self.done[what.__name__] += 1
        what()

    def _node(self) -> Any:
        return self.lots.choice(self.cluster.nodes)

    def _pause(self) -> None:
        time.sleep(self.lots.uniform(0.0, 0.3))

    def kill(self) -> None:
        node = self._node()
        self.cluster.kill(node)
        self._pause()
        self.cluster.start(node)

    def stop(self) -> None:
        node = self._node()
        self.cluster.stop(node)
        self._pause()
        self.cluster.start(node)

    def pause(self) -> None:
        node = self._node()
        self.cluster.pause(node)
        self._pause()
        self.cluster.resume(node)

    def unlist(self) -> None:
        node = self._node()
        self.cluster.update(node, listed=False)
        self._pause()
        self.cluster.update(node, listed=True)

    def resize(self) -> None:
        least = self.lots.choice([0, 0, 2])
        self.pool.resize(least, self.lots.randrange(max(least, 3), 16))

    def drain(self) -> None:
        self.pool.drain()

    def evict(self) -> None:
        with contextlib.suppress(ValueError):  # it has no connection there yet
            node = self._node()
            self.pool.evict(f"{node.host}:{node.port}")

    def cancel(self) -> None:
        self._on_a_server("pg_cancel_backend")

    def terminate(self) -> None:
        self._on_a_server("pg_terminate_backend")

    def _on_a_server(self, function: str) -> None:
        sql = (
            f"SELECT {function}(pid) FROM pg_stat_activity WHERE application_name = 'faults'"
            " ORDER BY random() LIMIT 3"
        )
        with contextlib.suppress(psycopg.Error):
            self.cluster.execute(self._node(), sql)

    def check(self) -> None:
        self.pool.check()

    def drop(self) -> None:
        """Somebody forgets to return one."""
        with contextlib.suppress(psycopg.Error):
            self.pool.getconn(0.2)


@on_linux
@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seconds", also_long(5, 60))
def test_after_everything_at_random_all_books_agree(
    own_cluster: LocalCluster,
    make_pool: MakePool,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    seconds: int,
) -> None:
    """The pool's, its process's counts, the servers' own, and what the system has."""
    pool = make_pool(timeout=20)
    fill(pool)
    before = Footprint()
    trouble = Trouble(pool, own_cluster, int(request.config.option.hypothesis_seed))
    users = Load(pool, 12, "short transaction query retried run_transaction")
    users.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            trouble.strike()
            time.sleep(trouble.lots.uniform(0.0, 0.2))
    finally:
        requests = users.stop(60.0)
    failed = Counter(r.error.split(":")[0] for r in requests if r.error)
    assert set(failed) <= {"OperationalError", "AdminShutdown", "QueryCanceled", "Unreachable",
                           "CannotConnectNow", "ConnectionTimeout", "InterfaceError"}  # fmt: skip
    assert not [r for r in requests if "still waiting" in r.error]
    assert PoolTimeout.__name__ not in failed
    # It works again, for all, at once.
    pool.resize(0, 12)
    gc.collect()
    soon(lambda: _fills(pool), pool)
    soon(lambda: sorted(spread(pool, own_cluster)) == [4, 4, 4], pool)
    audit(pool, own_cluster)
    after = _at_rest()
    happened = ", ".join(f"{name} {count}" for name, count in sorted(trouble.done.items()))
    with capsys.disabled():
        print(
            f"\n{seconds} s at random ({happened}): {len(requests)} requests, failed: "
            f"{dict(failed)}; {before} before, {after} after"
        )
    assert after.files <= before.files + 8
    assert after.memory <= before.memory + 16 + len(requests) / 2500
    pool.close()
    until(lambda: Footprint().files <= before.files)


def _fills(pool: ConnectionPool) -> bool:
    try:
        fill(pool)
    except psycopg.OperationalError:
        return False
    return True
