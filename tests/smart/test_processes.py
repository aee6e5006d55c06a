"""Several processes: each starts from nothing, and together they still spread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import ybsmart
from tests.smart.conftest import NewClient
from tests.support import until
from ybsmart.testing import LocalCluster

ONE_CONNECTION = """
import sys, ybsmart
conn = ybsmart.connect(sys.argv[1])
print(conn.node.host, flush=True)
sys.stdin.read()
"""


def test_twenty_fresh_processes_with_one_connection_each_are_not_all_on_one_node(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    url = three.conninfo(load_balance=True, application_name=app.name)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_CONNECTION, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(20)
    ]
    try:
        where = Counter(p.stdout.readline().strip() for p in processes if p.stdout is not None)
        assert sum(where.values()) == 20
        # At random, one node in 100 000 runs would have seventeen.
        assert max(where.values()) < 17
        until(app.sessions, [where[node.host] for node in three.nodes])
    finally:
        for process in processes:
            process.communicate()


IMPORT = """
import logging, psycopg
before = dir(logging.Logger), logging.getLevelName(5), psycopg.connect, psycopg.Connection.connect
import ybsmart
after = dir(logging.Logger), logging.getLevelName(5), psycopg.connect, psycopg.Connection.connect
assert after == before, "changed"
assert issubclass(ybsmart.Connection, psycopg.Connection)
assert not psycopg.__file__.startswith(ybsmart.__path__[0])
"""


def test_importing_it_changes_nothing_of_logging_or_of_psycopg() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


def in_child(action: Callable[[], Any]) -> Any:
    """What an action returns in a forked child of this process."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        try:
            answer: Any = action()
        except BaseException as exc:
            answer = f"{type(exc).__name__}: {exc}"
        try:
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@needs_fork
def test_a_forked_child_starts_from_nothing_and_changes_nothing_of_its_parents(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(6)

    def child() -> Any:
        at_first = ybsmart.connection_counts()
        mine = [ybsmart.connect(app.url, **app.params) for _ in range(6)]
        counts = app.counts()
        for conn in mine:
            conn.close()
        return [at_first, counts, app.counts()]

    assert in_child(child) == [{}, [2, 2, 2], [0, 0, 0]]

    app.check([2, 2, 2])
    for conn in app.held:
        assert conn.execute("SELECT 1").fetchone() == (1,)


@needs_fork
def test_a_child_that_drops_or_closes_its_parents_connections_leaves_them_to_the_parent(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(6)

    def child() -> Any:
        # psycopg leaves a connection of another process alone when it is collected.
        app.held.clear()
        return app.counts()

    assert in_child(child) == [0, 0, 0]

    app.check([2, 2, 2])
    for conn in app.held:
        assert conn.execute("SELECT 1").fetchone() == (1,)


@needs_fork
def test_four_children_at_once_each_spread_their_own(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(3)

    def child() -> Any:
        conns = [ybsmart.connect(app.url, **app.params) for _ in range(3)]
        counts = app.counts()
        for conn in conns:
            conn.close()
        return counts

    assert [in_child(child) for _ in range(4)] == [[1, 1, 1]] * 4
    app.check([1, 1, 1])
