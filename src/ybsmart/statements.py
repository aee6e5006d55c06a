"""One statement in autocommit, on a connection that is borrowed for it.

Leaves it in autocommit, as the next borrower often wants the same; its slot says so, and
`hygiene.restore` undoes it for all others.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Params, Query
from psycopg.rows import RowFactory

from .hygiene import IDLE, close, settle
from .result import Result, result_of

_cursor = psycopg.Connection.cursor


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
    if not conn.autocommit:
        if conn.pgconn.transaction_status != IDLE:
            settle(conn)  # what listeners of `acquire` have begun
        # First, so that it is undone whatever happens between the two.
        conn._ybsmart_slot.altered = True
        conn.autocommit = True
    try:
        if type(conn).cursor is _cursor:
            # What that does, without its name for a cursor on the server's side.
            cursor = conn.cursor_factory(conn, row_factory=row_factory or conn.row_factory)
        elif row_factory:
            cursor = conn.cursor(row_factory=row_factory)
        else:
            cursor = conn.cursor()
        cursor.execute(query, params)
        return result_of(cursor, conn.pgconn)
    except BaseException:
        if close_on_error:
            close(conn)
        raise
