"""All clusters that this process knows, and how a request finds its own.

Decides whether two sets of contact points mean the same cluster, so that its connections are
counted together. Looks up the nodes before the first connection to a cluster: once, however many
threads ask at the same time. Forgets everything in a forked child, which has no connections.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from . import discovery
from .cluster import (
    DISCOVERY_TIMEOUT,
    Cluster,
    ClusterInfo,
    Contact,
    Unreachable,
    at_endpoint,
    describe,
)
from .discovery import NodeRecord, NoDiscovery
from .faults import Fault, classify
from .params import Properties, split

logger = logging.getLogger("ybsmart")


class _Entry:
    """What is known of one set of contact points.

    `gate` is held by the one caller who looks; the others wait for it, as they have nothing else
    to go by. The remaining fields are written under it.
    """

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.cluster: Cluster | None = None
        self.plain_since: float | None = None  # when it was found to have no yb_servers()
        self.attempts = 0
        self.failure: Unreachable | None = None


_lock = threading.Lock()  # guards the two below
_entries: dict[Contact, _Entry] = {}
_clusters: list[Cluster] = []


def find(params: Mapping[str, Any], properties: Properties) -> Cluster | None:
    """The cluster that the parameters lead to. None: a server without `yb_servers()`.

    The first time it asks the configured hosts, in order. Raises `psycopg.OperationalError` with
    each host's reason when none can be reached, and a refusal by the first that answers as it is.
    """
    contact = Contact.of(params)
    with _lock:
        entry = _entries.setdefault(contact, _Entry())
    if entry.cluster is not None:
        return entry.cluster
    seen = entry.attempts
    if _is_plain(entry, properties):
        return None
    with entry.gate:
        if entry.cluster is not None or _is_plain(entry, properties):
            return entry.cluster
        if entry.attempts > seen and entry.failure is not None:
            # Somebody looked while this caller waited; looking again at once would make every
            # one in the line wait for the same hosts in turn.
            raise Unreachable.again(entry.failure)
        _look(entry, contact, params)
        return entry.cluster


def _is_plain(entry: _Entry, properties: Properties) -> bool:
    since = entry.plain_since
    return since is not None and time.monotonic() - since < properties.refresh_interval


def _look(entry: _Entry, contact: Contact, params: Mapping[str, Any]) -> None:
    """Ask the contact points, the first that answers decides. Caller holds the gate."""
    reasons: dict[str, BaseException] = {}
    entry.failure = None
    try:
        for endpoint in contact.endpoints():
            try:
                records = discovery.ask(at_endpoint(params, endpoint), DISCOVERY_TIMEOUT)
                if not records:
                    raise NoDiscovery("yb_servers() lists no node")
            except NoDiscovery as exc:
                if entry.plain_since is None:
                    logger.warning(
                        "%s cannot list its nodes (%s): connecting without load balancing",
                        describe(endpoint),
                        exc,
                    )
                entry.plain_since = time.monotonic()
                return
            except psycopg.Error as exc:
                if classify(exc) is Fault.CALLER:
                    raise
                reasons[describe(endpoint)] = exc
            else:
                entry.cluster = _join(records, params)
                return
        entry.failure = Unreachable("no host of the connection string could be reached", reasons)
        raise entry.failure from list(reasons.values())[-1]
    finally:
        entry.attempts += 1


def _join(records: list[NodeRecord], params: Mapping[str, Any]) -> Cluster:
    """The cluster of these nodes: one that is known, or a new one."""
    with _lock:
        cluster = next((c for c in _clusters if _is_same(c, records)), None)
        if cluster is None:
            cluster = Cluster()
            cluster.learn(records, params)
            _clusters.append(cluster)
            return cluster
    cluster.learn(records, params)
    return cluster


def _is_same(cluster: Cluster, records: list[NodeRecord]) -> bool:
    """By the universe's uuid; where servers are too old to have one, by a node in common."""
    universe = records[0].universe_uuid
    if universe or cluster.universe_uuid:
        return universe == cluster.universe_uuid
    keys = {host.key for host in cluster.table.hosts()}
    return any(record.key in keys for record in records)


# Reports


def clusters() -> tuple[ClusterInfo, ...]:
    """All clusters that this process has connected to, as they are now."""
    with _lock:
        known = list(_clusters)
    return tuple(cluster.info() for cluster in known)


def connection_counts(conninfo: str | None = None, **kwargs: Any) -> dict[str, int]:
    """Open connections of this process by `"host:port"`: of all clusters, or of one.

    Nodes without any are there with 0, as long as their cluster lists them. A conninfo that nobody
    has connected with gives an empty dictionary; the network is not asked.
    """
    with _lock:
        known = list(_clusters)
    if conninfo is not None or kwargs:
        _, rest, libpq = split(conninfo or "", kwargs)
        entry = _entries.get(Contact.of(conninfo_to_dict(rest, **libpq)))
        known = [entry.cluster] if entry is not None and entry.cluster is not None else []
    counts: dict[str, int] = {}
    for cluster in known:
        for host in cluster.table.hosts():
            if host.listed or host.count:
                address = host.info.address
                counts[address] = counts.get(address, 0) + host.count
    return counts


def forget() -> None:
    """Start afresh, as in a forked child: the counts are those of the parent's connections."""
    global _lock
    _lock = threading.Lock()
    _entries.clear()
    _clusters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
