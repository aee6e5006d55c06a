"""A psycopg connection that may go to any node of a cluster, and knows to which it went.

Connecting: reserve a place on the best node, try it, go on to the next when the node is at fault.
The place is held by a lease that falls with the connection, however it ends.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import AdaptContext, ConnParam
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import Row, RowFactory

from . import registry, steering
from ._core import hosts
from .cluster import Cluster, NodeInfo, Unreachable, at_endpoint
from .faults import Fault, classify
from .params import Properties, split

C = TypeVar("C", bound="Connection[Any]")


class Connection(psycopg.Connection[Row]):
    """`psycopg.Connection`, connected through the whole cluster when `load_balance` says so."""

    __module__ = "ybsmart"

    _lease: hosts.Lease | None = None
    _cluster: Cluster | None = None

    @classmethod
    def connect(  # type: ignore[override]
        cls: type[C],
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: RowFactory[Any] | None = None,
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        **kwargs: ConnParam,
    ) -> C:
        """Connect and return a new connection.

        As `psycopg.Connection.connect`, with the properties `load_balance`, `topology_keys`,
        `yb_servers_refresh_interval` (seconds), `fallback_to_topology_keys_only` and
        `failed_host_reconnect_delay_secs`, in the conninfo, as keyword arguments or from the
        environment. Without load balancing it is psycopg's own, with the conninfo as given.

        Raises `ybsmart.InvalidProperty` before any traffic; psycopg's own error when the caller is
        at fault (wrong password, unknown database); `psycopg.OperationalError` with one reason
        per node when no node can be connected to. Safe to call from any number of threads.
        """
        properties, conninfo, libpq = split(conninfo, kwargs)
        options: dict[str, Any] = {
            "autocommit": autocommit,
            "prepare_threshold": prepare_threshold,
            "context": context,
            "row_factory": row_factory,
            "cursor_factory": cursor_factory,
        }
        if not properties.load_balance:
            return super().connect(conninfo, **options, **libpq)
        params = conninfo_to_dict(conninfo, **libpq)
        cluster = registry.find(params, properties)
        if cluster is None:
            return super().connect("", **options, **params)
        cluster.refresh_if_due(properties.refresh_interval, params)
        return cls._connect_balanced(cluster, properties, params, options)

    @classmethod
    def _connect_balanced(
        cls: type[C],
        cluster: Cluster,
        properties: Properties,
        params: dict[str, Any],
        options: dict[str, Any],
    ) -> C:
        table = cluster.table
        tiers = cluster.tiers(properties.policy)
        tried: set[hosts.Host] = set()
        reasons: dict[str, BaseException] = {}
        while lease := steering.reserve(table, tiers, time.monotonic(), tried or None):
            host = lease.host
            endpoint = {"host": host.info.host, "port": str(host.info.port)}
            try:
                conn = super().connect("", **options, **at_endpoint(params, endpoint))
            except BaseException as exc:
                lease.release()
                fault = classify(exc)
                if fault is Fault.CALLER:
                    raise
                if fault is Fault.NODE:
                    until = time.monotonic() + properties.failed_host_delay
                    table.mark_down(host, until, str(exc))
                tried.add(host)
                reasons[host.info.address] = exc
            else:
                conn._lease = lease
                conn._cluster = cluster
                if host.down_until or host.last_error:
                    table.mark_up(host)
                return conn
        wanted = properties.policy.describe()
        if not reasons:
            raise psycopg.OperationalError(
                f"the cluster has no {wanted} (load_balance={properties.policy.mode})"
            )
        last = list(reasons.values())[-1]
        raise Unreachable(f"none of the {wanted} could be connected to", reasons) from last

    @property
    def node(self) -> NodeInfo | None:
        """The node this connection goes to, as it is now.

        None without load balancing, and where the server has no `yb_servers()`.
        """
        if self._lease is None or self._cluster is None:
            return None
        return self._cluster.node_info(self._lease.host)

    def close(self) -> None:
        """Close the connection; it counts for its node no more."""
        try:
            super().close()
        finally:
            # Not when psycopg gave it back to its pool instead of closing it.
            if self._lease is not None and self.closed:
                self._lease.release()
