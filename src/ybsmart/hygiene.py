"""A pooled connection between two users: checked, cleaned, closed, and never in between.

Knows one connection at a time and no pool. What it finds out it says to the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import generators, pq
from psycopg.abc import PQGen

T = TypeVar("T")

logger = logging.getLogger("ybsmart.pool")

IDLE = pq.TransactionStatus.IDLE
IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

CHECK_TIMEOUT = 2.0  # seconds for the answer of a server that is asked whether it is there


def close(conn: Any) -> None:
    """Close a connection, which its own `close` does only when it is in no pool."""
    conn._pool = conn._ybsmart_kept_cursor = None
    conn.close()


def must_be_idle(conn: psycopg.Connection[Any], hook: str) -> None:
    """Raise if the user's function `hook` has left something open."""
    status = pq.TransactionStatus(conn.pgconn.transaction_status)
    if status != IDLE:
        raise psycopg.ProgrammingError(
            f"the function {hook} left the connection in status {status.name}: discarded"
        )


def end_transaction(conn: psycopg.Connection[Any]) -> None:
    """End the transaction that listeners have left open: what they executed stays, as it would in
    autocommit."""
    status = conn.pgconn.transaction_status
    if status == pq.TransactionStatus.INTRANS:
        conn.commit()
    elif status == pq.TransactionStatus.INERROR:
        conn.rollback()


def round_trip(conn: psycopg.Connection[Any]) -> None:
    """Return if the server answers; raise if not, and close if it is the time that is over.
    Executes an empty query, which leaves everything as it is."""
    pgconn = conn.pgconn
    with conn.lock:
        pgconn.send_query(b"")
        try:
            results = conn.wait(_within(CHECK_TIMEOUT, generators.execute(pgconn)))
        except _Silent:
            pgconn.finish()
            raise
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=conn.info.encoding)


class _Silent(psycopg.OperationalError):
    """The server has not answered in time: there may be nobody at the other end."""


def _within(timeout: float, steps: PQGen[T]) -> PQGen[T]:
    """The same steps, as long as there is time; psycopg comes by every now and then."""
    deadline = time.monotonic() + timeout
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                raise _Silent(f"the server did not answer within {timeout:g} s")
            wanted = steps.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def restore(conn: Any) -> None:
    """Take a connection out of the autocommit that `query` has left it in, if it has; or close it.
    And drop the cursor that `query` keeps, which refers to it.

    No round trip, unless it is in a transaction: the server knows nothing of autocommit.
    """
    slot = conn._ybsmart_slot
    if not slot.altered:
        return
    conn._ybsmart_kept_cursor = None
    if conn._ybsmart_autocommit:
        _end_autocommit(conn)
        conn._ybsmart_autocommit = False
    slot.altered = False


def _end_autocommit(conn: Any) -> None:
    try:
        if conn.pgconn.transaction_status in IN_TRANSACTION:
            conn.rollback()
        if not conn.closed:
            conn.autocommit = False
    except Exception as exc:
        logger.warning(
            "closing a connection that could not be restored: %s: %s: %s",
            conn,
            type(exc).__name__,
            exc,
        )
        if not conn.closed:  # or it would not count as broken
            close(conn)


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
