"""One cluster as this process knows it: its nodes, their counts, and when to look again.

Holds what connections to the same cluster share, whatever URL they came by: a host table and the
contact points. Asks for the node list once before the first connection, for which callers wait,
and from then on in the background, for which nobody does. Never opens a user's connection.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from . import discovery
from ._core import hosts
from .discovery import NodeRecord, NoDiscovery
from .placement import Policy

logger = logging.getLogger("ybsmart")

DISCOVERY_TIMEOUT = 5.0  # seconds to connect for the node list, and as many for the answer


@dataclass(frozen=True)
class NodeInfo:
    """A node and its load, at the moment it was asked for."""

    host: str
    port: int
    public_ip: str
    cloud: str
    region: str
    zone: str
    node_type: str
    uuid: str
    connections: int
    """Open connections of this process, those being opened included."""
    in_use: int
    """Those of them that are checked out of pools."""
    state: str
    """`"up"`, `"down"` (failed a short while ago) or `"gone"` (no longer in the cluster)."""
    last_error: str | None

    @property
    def placement(self) -> str:
        """`cloud.region.zone`"""
        return f"{self.cloud}.{self.region}.{self.zone}"

    @property
    def address(self) -> str:
        """`host:port`"""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class ClusterInfo:
    """A cluster, at the moment it was asked for."""

    universe_uuid: str | None
    nodes: tuple[NodeInfo, ...]
    refreshed_at: float | None
    """Seconds since the epoch of the last answer that listed nodes; None before the first."""
    refreshes: int
    """How many there have been."""


class Lender(Protocol):
    """A pool, as far as reports are concerned."""

    def lent_on(self, key: str) -> int:
        """How many connections to the node `key` it has lent."""
        ...


lenders: weakref.WeakSet[Lender] = weakref.WeakSet()


@dataclass(frozen=True)
class Contact:
    """Where to find a cluster: what a conninfo and libpq's environment say of it."""

    host: str
    hostaddr: str
    port: str
    service: str

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Contact:
        def value(name: str) -> str:
            return str(params.get(name) or os.environ.get(f"PG{name.upper()}") or "")

        return cls(value("host"), value("hostaddr"), value("port"), value("service"))

    def endpoints(self) -> list[dict[str, str]]:
        """The hosts one by one, as parameters for libpq; itself where it names none."""
        names, addresses = self.host.split(","), self.hostaddr.split(",")
        ports = self.port.split(",")
        count = max(len(names), len(addresses))
        if len(ports) not in (1, count) or (self.hostaddr and self.host and len(names) != count):
            raise psycopg.ProgrammingError(
                f"{len(names)} in host, {len(addresses)} in hostaddr, {len(ports)} in port: give "
                "as many ports as hosts, or one for all"
            )
        return [
            {
                key: value
                for key, value in (
                    ("host", names[i] if i < len(names) else ""),
                    ("hostaddr", addresses[i] if i < len(addresses) else ""),
                    ("port", ports[i] if len(ports) > 1 else ports[0]),
                )
                if value
            }
            for i in range(count)
        ]


def describe(endpoint: Mapping[str, Any]) -> str:
    """An endpoint in a message."""
    host = endpoint.get("host") or endpoint.get("hostaddr") or "the default host"
    return f"{host}:{endpoint['port']}" if endpoint.get("port") else str(host)


class Unreachable(psycopg.OperationalError):
    """No host of a list could be connected to."""

    def __init__(self, intro: str, reasons: Mapping[str, BaseException]) -> None:
        lines = [f"  {where}: {_one_line(reason)}" for where, reason in reasons.items()]
        super().__init__("\n".join([intro, *lines]))

    @classmethod
    def again(cls, earlier: Unreachable) -> Unreachable:
        """The same for another caller, with a traceback and a cause of its own."""
        error = cls(str(earlier), {})
        error.__cause__ = earlier.__cause__
        return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Cluster:
    """What is known of one cluster. Safe for any number of threads.

    `_lock` guards the fields below it and is never held during I/O.
    """

    def __init__(self) -> None:
        self.table = hosts.HostTable(random.SystemRandom().randrange(1, 2**64))
        self._lock = threading.Lock()
        self._listed: tuple[hosts.Host, ...] = ()
        self._tiers: dict[Policy, tuple[tuple[hosts.Host, ...], ...]] = {}
        self._contacts: list[Mapping[str, Any]] = []
        self._refreshing = False
        self._refreshed = 0.0  # by the monotonic clock, whatever the outcome
        self.universe_uuid: str | None = None
        self.refreshed_at: float | None = None
        self.refreshes = 0

    # Selection

    def tiers(self, policy: Policy) -> tuple[tuple[hosts.Host, ...], ...]:
        """The hosts that a policy allows, worked out once per policy and node list."""
        tiers = self._tiers.get(policy)
        if tiers is None:
            with self._lock:
                listed = self._listed
                nodes: list[NodeRecord] = [host.info for host in listed]
                tiers = tuple(tuple(listed[i] for i in tier) for tier in policy.tiers(nodes))
                self._tiers[policy] = tiers
        return tiers

    # Refreshing

    def learn(self, records: list[NodeRecord], params: Mapping[str, Any]) -> None:
        """Take over a fresh list of nodes, and the parameters that brought it."""
        with self._lock:
            # An empty answer says more about the server than about the cluster.
            if records:
                self._listed = self.table.update([(r.key, r) for r in records])
                self._tiers = {}
                self.universe_uuid = records[0].universe_uuid or None
                self.refreshed_at = time.time()
                self.refreshes += 1
            self._refreshed = time.monotonic()
            self._contacts = [params]

    def refresh_if_due(self, interval: float, params: Mapping[str, Any]) -> None:
        """Start a refresh in the background if the node list is older than `interval` seconds.

        `params`: those of the request; its credentials are the latest that anybody had.
        """
        if time.monotonic() - self._refreshed < interval:
            return
        with self._lock:
            if self._refreshing:
                return
            self._refreshing = True
        thread = threading.Thread(
            target=self._refresh, args=(dict(params),), name="ybsmart-refresh", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            self._refreshing = False
            raise

    def _refresh(self, params: Mapping[str, Any]) -> None:
        """Ask one server after the other, those in service first, until one lists the nodes."""
        try:
            now = time.monotonic()
            known = sorted(self._listed, key=lambda host: host.down_until > now)
            endpoints = [{"host": h.info.host, "port": str(h.info.port)} for h in known]
            endpoints += [e for e in Contact.of(params).endpoints() if e not in endpoints]
            for endpoint in endpoints:
                try:
                    records = discovery.ask(at_endpoint(params, endpoint), DISCOVERY_TIMEOUT)
                except (psycopg.Error, NoDiscovery) as exc:
                    logger.info("refresh from %s failed: %s", describe(endpoint), _one_line(exc))
                else:
                    self.learn(records, params)
                    return
            logger.warning("no server could be asked for the nodes; keeping the list there is")
        finally:
            with self._lock:
                self._refreshing = False
                self._refreshed = time.monotonic()

    # Reports

    def node_info(self, host: hosts.Host) -> NodeInfo:
        """A snapshot of one node."""
        record: NodeRecord = host.info
        state = "up" if host.down_until <= time.monotonic() else "down"
        return NodeInfo(
            host=record.host,
            port=record.port,
            public_ip=record.public_ip,
            cloud=record.cloud,
            region=record.region,
            zone=record.zone,
            node_type=record.node_type,
            uuid=record.uuid,
            connections=host.count,
            in_use=sum(lender.lent_on(host.key) for lender in list(lenders)),
            state=state if host.listed else "gone",
            last_error=host.last_error or None,
        )

    def info(self) -> ClusterInfo:
        """A snapshot of the cluster."""
        nodes = tuple(self.node_info(host) for host in self.table.hosts())
        return ClusterInfo(self.universe_uuid, nodes, self.refreshed_at, self.refreshes)


def at_endpoint(params: Mapping[str, Any], endpoint: Mapping[str, str]) -> dict[str, Any]:
    """The parameters, aimed at one host."""
    aimed = {k: v for k, v in params.items() if k not in ("host", "hostaddr", "port")}
    # libpq's own balancing has nothing left to choose from, and servers below 16 refuse it.
    aimed.pop("load_balance_hosts", None)
    return {**aimed, **endpoint}
