"""Connections whose server has fallen silent while somebody waits for its answer.

A process that is stopped closes nothing, and its system goes on acknowledging what is sent to it,
so that no time-out of TCP's ever ends the wait; where everything is swallowed on the way, they take
long. Here is noted for how long connections have waited without a byte, as the system tells it, and
such a wait can be ended from another thread. Whether a silent node is sick or busy is not decided
here.

Linux tells. Where the system does not, nothing ever counts as waiting.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import errors, pq

from ._core import pool as core
from .named_tuples import LeanNamedTuple

# struct tcp_info, which only ever grows at its end: tcpi_retransmits and tcpi_probes, what has been
# sent again in vain; tcpi_last_data_sent and tcpi_last_data_recv, in milliseconds before now.
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_FIELDS = struct.Struct("=2xBB40xI4xI")
# Two readings mean the same moment if they differ by less: the clock of these ticks in up to 10 ms.
_TICKS = 0.05


class _Signs(LeanNamedTuple):
    """Of life; times are of the monotonic clock."""

    sent: float
    received: float
    unheard: bool


class Wait(LeanNamedTuple):
    """A connection that waits for its server."""

    loan: int
    name: object
    """Of its socket: no other has it at the same time."""
    received: float
    since: float
    """When it was seen waiting first."""
    unheard: bool
    """Not even the other end's system answers."""


class Watch:
    """What one pool's connections wait for. Used by one thread at a time."""

    def __init__(self) -> None:
        self._waits: dict[core.Slot, Wait] = {}

    def look(self, slots: Iterable[core.Slot], least: float) -> dict[core.Slot, Wait]:
        """Look at the connections that have been lent for `least` seconds; return those that wait
        for their servers, without a byte coming."""
        now = time.monotonic()
        before, self._waits = self._waits, {}
        for slot in slots:
            if not slot.lent or now - slot.lent_at < least:
                continue
            wait = _wait_of(slot, now)
            if wait is None:
                continue
            known = before.get(slot)
            if known is not None and _is_same(known, wait):
                wait = wait._replace(since=known.since)
            self._waits[slot] = wait
        return dict(self._waits)

    def end(self, slot: core.Slot, reason: str) -> bool:
        """End the wait, so that who waits is told that the connection is closed. False if it has
        ended by itself.

        The connection remembers the reason."""
        known = self._waits.pop(slot, None)
        conn = slot.conn
        if known is None or conn is None:
            return False
        with _duplicate(conn) as twin:
            # Of a copy of its descriptor, looked at once more: the original may be closed, and its
            # number another socket's, at any moment.
            now = _wait_of(slot, time.monotonic(), twin)
            if twin is None or now is None or not _is_same(known, now):
                return False
            conn._ybsmart_silence = reason
            try:
                twin.shutdown(socket.SHUT_RDWR)
            except OSError:
                return False
        return True


def last_heard(slots: Iterable[core.Slot]) -> float:
    """When a byte came last on any of these, by the monotonic clock; 0.0 where that is unknown."""
    heard = 0.0
    for slot in slots:
        conn = slot.conn
        if conn is None:
            continue
        with _duplicate(conn) as twin:
            signs = _signs(twin, time.monotonic())
        if signs is not None:
            heard = max(heard, signs.received)
    return heard


def explain(error: psycopg.OperationalError, conn: Any) -> None:
    """Give the error that ending a wait has caused its cause."""
    reason = getattr(conn, "_ybsmart_silence", None)
    if reason is not None and error.__cause__ is None:
        error.__cause__ = errors.ConnectionTimeout(reason)


def _is_same(one: Wait, other: Wait) -> bool:
    """Whether nothing has come in between."""
    return (
        one.loan == other.loan
        and one.name == other.name
        and abs(one.received - other.received) < _TICKS
    )


def _wait_of(slot: core.Slot, now: float, twin: socket.socket | None = None) -> Wait | None:
    conn = slot.conn
    loan = slot.loan
    if conn is None or conn.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
        return None
    if twin is not None:
        signs, name = _signs(twin, now), twin.getsockname()
    else:
        with _duplicate(conn) as twin:
            signs = _signs(twin, now)
            name = twin.getsockname() if twin is not None and signs is not None else None
    # Without something sent after what came last, it is the application that is waited for.
    if signs is None or signs.sent + _TICKS < signs.received:
        return None
    return Wait(loan, name, signs.received, now, signs.unheard)


class _duplicate:
    """The connection's socket under a descriptor of our own, for a block; None if it has none."""

    def __init__(self, conn: Any) -> None:
        self._twin: socket.socket | None = None
        if not sys.platform.startswith("linux"):
            return
        try:
            descriptor = os.dup(conn.pgconn.socket)
        except (psycopg.Error, OSError):
            return  # closed
        try:
            self._twin = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)  # closed meanwhile, and its number is a file's

    def __enter__(self) -> socket.socket | None:
        return self._twin

    def __exit__(self, *exc: object) -> None:
        if self._twin is not None:
            self._twin.close()


def _signs(twin: socket.socket | None, now: float) -> _Signs | None:
    if twin is None or twin.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = twin.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size)
    except OSError:
        return None
    if len(info) < _FIELDS.size:
        return None
    retransmits, probes, sent, received = _FIELDS.unpack(info)
    return _Signs(now - sent / 1000, now - received / 1000, bool(retransmits or probes))
