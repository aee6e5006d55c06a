"""All clusters that this process knows, and how a request finds its own.

Decides whether two sets of contact points mean the same cluster, so that its connections are
counted together. Has the nodes looked up before the first connection to a cluster: once, however
many ask at the same time, in a thread that threads and event loops can wait for alike. Forgets
everything in a forked child, which has no connections.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors

from . import dialing, forks
from .alarm import Completion
from .candidates import ControlSource
from .cluster import Cluster, ClusterInfo
from .dialing import HEDGE_DELAY
from .discovery import NodeRecord, NoDiscovery
from .errors import Unreachable, again
from .listing import Listing, list_nodes
from .request import Contact, Request, request_of
from .upkeep import FIRST_RETRY

logger = logging.getLogger("ybsmart")

LOOK_TIMEOUT = 15.0  # seconds to reach a server for the first list; `connect_timeout` if shorter


class _Entry:
    """What is known of one set of contact points. Its fields are written under `_lock`."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.plain_until: float | None = None  # has no node list; look again at that time
        self.excuse: NoDiscovery | None = None  # why it has none
        self.look: _Look | None = None  # under way


class _Look:
    """The first look at a cluster, for all who ask at the same time."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.failure: BaseException | None = None
        self.completion = Completion()

    def check(self, request: Request) -> None:
        """Raise why it failed, unless that is due to the credentials of somebody else."""
        if not self.completion.is_over:
            raise errors.ConnectionTimeout(
                "connection timeout expired before any host had answered"
            )
        if isinstance(self.failure, Unreachable) or self.request is request:
            if isinstance(self.failure, psycopg.Error):
                # Many may raise it, each with a traceback of its own.
                raise again(self.failure) from self.failure.__cause__
            if self.failure is not None:
                raise self.failure


# Guards the two below, and the entries. A finaliser, or a signal's handler, may come here while its
# own thread has it.
_lock = threading.RLock()
_entries: dict[Contact, _Entry] = {}
_clusters: list[Cluster] = []


def find(request: Request, deadline: float) -> Cluster | None:
    """The cluster that a request leads to, its list of nodes as fresh as the request wants it.

    None: a server without `yb_servers()`. Waits for the first look, until `deadline` (of the
    monotonic clock). Raises `psycopg.OperationalError` with each host's reason when none can be
    reached, and a refusal by the first that answers as it is.
    """
    looked = False
    while isinstance(found := _find(request), _Look):
        found.completion.wait(deadline - time.monotonic())
        found.check(request)
        looked = True
    if found is not None and not looked and (refresh := _refresh(found, request)) is not None:
        refresh.wait(HEDGE_DELAY)
    return found


async def find_async(request: Request, deadline: float) -> Cluster | None:
    """As `find`, without blocking the event loop."""
    looked = False
    while isinstance(found := _find(request), _Look):
        await _wait(found.completion, deadline - time.monotonic())
        found.check(request)
        looked = True
    if found is not None and not looked and (refresh := _refresh(found, request)) is not None:
        await _wait(refresh, HEDGE_DELAY)
    return found


async def _wait(completion: Completion, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not over.done():
            over.set_result(None)

    def tell() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(note)

    completion.tell(tell)
    await asyncio.wait([over], timeout=max(0.0, seconds))


def _refresh(cluster: Cluster, request: Request) -> Completion | None:
    """Have the list refreshed if it is time; return what to wait for, if anything.

    Whoever wants the list as it is before each connection waits a moment for it, in which a
    server that is well answers, and one that is not does not hold anybody up.
    """
    interval = request.properties.refresh_interval
    refresh = cluster.upkeep.refresh_if_due(interval, request)
    return refresh if interval == 0 else None


def _find(request: Request) -> Cluster | _Look | None:
    """The cluster, None if it is no cluster, or the look that has to be waited for."""
    forks.notice()
    entry = _entries.get(request.contact) or _entries.setdefault(request.contact, _Entry())
    if entry.cluster is not None:
        return entry.cluster
    now = time.monotonic()
    own = _Look(request)
    try:
        # Within the lock nothing is called, so that no finaliser or handler gets in between: one
        # that connects would wait for a look that in turn waits for the lock.
        with _lock:
            if entry.cluster is not None:
                return entry.cluster
            plain_until = entry.plain_until
            if entry.look is None and (plain_until is None or now >= plain_until):
                entry.look = own
            look = entry.look
        if look is own:
            # Without the lock: where gevent has made greenlets of threads only after this module
            # was imported, starting one switches to others, which may come here.
            _start(entry, own)
    except BaseException:
        _give_up(entry, own)
        raise
    if plain_until is None:
        assert look is not None
        return look
    if entry.excuse is not None and not request.properties.policy.may_leave_the_list():
        raise psycopg.OperationalError(
            f"the nodes are not known ({entry.excuse}), and load_balance="
            f"{request.properties.policy.mode} allows no other"
        )
    return None


def _start(entry: _Entry, look: _Look) -> None:
    threading.Thread(target=_run, args=(entry, look), name="ybsmart-refresh", daemon=True).start()


def _give_up(entry: _Entry, look: _Look) -> None:
    """End a look that was interrupted before its thread had started, if it was begun at all; who
    waits begins another."""
    with _lock:
        if entry.look is not look:
            return
        entry.look = None
    look.completion.end()


def _run(entry: _Entry, look: _Look) -> None:
    """Look, and note what comes of it. In a thread of its own."""
    request = look.request
    cluster: Cluster | None = None
    excuse: NoDiscovery | None = None
    try:
        try:
            listing = list_nodes(ControlSource(request), min(request.timeout, LOOK_TIMEOUT))
            cluster = _join(listing, request)
        except NoDiscovery as exc:
            excuse = exc
            if entry.plain_until is None:
                logger.warning("no list of nodes (%s): connecting without load balancing", exc)
    except BaseException as exc:  # a log handler's, too: somebody waits
        look.failure = exc
    with _lock:
        if entry.look is not look:
            return  # given up by an interrupt, although this thread had started
        entry.look = None
        entry.cluster = cluster
        if excuse is not None:
            again_in = request.properties.refresh_interval if excuse.lasting else FIRST_RETRY
            entry.plain_until = time.monotonic() + again_in
            entry.excuse = None if excuse.lasting else excuse
    look.completion.end()


def _join(listing: Listing, request: Request) -> Cluster:
    """The cluster of these nodes: one that is known, or a new one."""
    new = Cluster()
    new.learn(listing.records, listing.ways_in, request)
    with _lock:
        known = next((c for c in _clusters if _is_same(c, listing.records)), None)
        if known is None:
            _clusters.append(new)
            return new
    known.learn(listing.records, listing.ways_in, request)
    return known


def _is_same(cluster: Cluster, records: list[NodeRecord]) -> bool:
    """By the universe's uuid; where a server is too old to know it, by a node in common."""
    universe = records[0].universe_uuid
    if universe and cluster.universe_uuid:
        return universe == cluster.universe_uuid
    hosts = cluster.table.hosts()
    keys = {host.key for host in hosts} | {host.info.address for host in hosts if host.listed}
    return any(record.key in keys or record.address in keys for record in records)


# Reports


def clusters() -> tuple[ClusterInfo, ...]:
    """All clusters that this process has connected to, as they are now.

    Safe for any number of threads.
    """
    forks.notice()
    return tuple(cluster.info() for cluster in list(_clusters))


def connection_counts(conninfo: str | None = None, **kwargs: Any) -> dict[str, int]:
    """How many connections this process has open, by `"host:port"`: in all clusters, or in one.

    Nodes without any are included with 0, as long as their cluster lists them. A conninfo that has
    not been connected with gives an empty dictionary; nothing is sent. Raises `InvalidProperty`,
    and psycopg's `ProgrammingError` for a malformed conninfo. Safe for any number of threads.
    """
    forks.notice()
    known = list(_clusters)  # in one step, like every change of it
    if conninfo is not None or kwargs:
        # Whose cluster it is does not depend on whether this request would be balanced.
        request = request_of(conninfo or "", {**kwargs, "load_balance": True})
        entry = _entries.get(request.contact)
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
    _lock = threading.RLock()
    _entries.clear()
    _clusters.clear()
    dialing.forget()


forks.in_child(forget)
