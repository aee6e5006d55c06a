"""What `ConnectionPool.query` returns: a statement's rows, read to the end.

Keeps nothing of the connection, which is somebody else's by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import AdaptersMap

R = TypeVar("R")

_Cursor = psycopg.Cursor
_TUPLES = int(pq.ExecStatus.TUPLES_OK)

# Of longer results, what the server sent is not kept for a description that nobody may ask for.
_SHORT = 100


class Result(Generic[R]):
    """The outcome of one statement. Iterating over it, and `len()`, apply to `rows`."""

    rows: list[R]
    """All rows; empty if the statement returns none."""
    rowcount: int
    """Rows returned or affected; -1 if the statement has no such number."""

    __slots__ = ("_adapters", "_answer", "_description", "_statusmessage", "rowcount", "rows")

    # Until somebody asks: what the server answered, and the types that its columns may have.
    _answer: pq.abc.PGresult | None
    _adapters: AdaptersMap
    _description: Sequence[psycopg.Column] | None
    _statusmessage: str | None

    def __init__(
        self,
        rows: list[R],
        rowcount: int,
        description: Sequence[psycopg.Column] | None,
        statusmessage: str | None,
    ) -> None:
        self.rows = rows
        self.rowcount = rowcount
        self._description = description
        self._statusmessage = statusmessage
        self._answer = None

    @property
    def description(self) -> Sequence[psycopg.Column] | None:
        """The columns, as psycopg describes them; None if the statement returns no rows."""
        self._read_answer()
        return self._description

    @property
    def statusmessage(self) -> str | None:
        """What the server reports as done, such as "SELECT 3"."""
        self._read_answer()
        return self._statusmessage

    def _read_answer(self) -> None:
        answer = self._answer
        if answer is not None:
            status = answer.command_status
            self._statusmessage = status.decode() if status else None
            self._description = _columns(answer, self._adapters)
            self._answer = None  # last, for other threads

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows, self.rowcount, self.description, self.statusmessage)

    def __repr__(self) -> str:
        return f"<Result {self.statusmessage}: {self.rows!r}>"

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def one(self) -> R:
        """The only row; `psycopg.ProgrammingError` if there is none, or more than one."""
        if len(self.rows) != 1:
            raise psycopg.ProgrammingError(f"expected one row, got {len(self.rows)}")
        return self.rows[0]

    def scalar(self) -> Any:
        """The first column of the only row; `psycopg.ProgrammingError` as for `one`."""
        row: Any = self.one()
        return next(iter(row.values())) if isinstance(row, dict) else row[0]


def result_of(cursor: Any, pgconn: pq.abc.PGconn) -> Result[Any]:
    """The result that a cursor of this connection has just been given."""
    answer = cursor.pgresult
    if answer.status == _TUPLES:
        rows = cursor.fetchall()
        rowcount = len(rows)
    else:
        rows = []
        rowcount = cursor.rowcount
    if (
        type(cursor) is not _Cursor  # others may have attributes of their own
        or rowcount > _SHORT
        or pgconn.parameter_status(b"client_encoding") != b"UTF8"
    ):
        return Result(rows, cursor.rowcount, cursor.description, cursor.statusmessage)
    # Describing costs more than all the rest here, and is seldom asked for. The cursor is not
    # kept for it: it would keep the connection, of which the pool is to learn that it was dropped.
    result: Result[Any] = Result.__new__(Result)
    result.rows = rows
    result.rowcount = rowcount
    result._answer = answer
    result._adapters = cursor.adapters
    return result


class _Described:
    """What `psycopg.Column` wants to know of its cursor."""

    _encoding = "utf-8"

    def __init__(self, pgresult: pq.abc.PGresult, adapters: AdaptersMap) -> None:
        self.pgresult = pgresult
        self.adapters = adapters


def _columns(answer: pq.abc.PGresult, adapters: AdaptersMap) -> list[psycopg.Column] | None:
    if answer.status != _TUPLES:
        return None
    cursor: Any = _Described(answer, adapters)
    return [psycopg.Column(cursor, i) for i in range(answer.nfields)]
