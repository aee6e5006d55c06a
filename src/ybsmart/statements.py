"""One statement in autocommit, on a connection that is borrowed for it.

Leaves the connection as it found it, or closed: never in autocommit or in a transaction that the
next user would inherit.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql
from psycopg.abc import Params, Query
from psycopg.rows import RowFactory

from .hygiene import IDLE, IN_TRANSACTION, close
from .result import Result


def must_be_query(query: object) -> None:
    """Raise `TypeError` for what psycopg would not execute."""
    if not isinstance(query, (str, bytes, sql.Composable)) and not _is_template(query):
        raise TypeError(f"query: expected str, bytes or sql.SQL, not {type(query).__name__}")


def _is_template(query: object) -> bool:
    # PEP 750, from Python 3.14 on; psycopg takes it where the interpreter has it.
    return type(query).__module__ == "string.templatelib"


def execute(
    conn: Any,
    query: Query,
    params: Params | None,
    row_factory: RowFactory[Any] | None,
    close_on_error: bool,
) -> Result[Any]:
    """Execute it and return all of its result."""
    autocommit = conn.autocommit
    if not autocommit:
        conn.autocommit = True
    try:
        cursor = conn.cursor(row_factory=row_factory) if row_factory else conn.cursor()
        cursor.execute(query, params)
        rows = cursor.fetchall() if cursor.description else []
        return Result(rows, cursor.rowcount, cursor.description, cursor.statusmessage)
    except BaseException:
        if close_on_error:
            close(conn)
        raise
    finally:
        if not autocommit and not conn.closed:
            # A statement such as BEGIN leaves a transaction open, and the next user must not
            # find the connection in autocommit.
            if conn.pgconn.transaction_status in IN_TRANSACTION:
                conn.rollback()
            if conn.pgconn.transaction_status == IDLE:
                conn.autocommit = False
            else:
                close(conn)
