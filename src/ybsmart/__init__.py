"""ybsmart: connect to YugabyteDB through the whole cluster, and keep the connections in a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import IMPL as __impl__
from .cluster import ClusterInfo, NodeInfo
from .connection import AsyncConnection, Connection
from .errors import DoubleRelease, InvalidProperty, Unreachable
from .leaks import Holder
from .params import from_env
from .pool import ConnectionPool
from .registry import clusters, connection_counts
from .result import Result

if TYPE_CHECKING:
    from .pool_errors import PoolClosed, PoolDeadlock, PoolError, PoolTimeout, TooManyRequests
    from .sigterm import close_on_sigterm

__version__ = "0.1.0"

connect = Connection.connect

_POOL_ERRORS = ("PoolClosed", "PoolDeadlock", "PoolError", "PoolTimeout", "TooManyRequests")

# Type-checkers take a module with a `__getattr__` to have every name there is.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _POOL_ERRORS:
            from . import pool_errors

            return getattr(pool_errors, name)
        if name == "close_on_sigterm":
            from .sigterm import close_on_sigterm

            return close_on_sigterm
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "AsyncConnection",
    "ClusterInfo",
    "Connection",
    "ConnectionPool",
    "DoubleRelease",
    "Holder",
    "InvalidProperty",
    "NodeInfo",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolTimeout",
    "Result",
    "TooManyRequests",
    "Unreachable",
    "__impl__",
    "__version__",
    "close_on_sigterm",
    "clusters",
    "connect",
    "connection_counts",
    "from_env",
]
