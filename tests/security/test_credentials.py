"""Credentials that change while the program runs: nobody has to wait, no node is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.support import until
from ybsmart import ConnectionPool, registry
from ybsmart.testing import LocalCluster


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)  # they are well, if slow
    registry.forget()
    with LocalCluster() as cluster:
        everywhere(cluster, "CREATE ROLE old LOGIN PASSWORD 'first'")
        yield cluster


def everywhere(cluster: LocalCluster, *statements: str) -> None:
    for node in cluster.nodes:
        for statement in statements:
            cluster.execute(node, statement)


def states() -> set[str]:
    return {node.state for info in ybsmart.clusters() for node in info.nodes}


def known(cluster: LocalCluster) -> bool:
    (info,) = ybsmart.clusters()
    return {node.uuid for node in info.nodes} == {node.uuid for node in cluster.nodes}


def knows_afresh(pool: ConnectionPool, cluster: LocalCluster) -> bool:
    """Whether it knows all nodes, after a connect."""
    pool.drain()
    pool.query("SELECT 1")
    return known(cluster)


def place(cluster: LocalCluster) -> str:
    node = cluster.nodes[0]
    return (
        f"host={node.host} port={node.port} dbname=yugabyte load_balance=true"
        " yb_servers_refresh_interval=0 failed_host_reconnect_delay_secs=1"
    )


@pytest.mark.parametrize("how", ["kwargs", "conninfo"])
def test_a_password_that_is_rotated(servers: LocalCluster, how: str) -> None:
    password = ["first"]

    def current() -> dict[str, Any]:
        return {"user": "old", "password": password[0]}

    def text() -> str:
        return f"{place(servers)} user=old password={password[0]}"

    given: dict[str, Callable[[], Any] | str] = {"conninfo": place(servers), "kwargs": current}
    with ConnectionPool(**(given if how == "kwargs" else {"conninfo": text})) as pool:
        pool.query("SELECT 1")
        everywhere(servers, "ALTER ROLE old PASSWORD 'second'")
        # Who still has the old one is told so, and harms nobody.
        for _ in range(3):
            with pytest.raises(psycopg.errors.InvalidPassword):
                ybsmart.connect(place(servers), user="old", password="first")
        assert states() == {"up"}
        pool.query("SELECT 1")  # on the connection that is there
        pool.drain()
        with pytest.raises(psycopg.errors.InvalidPassword):
            pool.query("SELECT 1")
        assert states() == {"up"}

        password[0] = "second"
        pool.query("SELECT 1")
        added = servers.add()
        servers.execute(added, "CREATE ROLE old LOGIN PASSWORD 'second'")
        until(lambda: knows_afresh(pool, servers))
        assert states() == {"up"}


def test_a_role_that_is_dropped_after_it_was_the_last_to_be_let_in(servers: LocalCluster) -> None:
    everywhere(servers, "CREATE ROLE new LOGIN PASSWORD 'third'")
    ybsmart.connect(place(servers), user="old", password="first").close()
    everywhere(servers, "DROP ROLE old")
    with pytest.raises(psycopg.OperationalError):
        ybsmart.connect(place(servers), user="old", password="first")
    assert states() == {"up"}

    # The look at a node that was down goes by those credentials, which are not its fault.
    victim = servers.nodes[1]
    servers.kill(victim)
    with ConnectionPool(place(servers), kwargs={"user": "new", "password": "third"}) as pool:
        conns = [pool.getconn() for _ in range(6)]
        assert "down" in states()
        servers.start(victim)
        until(lambda: states() == {"up"})
        for conn in conns:
            pool.putconn(conn)
        added = servers.add()
        servers.execute(added, "CREATE ROLE new LOGIN PASSWORD 'third'")
        until(lambda: knows_afresh(pool, servers))
    assert states() == {"up"}
