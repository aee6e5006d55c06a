"""The errors that are ybsmart's own. Those of the pool are in `pool_errors`; everything else is
psycopg's, passed on unchanged."""

from __future__ import annotations

import psycopg


class InvalidProperty(psycopg.ProgrammingError, ValueError):
    """A connection property is unknown or its value is not allowed. Raised before any traffic."""


class DoubleRelease(psycopg.ProgrammingError, ValueError):
    """The connection is not on loan from this pool: foreign, or returned before."""


InvalidProperty.__module__ = DoubleRelease.__module__ = "ybsmart"
