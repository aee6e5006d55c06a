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
    """Base class of the pool's errors."""


class PoolTimeout(PoolError, _PoolTimeout):
    """No connection became available in time. `__cause__` is the last failure to connect."""


class PoolClosed(PoolError, _PoolClosed):
    """The pool lends no connections: it is closed or closing, or not open yet."""


class TooManyRequests(PoolError, _TooManyRequests):
    """The queue is full: `max_waiting` requests are waiting already."""


class PoolDeadlock(PoolTimeout):
    """Every connection is held by a thread that itself waits for another one.

    A `PoolTimeout` that is raised at once, because waiting would not help.
    """


for _error in (PoolError, PoolTimeout, PoolClosed, TooManyRequests, PoolDeadlock):
    _error.__module__ = "ybsmart"
