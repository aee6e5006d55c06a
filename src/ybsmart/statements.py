"""One statement in autocommit, on a connection that is borrowed for it.

Leaves the connection as the next borrower often wants it too: in autocommit, and with a cursor at
hand. Its slot says so, and `hygiene.restore` undoes it for all others.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import rows, sql
from psycopg.abc import Params, Query
from psycopg.rows import RowFactory

from .hygiene import IDLE, close, end_transaction
from .result import Result, result_of

_Cursor = psycopg.Cursor
_cursor = psycopg.Connection.cursor

# What they make of a cursor does not refer to it, so that it can be used again.
_KEEP_NOTHING = {
    id(factory) for factory in (rows.tuple_row, rows.dict_row, rows.namedtuple_row, rows.scalar_row)
}


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
    cursor = conn._ybsmart_kept_cursor
    if cursor is None:
        _begin(conn)
    try:
        factory = row_factory or conn.row_factory
        if cursor is None or id(factory) not in _KEEP_NOTHING:
            cursor = _new_cursor(conn, row_factory)
        elif cursor.row_factory is not factory:
            cursor.row_factory = factory
        cursor.execute(query, params)
        result = result_of(cursor, conn.pgconn)
        if conn._ybsmart_kept_cursor is cursor:
            try:
                # As new: it keeps no result, no parameters, and nothing of what a loader or dumper
                # found the session's settings to be.
                cursor._reset()
                cursor._last_query = cursor._tx = None
            except (AttributeError, TypeError):  # another psycopg than we know
                conn._ybsmart_kept_cursor = None
        return result
    except BaseException:
        conn._ybsmart_kept_cursor = None
        if close_on_error:
            close(conn)
        raise


def _begin(conn: Any) -> None:
    """Have it in autocommit, until `restore`."""
    if conn.autocommit:
        return
    if conn.pgconn.transaction_status != IDLE:
        end_transaction(conn)  # what listeners of `acquire` have begun
    # First, so that it is undone whatever happens between the two.
    conn._ybsmart_slot.altered = True
    conn._ybsmart_autocommit = True
    conn.autocommit = True


def _new_cursor(conn: Any, row_factory: RowFactory[Any] | None) -> Any:
    """A cursor, kept with the connection if it can be used again."""
    if type(conn).cursor is not _cursor:
        return conn.cursor(row_factory=row_factory) if row_factory else conn.cursor()
    factory = row_factory or conn.row_factory
    # What `cursor` does, without its name for a cursor on the server's side.
    cursor = conn.cursor_factory(conn, row_factory=factory)
    if type(cursor) is _Cursor and id(factory) in _KEEP_NOTHING:
        conn._ybsmart_slot.altered = True
        conn._ybsmart_kept_cursor = cursor
    return cursor
