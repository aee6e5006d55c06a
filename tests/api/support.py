"""What several test files here need."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeVar, cast

import psycopg

import ybsmart
from tests.support import until
from ybsmart import ConnectionPool, registry
from ybsmart.cluster import Cluster
from ybsmart.request import request_of

CT = TypeVar("CT", bound=psycopg.Connection[Any])


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


def until_none_runs(name: str) -> None:
    """Until no thread of this name is left."""
    until(lambda: all(thread.name != name for thread in threading.enumerate()))


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


def the_only(pool: ConnectionPool[CT]) -> CT:
    """The connection of a pool that has one, which nobody has borrowed."""
    (conn,) = pool._idle_conns()
    return cast(CT, conn)


def close(connections: Iterable[ybsmart.Connection[Any]]) -> None:
    """Close them all."""
    for conn in connections:
        conn.close()


def states() -> list[str]:
    """What the process thinks of the nodes of its only cluster."""
    (info,) = ybsmart.clusters()
    return [node.state for node in info.nodes]


def the_cluster() -> Cluster:
    """The only cluster that the process knows, as the package has it."""
    (known,) = registry._clusters
    return known


def refresh(url: str) -> None:
    """A refresh now, and its end."""
    known = the_cluster()
    known.upkeep._not_before = 0.0
    completion = known.upkeep.refresh_if_due(0, request_of(url, {}))
    assert completion is not None
    completion.wait(60)
    assert completion.is_over


def interrupted(action: Callable[[], object], moment: int, *modules: str) -> bool:
    """Do something, with an interrupt before the line of these modules that it comes to as the
    `moment`-th.

    Whether it came; anything else that the action raises instead is raised.
    """

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal moment
        if frame.f_globals.get("__name__") not in modules:
            return None
        if event == "line":
            moment -= 1
            if moment == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False
