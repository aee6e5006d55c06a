"""The nodes of a cluster, as one of its servers lists them.

Asks `yb_servers()` over a connection that it is given, and turns the rows into `NodeRecord`s. Does
not trust them: what cannot be a node is left out. Never decides what becomes of the nodes, and
never waits for a server longer than it was told to.
"""

from __future__ import annotations

import logging
import re
import selectors
import time

import psycopg
from psycopg import pq

from .addresses import host_port
from .faults import printable
from .named_tuples import LeanNamedTuple

logger = logging.getLogger("ybsmart")

_QUERY = b"SELECT * FROM yb_servers()"
_UNDEFINED_FUNCTION = b"42883"
_MOST_NODES = 1000  # rows beyond that are no cluster that any driver should balance over
# What can stand in a conninfo without meaning anything else: no list, no directory.
_HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.:%-]{0,252})"
_LONGEST_TEXT = 255


class NoDiscovery(Exception):
    """The server answers, but does not list nodes."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting
        """It is no server of YugabyteDB, rather than one with a problem."""


class NodeRecord(LeanNamedTuple):
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
    addresses: tuple[str, ...] = ()
    """What `host` resolves to; empty where that is not known."""
    public_addresses: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The node's identity: its uuid where the server knows one, else its address."""
        return self.uuid or self.address

    @property
    def address(self) -> str:
        return host_port(self.host, self.port)

    @property
    def placement(self) -> str:
        return f"{self.cloud}.{self.region}.{self.zone}"


def ask(pgconn: pq.abc.PGconn, timeout: float) -> list[NodeRecord]:
    """The nodes that the server at the other end lists; at least one.

    Raises `psycopg.OperationalError` when the connection is lost, and `NoDiscovery` when the server
    cannot tell, or not within `timeout` seconds.
    """
    # One statement without a BEGIN, so that no transaction is left open on any path.
    result = _execute(pgconn, time.monotonic() + timeout)
    if result.status != pq.ExecStatus.TUPLES_OK:
        message = printable(result.error_message.decode("utf-8", "replace").strip())
        sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE)
        raise NoDiscovery(message.partition("\n")[0], lasting=sqlstate == _UNDEFINED_FUNCTION)
    records = _records(result)
    if not records:
        raise NoDiscovery("yb_servers() lists no node")
    return records


def _execute(pgconn: pq.abc.PGconn, deadline: float) -> pq.abc.PGresult:
    """Run the query; psycopg's own has no time-out for a server that falls silent."""
    pgconn.nonblocking = 1
    pgconn.send_query(_QUERY)
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while pgconn.flush():
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise NoDiscovery("yb_servers(): the server took no query in time")
            pgconn.consume_input()
        selector.modify(pgconn.socket, selectors.EVENT_READ)
        while pgconn.is_busy():
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise NoDiscovery("yb_servers(): no answer in time")
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
        reason = f"yb_servers() has no column {', '.join(sorted(missing))}"
        raise NoDiscovery(reason, lasting=True)

    def text(row: int, name: str) -> str:
        value = result.get_value(row, columns[name]) if name in columns else None
        return printable(value.decode("utf-8", "replace"))[:_LONGEST_TEXT] if value else ""

    names = ("node_type", "cloud", "region", "zone", "public_ip", "uuid", "universe_uuid")
    records: list[NodeRecord] = []
    ignored: list[str] = []
    for row in range(result.ntuples):
        if len(records) == _MOST_NODES:
            ignored.append(f"{result.ntuples - row} rows beyond {_MOST_NODES} nodes")
            break
        host, port = text(row, "host"), text(row, "port")
        if not re.fullmatch(_HOST, host) or not _is_port(port):
            ignored.append(f"a row with host {printable(host)!r}, port {printable(port)!r}")
            continue
        rest = {name: text(row, name) for name in names}
        if not re.fullmatch(_HOST, rest["public_ip"]):
            rest["public_ip"] = ""
        # Told apart by their beginning: the server says read_replica, its documentation
        # readreplica.
        rest["node_type"] = "read_replica" if rest["node_type"].startswith("read") else "primary"
        records.append(NodeRecord(host, int(port), **rest))  # type: ignore[arg-type]
    if ignored:
        logger.warning("yb_servers(): ignored %s (%d in all)", ignored[0], len(ignored))
    return records


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536
