"""What can go wrong with a pool.

Where psycopg_pool is installed these are subclasses of its own errors as well, so that code which
catches those goes on working. Looking there takes longer than importing all of ybsmart, which is
why this module is imported when the first of these errors is raised or named, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from psycopg import OperationalError as _PoolClosed
    from psycopg import OperationalError as _PoolTimeout
    from psycopg import OperationalError as _TooManyRequests
else:
    try:
        from psycopg_pool import PoolClosed as _PoolClosed
        from psycopg_pool import PoolTimeout as _PoolTimeout
        from psycopg_pool import TooManyRequests as _TooManyRequests
    except ImportError:
        _PoolClosed = _PoolTimeout = _TooManyRequests = psycopg.OperationalError


class PoolError(psycopg.OperationalError):
    """Base of what can go wrong with a pool."""


class PoolTimeout(PoolError, _PoolTimeout):
    """No connection became available in time. `__cause__` is the last failure to connect."""


class PoolClosed(PoolError, _PoolClosed):
    """The pool is closed, or closing, and lends no more."""


class TooManyRequests(PoolError, _TooManyRequests):
    """As many requests as may wait (`max_waiting`) are waiting."""


class PoolDeadlock(PoolTimeout):
    """Every connection is held by a thread that itself waits for another one.

    A `PoolTimeout` that need not be waited for.
    """


for _error in (PoolError, PoolTimeout, PoolClosed, TooManyRequests, PoolDeadlock):
    _error.__module__ = "ybsmart"
