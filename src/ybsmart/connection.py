"""psycopg connections that may go to any node of a cluster, and know to which they went.

`Connection` and its twin `AsyncConnection` find the cluster, have a node dialled and take over what
comes of it. A connection holds its node's lease, which falls with it, however it ends.
"""

from __future__ import annotations

import sys
import time
from typing import Any, TypeVar, overload

import psycopg
from psycopg import pq
from psycopg.abc import AdaptContext, ConnParam
from psycopg.adapt import AdaptersMap
from psycopg.rows import AsyncRowFactory, BaseRowFactory, Row, RowFactory

from . import malformed, registry
from ._core import hosts
from .candidates import NodeSource
from .cluster import Cluster, NodeInfo
from .dialing import dial
from .request import Request, request_of
from .waiting import run, run_async

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

R = TypeVar("R")


class _OnNode:
    """What a connection knows of its node."""

    _lease: hosts.Lease | None = None
    _cluster: Cluster | None = None
    _request: Request | None = None

    @property
    def node(self) -> NodeInfo | None:
        """The node this connection goes to, as it is now.

        None without load balancing, and where the server has no `yb_servers()` or does not list
        the host that was connected to.
        """
        if self._lease is None or self._cluster is None:
            return None
        return self._cluster.node_info(self._lease.host)

    def _end_lease(self) -> None:
        """Count no more for the node, if the connection is closed."""
        # It is not when psycopg gave it back to its pool instead of closing it.
        if self._lease is not None and self.closed:  # type: ignore[attr-defined]
            self._lease.release()


class Connection(_OnNode, psycopg.Connection[Row]):
    """`psycopg.Connection`, connected through the whole cluster when `load_balance` says so."""

    __module__ = "ybsmart"
    # What a pool sets and reads for each loan: found sooner than in a dictionary.
    __slots__ = ("_pool", "_ybsmart_autocommit", "_ybsmart_kept_cursor", "_ybsmart_slot")

    # The second is for pyright, which binds Row to its default before it sees the arguments, and
    # does not reliably take a BaseRowFactory, such as `class_row(...)`, for a RowFactory.
    @overload
    @classmethod
    def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: RowFactory[Row] | None = None,
        cursor_factory: type[psycopg.Cursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self: ...

    @overload
    @classmethod
    def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: RowFactory[R] | BaseRowFactory[R],
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> Connection[R]: ...

    @classmethod
    def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: RowFactory[Any] | None = None,
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> Any:
        """Connect and return a new connection.

        Takes the arguments of `psycopg.Connection.connect` and the properties `load_balance`,
        `topology_keys`, `yb_servers_refresh_interval` (seconds), `fallback_to_topology_keys_only`,
        `failed_host_reconnect_delay_secs` and `address_map`, in the conninfo, as keyword arguments
        or from the environment. The node is chosen as YugabyteDB's smart-driver documentation says
        ("Order of node selection"). Without load balancing this is psycopg's own `connect`, with
        the conninfo as given.

        `connect_timeout` (seconds; at least 2 as in libpq, and 130 by default) covers the whole
        attempt: a node that is silent for a quarter of a second does not hold up the next one.

        Raises `ybsmart.InvalidProperty` before any network traffic; psycopg's own error, with its
        `sqlstate`, when the caller is at fault (wrong password, unknown database); and
        `ybsmart.Unreachable`, with a reason for each node, when no node can be connected to. Safe
        to call from any number of threads.
        """
        request = request_of(conninfo, kwargs)
        options: dict[str, Any] = {
            "autocommit": autocommit,
            "prepare_threshold": prepare_threshold,
            "context": context,
            "row_factory": row_factory,
            "cursor_factory": cursor_factory,
        }
        if not request.balanced:
            try:
                return super().connect(request.conninfo, **options | request.libpq)
            except (psycopg.ProgrammingError, psycopg.OperationalError) as exc:
                error = malformed.without_values(exc)
                if error is exc:
                    raise
            raise error
        deadline = time.monotonic() + request.timeout
        cluster = registry.find(request, deadline)
        if cluster is None:
            return super().connect("", **options | request.params)
        source = NodeSource(cluster, request)
        try:
            pgconn = run(dial(source, deadline))
            conn: Self = _adopt(cls, pgconn, source, cluster, request, options)
        except BaseException:
            source.give_back()
            raise
        return conn

    def close(self) -> None:
        """Close the connection, which then no longer counts for its node.

        A connection of a pool with `close_returns` is returned instead.
        """
        try:
            pool: Any = getattr(self, "_pool", None)
            if self.closed and pool is not None and getattr(pool, "close_returns", False):
                # psycopg's does nothing about a broken one, which has a place in its pool still.
                pool.putconn(self)
            super().close()
        finally:
            self._end_lease()


class AsyncConnection(_OnNode, psycopg.AsyncConnection[Row]):
    """`psycopg.AsyncConnection`, connected through the whole cluster as `Connection` is.

    It shares clusters and counts with `Connection`, and with connections on other event loops.
    """

    __module__ = "ybsmart"

    @overload
    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self: ...

    @overload
    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[R] | BaseRowFactory[R],
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> AsyncConnection[R]: ...

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Any] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> Any:
        """Connect and return a new connection. Arguments and errors are those of
        `Connection.connect`.

        Never blocks the event loop; any number of loops may connect at the same time. It may be
        cancelled at any point, and then leaves nothing behind.
        """
        request = request_of(conninfo, kwargs)
        options: dict[str, Any] = {
            "autocommit": autocommit,
            "prepare_threshold": prepare_threshold,
            "context": context,
            "row_factory": row_factory,
            "cursor_factory": cursor_factory,
        }
        if not request.balanced:
            try:
                return await super().connect(request.conninfo, **options | request.libpq)
            except (psycopg.ProgrammingError, psycopg.OperationalError) as exc:
                error = malformed.without_values(exc)
                if error is exc:
                    raise
            raise error
        deadline = time.monotonic() + request.timeout
        cluster = await registry.find_async(request, deadline)
        if cluster is None:
            return await super().connect("", **options | request.params)
        source = NodeSource(cluster, request)
        try:
            pgconn = await run_async(dial(source, deadline))
            conn: Self = _adopt(cls, pgconn, source, cluster, request, options)
        except BaseException:
            source.give_back()
            raise
        return conn

    async def close(self) -> None:
        """Close the connection, which then no longer counts for its node."""
        try:
            await super().close()
        finally:
            self._end_lease()


def _adopt(
    cls: type[Any],
    pgconn: pq.abc.PGconn,
    source: NodeSource,
    cluster: Cluster,
    request: Request,
    options: dict[str, Any],
) -> Any:
    """A connection object for what has been dialled, with its options: as psycopg's connect."""
    try:
        conn = cls(pgconn)
        conn._autocommit = bool(options["autocommit"])
        if options["row_factory"]:
            conn.row_factory = options["row_factory"]
        if options["cursor_factory"]:
            conn.cursor_factory = options["cursor_factory"]
        if options["context"]:
            conn._adapters = AdaptersMap(options["context"].adapters)
        conn.prepare_threshold = options["prepare_threshold"]
    except BaseException:
        pgconn.finish()
        raise
    if source.lease is not None:
        conn._lease = source.lease
        conn._cluster = cluster
        conn._request = request
    return conn
