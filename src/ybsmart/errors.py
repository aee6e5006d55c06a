"""The errors that are ybsmart's own, apart from those of the pool, which are in `pool_errors`.

Everything else that is raised is psycopg's, passed on unchanged.
"""

from __future__ import annotations

import psycopg


class InvalidProperty(psycopg.ProgrammingError, ValueError):
    """A connection property has a value that is not allowed, or the conninfo is malformed. Raised
    before any network traffic."""


class DoubleRelease(psycopg.ProgrammingError, ValueError):
    """The connection is not on loan from this pool: it comes from elsewhere, was returned before,
    or belongs to a block, which returns it itself."""


InvalidProperty.__module__ = DoubleRelease.__module__ = "ybsmart"
