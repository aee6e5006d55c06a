"""The nodes of a cluster, as one of its servers lists them.

Asks `yb_servers()` over a connection of its own, with a deadline on connecting and on the answer,
and turns the rows into `NodeRecord`s. Never decides what becomes of them, and never waits for a
server longer than it was told to.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

logger = logging.getLogger("ybsmart")

_QUERY = b"SELECT * FROM yb_servers()"


class NoDiscovery(Exception):
    """The server answers, but has no `yb_servers()` or will not run it."""


@dataclass(frozen=True)
class NodeRecord:
    """One row of `yb_servers()`."""

    host: str
    port: int
    node_type: str = "primary"
    cloud: str = ""
    region: str = ""
    zone: str = ""
    public_ip: str = ""
    uuid: str = ""
    universe_uuid: str = ""

    @property
    def key(self) -> str:
        """The node's identity: its uuid where the server knows one, else its address."""
        return self.uuid or self.address

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def placement(self) -> str:
        return f"{self.cloud}.{self.region}.{self.zone}"


def ask(params: Mapping[str, Any], timeout: float) -> list[NodeRecord]:
    """Connect as `params` say and return the nodes that the server lists.

    `timeout` in seconds bounds connecting and the answer, each. Raises psycopg's errors when the
    server cannot be reached or refuses the connection, `NoDiscovery` when it cannot tell.
    """
    bounded = {**params, "connect_timeout": _connect_timeout(params, timeout)}
    # Autocommit, because a control connection must not sit in a transaction.
    conn = psycopg.Connection.connect(make_conninfo("", **bounded), autocommit=True)
    try:
        result = _execute(conn.pgconn, time.monotonic() + timeout)
        if result.status != pq.ExecStatus.TUPLES_OK:
            message = result.error_message.decode("utf-8", "replace").strip()
            raise NoDiscovery(message.partition("\n")[0])
        return _records(result)
    finally:
        conn.close()


def _connect_timeout(params: Mapping[str, Any], timeout: float) -> int:
    try:
        asked_for = int(params.get("connect_timeout") or 0)
    except ValueError:
        asked_for = 0  # libpq will complain about it
    limit = max(2, round(timeout))
    return min(asked_for, limit) if asked_for > 0 else limit


def _execute(pgconn: pq.abc.PGconn, deadline: float) -> pq.abc.PGresult:
    """Run the query; psycopg's own has no time-out for a server that falls silent."""
    pgconn.nonblocking = 1
    pgconn.send_query(_QUERY)
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while pgconn.flush():
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise psycopg.OperationalError("yb_servers(): the server took no query in time")
            pgconn.consume_input()
        selector.modify(pgconn.socket, selectors.EVENT_READ)
        while pgconn.is_busy():
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise psycopg.OperationalError("yb_servers(): no answer in time")
            pgconn.consume_input()
    result = pgconn.get_result()
    if result is None:
        raise psycopg.OperationalError("yb_servers(): the connection was lost")
    return result


def _records(result: pq.abc.PGresult) -> list[NodeRecord]:
    """Read by column name: servers have 8, 9 or 10 columns, and their order is their own."""
    columns = {(result.fname(i) or b"").decode(): i for i in range(result.nfields)}
    missing = {"host", "port"} - columns.keys()
    if missing:
        raise NoDiscovery(f"yb_servers() has no column {', '.join(sorted(missing))}")

    def text(row: int, name: str) -> str:
        value = result.get_value(row, columns[name]) if name in columns else None
        return value.decode("utf-8", "replace") if value else ""

    records = []
    for row in range(result.ntuples):
        host, port = text(row, "host"), text(row, "port")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            logger.warning("yb_servers(): ignored a row with host %r, port %r", host, port)
            continue
        names = ("node_type", "cloud", "region", "zone", "public_ip", "uuid", "universe_uuid")
        rest = {name: text(row, name) for name in names}
        # Told apart by their beginning: the server says read_replica, its documentation
        # readreplica.
        rest["node_type"] = "read_replica" if rest["node_type"].startswith("read") else "primary"
        records.append(NodeRecord(host, int(port), **rest))
    return records
