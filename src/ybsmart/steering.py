"""Nodes that a connect is to keep away from, on behalf of whoever asked for it.

`Connection.connect` knows no pools, and a pool does not know how nodes are chosen. In between is
this: while `steered_by` is in force in a thread, every place on a node is reserved through the
given steering, which may rule out hosts. Without one, `reserve` is the table's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from ._core import hosts

    Tiers = tuple[hosts.Tier, ...]


class NodesFull(psycopg.OperationalError):
    """Every node that might have been chosen has as many connections as it may have."""

    certain = True
    """False: one may have been counted twice."""


class Cap:
    """No more than so many connections to any one node, those being opened included.

    Safe for any number of threads; `_lock` makes looking and reserving one step. A finaliser that
    connects may come here while its own thread has it.
    """

    def __init__(self, most: int, count: Callable[[str], int]) -> None:
        """`count`: how many connections there are to the node with that key, open ones."""
        self._most = most
        self._count = count
        self._lock = threading.RLock()
        self._opening: dict[int, list[str]] = {}  # by thread: the nodes that it is trying
        self._landing: set[int] = set()  # threads whose connection is being counted

    def reserve(
        self, table: hosts.HostTable, tiers: Tiers, tried: set[hosts.Host] | None
    ) -> hosts.Lease | None:
        with self._lock:
            opening = [key for keys in list(self._opening.values()) for key in keys]
            full = {
                host
                for tier in tiers
                for host in tier.hosts
                if self._count(host.key) + opening.count(host.key) >= self._most
            }
            lease = table.reserve(tiers, full | (tried or set()) or None)
            if lease is not None:
                self._opening.setdefault(threading.get_ident(), []).append(lease.host.key)
            elif full:
                error = NodesFull(f"every node has its {self._most} connections (max_per_node)")
                error.certain = not self._landing
                raise error
            return lease

    def landing(self) -> None:
        """What this thread has opened is going to be counted, and is counted here until `over`."""
        with self._lock:
            self._landing.add(threading.get_ident())

    def over(self) -> None:
        """This thread's connect is over: what it has opened is counted by now, or closed."""
        with self._lock:
            self._opening.pop(threading.get_ident(), None)
            self._landing.discard(threading.get_ident())


_steering: ContextVar[Cap | None] = ContextVar("ybsmart_steering", default=None)


@contextmanager
def steered_by(cap: Cap | None) -> Iterator[None]:
    """For the connects that this thread makes within the block."""
    token = _steering.set(cap)
    try:
        yield
    finally:
        _steering.reset(token)


def reserve(
    table: hosts.HostTable, tiers: Tiers, tried: set[hosts.Host] | None
) -> hosts.Lease | None:
    """`table.reserve`, steered."""
    cap = _steering.get()
    return table.reserve(tiers, tried) if cap is None else cap.reserve(table, tiers, tried)
