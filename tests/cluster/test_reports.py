"""What the cluster tells of its servers: sessions, the answers to SQL, states."""

from __future__ import annotations

import contextlib
import socket

import psycopg
import psycopg.errors
import pytest

from tests.cluster.support import (
    STARTUP,
)
from tests.servers import NET
from tests.support import until
from ybsmart.testing import LocalCluster


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
    until(lambda: cluster.sessions(cluster.nodes[0]) == 0)


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


def test_sql_runs_on_one_node_as_a_superuser(cluster: LocalCluster) -> None:
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
