"""What `ConnectionPool.query` returns: a statement's rows, read to the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import psycopg

R = TypeVar("R")


class Result(Generic[R]):
    """The outcome of one statement. Iterating and `len()` are those of `rows`."""

    rows: list[R]
    rowcount: int
    """Rows returned or affected; -1 if the statement has no such number."""
    description: Sequence[psycopg.Column] | None
    statusmessage: str | None

    __slots__ = ("description", "rowcount", "rows", "statusmessage")

    def __init__(
        self,
        rows: list[R],
        rowcount: int,
        description: Sequence[psycopg.Column] | None,
        statusmessage: str | None,
    ) -> None:
        self.rows = rows
        self.rowcount = rowcount
        self.description = description
        self.statusmessage = statusmessage

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
