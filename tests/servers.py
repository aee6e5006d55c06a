"""What tests of several folders ask of real servers, and do to their sessions."""

from __future__ import annotations

import gc
import os
from typing import Any

import psycopg

import ybsmart
from tests.support import until
from ybsmart.testing import LocalCluster

# Addresses of this process's own: other runs on the same machine use the default ones.
NET = f"127.{20 + os.getpid() // 200 % 200}.{20 + os.getpid() % 200}"


def assert_nothing_counts() -> None:
    """That no connection of this process is left, not even one that was dropped.

    What was on its way to a pool that has been closed meanwhile may take a moment to go; so may,
    without the GIL, what one thread dropped and another made.
    """

    def are_none_left() -> bool:
        gc.collect()
        return set(ybsmart.connection_counts().values()) <= {0}

    until(are_none_left)


def by_node(cluster: LocalCluster) -> list[int]:
    """This process's own counts, in the order of the nodes."""
    counts = ybsmart.connection_counts()
    return [counts.get(f"{node.host}:{node.port}", 0) for node in cluster.nodes]


def by_server(cluster: LocalCluster, application_name: str | None = None) -> list[int]:
    """What the servers say."""
    return [cluster.sessions(node, application_name=application_name) for node in cluster.nodes]


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
