"""What the scenarios are told in: connections that are held, and both sides' count of them.

Sees the driver as an application does, through its public names only, and the servers through
`LocalCluster`, whose SQL does not go through the driver.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.support import in_threads, until
from ybsmart.testing import LocalCluster, LocalNode

_numbers = itertools.count(1)


def address(node: LocalNode) -> str:
    """The name that a node goes by in `connection_counts()`."""
    return f"{node.advertised_host}:{node.advertised_port}"


def states(cluster: LocalCluster) -> list[str | None]:
    """What the driver thinks of each node; None where it has not heard of it."""
    known = {n.address: n.state for info in ybsmart.clusters() for n in info.nodes}
    return [known.get(address(node)) for node in cluster.nodes]


def sessions_so_far(cluster: LocalCluster) -> list[int]:
    """How many sessions each running node has ever had, by its own statistics.

    A session is in there once it has ended, or has been idle for a moment.
    """
    sql = "SELECT sessions FROM pg_stat_database WHERE datname = 'yugabyte'"
    return [
        cluster.execute(node, sql)[0][0] if node.state == "running" else 0 for node in cluster.nodes
    ]


class Client:
    """An application with connections to one cluster; those it opens stay open until closed.

    Contacts one node, or the hosts in `params`, and balances over all unless told otherwise.
    """

    def __init__(self, cluster: LocalCluster, contact: LocalNode | int = 0, **params: Any) -> None:
        self.cluster = cluster
        self.name = f"client-{next(_numbers)}"
        self.url = cluster.conninfo(contact)
        self.params: dict[str, Any] = {
            "load_balance": True,
            "application_name": self.name,
            "connect_timeout": 10,
            **params,
        }
        self.held: list[ybsmart.Connection[Any]] = []

    def connect(self, **params: Any) -> ybsmart.Connection[Any]:
        """Open one connection more."""
        conn = ybsmart.connect(self.url, **{**self.params, **params})
        self.held.append(conn)
        return conn

    def open(self, count: int, **params: Any) -> None:
        """Open so many connections more."""
        for _ in range(count):
            self.connect(**params)

    def open_in_threads(self, count: int) -> None:
        """The same, from as many threads which start together."""
        errors = in_threads(count, self.connect)
        assert not errors

    def touch(self, **params: Any) -> bool:
        """Open a connection and close it again, so that the driver knows the cluster.

        Whether it went to a node that the cluster lists.
        """
        with ybsmart.connect(self.url, **{**self.params, **params}) as conn:
            return conn.node is not None

    def touch_until(self, what: Callable[[], object], expected: object) -> None:
        """Let requests go on until something has come about."""
        until(lambda: (self.touch(), what())[1], expected)

    def close(self) -> None:
        """Close all connections."""
        while self.held:
            self.held.pop().close()

    def close_broken(self) -> None:
        """Close those whose server is gone, after noticing it as applications do: by using them."""
        running = {address(n) for n in self.cluster.nodes if n.state == "running"}
        gone = [c for c in self.held if c.node is not None and c.node.address not in running]
        for conn in gone:
            with pytest.raises(psycopg.OperationalError):
                conn.execute("SELECT 1")
            conn.close()
            self.held.remove(conn)

    def counts(self) -> list[int]:
        """The driver's count for each node."""
        counts = ybsmart.connection_counts()
        return [counts.get(address(node), 0) for node in self.cluster.nodes]

    def nodes(self) -> list[int]:
        """The same by the connections' own word."""
        where = Counter(conn.node.address for conn in self.held if conn.node is not None)
        return [where[address(node)] for node in self.cluster.nodes]

    def sessions(self) -> list[int]:
        """The same by the servers' word; a stopped one has none."""
        return [
            self.cluster.sessions(node, application_name=self.name)
            if node.state == "running"
            else 0
            for node in self.cluster.nodes
        ]

    def check(self, expected: Sequence[int], *, alive: Sequence[int] | None = None) -> None:
        """All three agree on this spread. `alive`: on the servers, where some have been cut."""
        assert self.counts() == list(expected)
        assert self.nodes() == list(expected)
        # A server takes some milliseconds to end a session, which includes the driver's own.
        until(self.sessions, list(expected if alive is None else alive))

    def spread(self, count: int, expected: Sequence[int], **params: Any) -> None:
        """Open so many connections, find them where expected, and close them."""
        self.open(count, **params)
        self.check(expected)
        self.close()
        assert self.counts() == [0] * len(expected)

    def until(self, node: LocalNode, state: str) -> None:
        """Let requests go on until the driver has noticed that a node is up or down."""

        self.touch_until(lambda: states(self.cluster)[self.cluster.nodes.index(node)], state)


def stop(cluster: LocalCluster, *numbers: int) -> None:
    """Stop nodes, counted from 1 as in the documents."""
    for number in numbers:
        cluster.kill(number - 1)
