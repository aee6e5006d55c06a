"""What several test files here need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

import ybsmart
from ybsmart import ConnectionPool
from ybsmart.testing import LocalCluster


def by_node(cluster: LocalCluster) -> list[int]:
    """This process's own counts, in the order of the nodes."""
    counts = ybsmart.connection_counts()
    return [counts.get(f"{node.host}:{node.port}", 0) for node in cluster.nodes]


def by_server(cluster: LocalCluster, application_name: str | None = None) -> list[int]:
    """What the servers say."""
    return [cluster.sessions(node, application_name=application_name) for node in cluster.nodes]


def in_threads(count: int, action: Callable[[], object]) -> list[BaseException]:
    """Run an action in that many threads which start together; return what they raised."""
    start = threading.Barrier(count)
    errors: list[BaseException] = []

    def run() -> None:
        start.wait()
        try:
            action()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


class Queued:
    """A thread that asks the pool for a connection, and is known to be in the queue."""

    def __init__(self, pool: ConnectionPool[Any], timeout: float | None = 10) -> None:
        self.conn: Any = None
        self.error: BaseException | None = None
        before = pool.waiting_count
        self.thread = threading.Thread(target=self._run, args=(pool, timeout))
        self.thread.start()
        until(lambda: pool.waiting_count > before or not self.thread.is_alive())

    def _run(self, pool: ConnectionPool[Any], timeout: float | None) -> None:
        try:
            self.conn = pool.getconn(timeout)
        except BaseException as exc:
            self.error = exc

    def result(self) -> Any:
        self.thread.join(10)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.conn is not None
        return self.conn


def until(condition: Any, limit: float = 10) -> None:
    """Spin until something observable is so; for states that announce themselves to nobody."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


class Controlled(ybsmart.Connection[Any]):
    """Base of connection classes whose connects a test holds up, counts and lets fail: see
    `controlled`."""

    attempts = 0
    gate = threading.Event()
    error: Exception | None = None

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Any:
        cls.attempts += 1
        if not cls.gate.wait(10):
            raise AssertionError("nobody opened the gate")
        if cls.error is not None:
            raise cls.error
        return super().connect(*args, **kwargs)


def controlled() -> type[Controlled]:
    """A class of its own: `gate` holds connects up while it is clear, `error` fails them."""
    gate = threading.Event()
    gate.set()
    return type("Mine", (Controlled,), {"attempts": 0, "gate": gate, "error": None})


def pid(conn: psycopg.Connection[Any]) -> int:
    """The server process of a connection: who it is, whatever object it is in."""
    return conn.info.backend_pid


def kill_backend(conn: psycopg.Connection[Any]) -> None:
    """End the connection's session from the server's side, and wait until it is gone."""
    place = f"host={conn.info.host} port={conn.info.port} user={conn.info.user}"
    password, dbname = conn.info.password, conn.info.dbname
    with psycopg.connect(place, password=password, dbname=dbname, autocommit=True) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid(conn)]).fetchone() == (
            True,
        )
