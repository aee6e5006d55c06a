"""What a pool does about its nodes by the clock: those that leave, fall silent, join or return.

Part of tidying up, so by the sweeper's thread; the pool works as well without it, only not as
evenly. Decides with `rebalancing.py` what moves, and from the cluster's knowledge what has to go.
Connects to nothing itself, and never touches a connection that somebody uses, unless its server has
fallen silent.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from . import silence
from ._core import hosts
from ._core import pool as core
from .rebalancing import PAUSE, NodeLoad, Pace, surplus

if TYPE_CHECKING:
    from .cluster import Cluster
    from .pool_hooks import PoolHooks
    from .request import Request

logger = logging.getLogger("ybsmart.pool")

# In seconds.
LEAST_REFRESH = 1.0  # between looks at the node list
SUSPICIOUS = 0.5  # without a byte from the node, while a connection to it waits
HOPELESS = 5.0  # likewise, after which the wait is ended if the node is found to be mute
FIRST_LOOK, LAST_LOOK = 2.0, 10.0  # from a sign of life to a look, at least and at most


class Tending:
    """One pool's. Its fields are used by one thread at a time, the sweeper's."""

    def __init__(self) -> None:
        self._source: tuple[Cluster, Request] | None = None  # of the pool's connections, the latest
        self._drained: set[str] = set()
        self._waits = silence.Watch()
        self._places: set[str] = set()  # nodes that new connections may go to
        self._uneven = False  # a place has been added since all was well
        self._pace = Pace()

    def came_by(self, cluster: Cluster, request: Request) -> None:
        """The pool has a new connection. Called by any thread."""
        self._source = (cluster, request)

    def tend(self, pool: PoolHooks) -> float | None:
        """Do what is due; return in how many seconds to come again at the latest."""
        source = self._source
        if source is None:
            return None
        cluster, request = source
        interval = max(request.properties.refresh_interval, LEAST_REFRESH)
        cluster.upkeep.refresh_if_due(interval, request)
        nodes = {host.key: host for host in cluster.table.hosts()}
        self._drain(pool, nodes)
        soonest = [
            self._listen(pool, cluster, request, nodes),
            self._rebalance(pool, cluster, request, nodes),
        ]
        return min((pause for pause in soonest if pause is not None), default=None)

    def _drain(self, pool: PoolHooks, nodes: dict[str, hosts.Host]) -> None:
        """Nodes that are no longer listed: their connections go, the lent ones when returned."""
        gone = {key for key, host in nodes.items() if not host.listed}
        for shelf in pool._list_shelves():
            if shelf.key in gone and shelf.idle + shelf.lent:
                if shelf.key not in self._drained:
                    logger.info("%s: %s has left the cluster", pool.name, shelf.label)
                # Again and again: one may have been on its way there.
                pool._evict(shelf.key, "drain")
        self._drained = gone

    # Silence

    def _listen(
        self, pool: PoolHooks, cluster: Cluster, request: Request, nodes: dict[str, hosts.Host]
    ) -> float | None:
        """Nodes that say nothing: have them looked at, and give up what waits for them."""
        slots = pool._list_slots()
        waits = self._waits.look(slots, SUSPICIOUS)
        now = time.monotonic()
        for shelf in pool._list_shelves():
            host = nodes.get(shelf.key)
            if host is None:
                continue
            if shelf.idle and cluster.upkeep.is_silent(host):
                # All at once: each would cost a request its time.
                logger.warning("%s: %s is silent", pool.name, shelf.label)
                pool._evict(shelf.key, "silent")
            waiting = {slot: wait for slot, wait in waits.items() if slot.shelf is shelf}
            if waiting and not cluster.upkeep.is_silent(host):
                self._suspect(pool, cluster, request, host, list(waiting.values()), now)
            elif waiting:
                mute = cluster.upkeep.is_mute(host)
                for slot, wait in waiting.items():
                    # A node that cannot be reached by new connections may yet work for the old.
                    if now - wait.since >= HOPELESS and (mute or wait.unheard):
                        self._give_up(pool, slot, now - wait.since)
        return SUSPICIOUS if waits else None

    def _suspect(
        self,
        pool: PoolHooks,
        cluster: Cluster,
        request: Request,
        host: hosts.Host,
        waits: list[silence.Wait],
        now: float,
    ) -> None:
        """Connections wait for this node: is it there at all?"""
        if cluster.upkeep.is_watching(host):
            return
        if now - min(wait.since for wait in waits) < SUSPICIOUS:
            return
        heard = silence.last_heard(s for s in pool._list_slots() if s.shelf.key == host.key)
        if now - heard < SUSPICIOUS:
            return  # it talks to others
        let_in = cluster.answered_at(host)
        if now - let_in >= patience(waits, max(heard, let_in)):
            delay = request.properties.failed_host_delay
            cluster.upkeep.watch(host, delay, "no answer", at_once=True, passed_over=False)

    def _give_up(self, pool: PoolHooks, slot: core.Slot, seconds: float) -> None:
        node = slot.shelf.label
        reason = f"{node} has not answered for {seconds:.1f} s, nor does it let anybody in"
        if self._waits.end(slot, reason):
            logger.warning("%s: %s: closing a connection in use", pool.name, reason)

    # Balance

    def _rebalance(
        self, pool: PoolHooks, cluster: Cluster, request: Request, nodes: dict[str, hosts.Host]
    ) -> float | None:
        """Once there are places that were not there before, move one connection after the other to
        where a new one would go, as long as that is better.

        What is uneven for other reasons, such as idle connections that were closed, is left to
        those that are opened next."""
        if not pool.rebalance or cluster.on_detour() or pool.closed:
            pool._shed(None)
            return None
        for host in nodes.values():
            if host.last_error and host.listed and not cluster.upkeep.is_watching(host):
                # With a delay of zero, it is left to whoever connects next to find out; here that
                # may be nobody.
                cluster.upkeep.watch(host, 0.0, host.last_error, at_once=False, passed_over=False)
        tiers = self._loads(pool, cluster, request, nodes)
        best = next((tier for tier in tiers if any(node.takes_more for node in tier)), [])
        places = {node.key for node in best if node.takes_more}
        self._uneven |= not places <= self._places
        self._places = places
        key = surplus(tiers) if self._uneven else None
        if key is None:
            self._uneven = False
            self._pace.rest()
            pool._shed(None)
            return None
        if pool._backoff.failures:
            # What is returned now is worth more than what may not be had in its stead.
            pool._shed(None)
            return PAUSE
        if pool.connecting_count:
            return PAUSE
        wait = self._pace.begin(time.monotonic(), key, nodes[key].count)
        if wait:
            return wait
        logger.info("%s: moving a connection away from %s", pool.name, nodes[key].info.address)
        pool._shed(key)
        return PAUSE

    @staticmethod
    def _loads(
        pool: PoolHooks, cluster: Cluster, request: Request, nodes: dict[str, hosts.Host]
    ) -> list[list[NodeLoad]]:
        now = time.monotonic()
        own = {shelf.key: shelf.idle + shelf.lent for shelf in pool._list_shelves()}
        most = pool.max_per_node

        def load(host: hosts.Host, allowed: bool) -> NodeLoad:
            mine = own.get(host.key, 0)
            # One that nobody passes over has an error all the same until it is back.
            well = host.down_until <= now and not host.last_error
            takes = allowed and well and (most is None or mine < most)
            return NodeLoad(host.key, host.count, mine, takes)

        tiers = cluster.tiers(request.properties.policy)
        loads = [[load(host, True) for host in tier.hosts] for tier in tiers]
        allowed = {host.key for tier in tiers for host in tier.hosts}
        # What the policy does not allow any more, as when a node's type has changed.
        rest = [load(h, False) for h in nodes.values() if h.listed and h.key not in allowed]
        return [*loads, rest]


def patience(waits: list[silence.Wait], alive: float) -> float:
    """How long a node that was `alive` then, and is waited for, may say nothing before it is looked
    at.

    A query that was under way for so long while the node was well may take as long again. One that
    has begun since tells nothing in its favour, nor does one that the node's system has not even
    acknowledged.
    """
    youngest = max(alive if wait.unheard else wait.since for wait in waits)
    return min(max(alive - youngest, FIRST_LOOK), LAST_LOOK)
