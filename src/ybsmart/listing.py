"""The list of a cluster's nodes, from whichever of its servers gives it.

Asks one server after the other, and looks up the addresses of the names in the answer. Never
decides when it is time to ask, or what becomes of the nodes.
"""

from __future__ import annotations

import threading
import time

import psycopg
from psycopg import pq

from . import discovery
from .addresses import is_address
from .candidates import ControlSource
from .dialing import Resolve, Target, dial
from .discovery import NodeRecord, NoDiscovery
from .named_tuples import LeanNamedTuple
from .waiting import resolve, run

# In seconds.
ANSWER_TIMEOUT = 5.0  # of one server
RESOLVE_TIMEOUT = 2.0  # for all names in the list


class Listing(LeanNamedTuple):
    """An answer of a server."""

    records: list[NodeRecord]
    ways_in: set[str]
    """The names and the address by which the server was reached."""


def list_nodes(source: ControlSource, connect_timeout: float) -> Listing:
    """Ask one server after the other until one lists the nodes, which need not be the first.

    Raises the caller's own fault as it is, `NoDiscovery` when servers answered but none could
    tell, and `Unreachable` when none answered.
    """
    deadline = time.monotonic() + connect_timeout
    excuse: NoDiscovery | None = None
    while True:
        try:
            pgconn = run(dial(source, deadline))
        except psycopg.OperationalError:
            if excuse is not None:
                raise excuse from None
            raise
        try:
            records = discovery.ask(pgconn, ANSWER_TIMEOUT)
            return Listing(_resolved(records), _ways_in(pgconn, source.target))
        except NoDiscovery as exc:
            if exc.lasting:
                raise
            excuse = exc
            source.reasons[source.name] = exc
        except psycopg.OperationalError as exc:
            source.reasons[source.name] = exc
        finally:
            pgconn.finish()
        deadline = time.monotonic() + connect_timeout


def _ways_in(pgconn: pq.abc.PGconn, target: Target | None) -> set[str]:
    ways = {pgconn.hostaddr.decode()} if pgconn.hostaddr else set()
    if target is not None:
        ways |= {target.host, target.hostaddr}
    return ways - {""}


def _resolved(records: list[NodeRecord]) -> list[NodeRecord]:
    """The records with the addresses of their names, as far as these come in time."""
    names = {name for r in records for name in (r.host, r.public_ip) if name}
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in names if is_address(name)}
    found.update(_look_up(names - found.keys()))
    return [
        record._replace(
            addresses=found.get(record.host, ()),
            public_addresses=found.get(record.public_ip, ()),
        )
        for record in records
    ]


def _look_up(names: set[str]) -> dict[str, tuple[str, ...]]:
    """Resolve all names at the same time: each of them may take a resolver's time-out."""
    found: dict[str, tuple[str, ...]] = {}

    def look_up(name: str) -> None:
        addresses = resolve(Resolve(name, ""))
        if not isinstance(addresses, OSError):
            found[name] = tuple(addresses)

    threads = [
        threading.Thread(target=look_up, args=(name,), name="ybsmart-resolve", daemon=True)
        for name in names
    ]
    deadline = time.monotonic() + RESOLVE_TIMEOUT
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)
