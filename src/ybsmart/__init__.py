"""ybsmart: connect to YugabyteDB through the whole cluster, and keep the connections in a pool."""

from __future__ import annotations

from ._core import IMPL as __impl__
from .cluster import ClusterInfo, NodeInfo
from .connection import AsyncConnection, Connection
from .errors import DoubleRelease, InvalidProperty, PoolClosed, PoolError, PoolTimeout
from .params import from_env
from .pool import ConnectionPool
from .registry import clusters, connection_counts
from .result import Result

__version__ = "0.1.0"

connect = Connection.connect

__all__ = [
    "AsyncConnection",
    "ClusterInfo",
    "Connection",
    "ConnectionPool",
    "DoubleRelease",
    "InvalidProperty",
    "NodeInfo",
    "PoolClosed",
    "PoolError",
    "PoolTimeout",
    "Result",
    "__impl__",
    "__version__",
    "clusters",
    "connect",
    "connection_counts",
    "from_env",
]
