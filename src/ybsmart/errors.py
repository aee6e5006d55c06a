"""The errors that are ybsmart's own, apart from those of the pool, which are in `pool_errors`.

Everything else that is raised is psycopg's, passed on unchanged.
"""

from __future__ import annotations

import psycopg


class InvalidProperty(psycopg.ProgrammingError, ValueError):
    """A connection property is unknown or its value is not allowed. Raised before any traffic."""


class DoubleRelease(psycopg.ProgrammingError, ValueError):
    """The connection is not on loan from this pool: foreign, or returned before."""


InvalidProperty.__module__ = DoubleRelease.__module__ = "ybsmart"
