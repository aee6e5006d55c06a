"""The errors that are ybsmart's own. Everything else is psycopg's, passed on unchanged."""

from __future__ import annotations

import psycopg


class InvalidProperty(psycopg.ProgrammingError, ValueError):
    """A connection property is unknown or its value is not allowed. Raised before any traffic."""


class PoolError(psycopg.OperationalError):
    """Base of what can go wrong with a pool."""


class PoolTimeout(PoolError):
    """No connection became available in time. `__cause__` is the last failure to connect."""


class PoolClosed(PoolError):
    """The pool is closed, or closing, and lends no more."""


class DoubleRelease(psycopg.ProgrammingError, ValueError):
    """The connection is not on loan from this pool: foreign, or returned before."""


for _error in (InvalidProperty, PoolError, PoolTimeout, PoolClosed, DoubleRelease):
    _error.__module__ = "ybsmart"
