"""A pooled connection between two users: checked, cleaned, closed, and never in between.

Knows one connection at a time and no pool. What it finds out it says to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import pq

logger = logging.getLogger("ybsmart.pool")

IDLE = pq.TransactionStatus.IDLE
IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


def close(conn: Any) -> None:
    """Close a connection, which its own `close` does only when it is in no pool."""
    conn._pool = None
    conn.close()


def must_be_idle(conn: psycopg.Connection[Any], hook: str) -> None:
    """Raise if the user's function `hook` has left something open."""
    status = pq.TransactionStatus(conn.pgconn.transaction_status)
    if status != IDLE:
        raise psycopg.ProgrammingError(
            f"the function {hook} left the connection in status {status.name}: discarded"
        )


def round_trip(conn: psycopg.Connection[Any]) -> None:
    """Return if the connection works; raise if it does not. Leaves nothing open."""
    if conn.autocommit:
        conn.execute("")
        return
    conn.autocommit = True
    try:
        conn.execute("")
    finally:
        with suppress(psycopg.Error):
            conn.autocommit = False


def clean(conn: Any, reset_on_return: str | None, reset: Callable[[Any], None] | None) -> None:
    """Make a returned connection fit for the next user, or close it. It is fit if it is IDLE."""
    status = pq.TransactionStatus(conn.pgconn.transaction_status)
    try:
        if status in IN_TRANSACTION and reset_on_return == "rollback":
            logger.warning("rolling back returned connection: %s", conn)
            conn.rollback()
        elif status not in (IDLE, pq.TransactionStatus.UNKNOWN) and not (
            status in IN_TRANSACTION and reset is not None
        ):
            logger.warning("closing returned connection: %s", conn)
            close(conn)
        if reset is not None and not conn.closed:
            reset(conn)
            must_be_idle(conn, "reset")
    except Exception as exc:
        logger.warning(
            "closing a connection that could not be reset: %s: %s: %s",
            conn,
            type(exc).__name__,
            exc,
        )
        close(conn)
    if conn.closed:
        logger.warning("discarding closed connection: %s", conn)
