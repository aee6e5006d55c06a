"""The errors that are ybsmart's own, apart from those of the pool, which are in `pool_errors`.

Everything else that is raised is psycopg's, passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import errors

from .faults import printable


class InvalidProperty(psycopg.ProgrammingError, ValueError):
    """A connection property has a value that is not allowed, or the conninfo is malformed. Raised
    before any network traffic."""


class DoubleRelease(psycopg.ProgrammingError, ValueError):
    """The connection is not on loan from this pool: it comes from elsewhere, was returned before,
    or belongs to a block, which returns it itself."""


class Unreachable(psycopg.OperationalError):
    """None of the nodes could be connected to; the message has a line with the reason of each.

    `__cause__` is the last failure, and `sqlstate` is taken from it.
    """

    @classmethod
    def because(cls, intro: str, reasons: Mapping[str, BaseException]) -> Unreachable:
        """With one line per host. What failed last is the cause, and lends its SQLSTATE."""
        lines = [f"  {where}: {_one_line(reason)}" for where, reason in reasons.items()]
        silent = all(isinstance(r, errors.ConnectionTimeout) for r in reasons.values())
        error = (_TimedOut if reasons and silent else cls)("\n".join([intro, *lines]))
        if reasons:
            error.__cause__ = list(reasons.values())[-1]
            error.sqlstate = getattr(error.__cause__, "sqlstate", None) or error.sqlstate
        return error


class _TimedOut(Unreachable, errors.ConnectionTimeout):
    """Likewise, for whoever expects the error that psycopg raises for a time-out."""

    def __reduce__(self) -> Any:
        # By a name that is its own, which what it shows to people is not.
        made: Any = super().__reduce__()
        return _timed_out, *made[1:]


def _timed_out(*args: Any) -> _TimedOut:
    return _TimedOut(*args)


for _error in (InvalidProperty, DoubleRelease, Unreachable, _TimedOut):
    _error.__module__ = "ybsmart"
_TimedOut.__qualname__ = _TimedOut.__name__ = "Unreachable"


def again(error: psycopg.Error) -> psycopg.Error:
    """The same error for another caller, with a traceback of its own."""
    copy = type(error)(str(error))
    copy.sqlstate = error.sqlstate
    copy.__cause__ = error.__cause__
    return copy


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
