"""One cluster as this process knows it: its nodes, their counts, their health.

Holds what connections to the same cluster share, whatever URL they came by, and decides what their
outcomes mean for the next ones. Never connects, waits or starts a thread: `upkeep.py` does.
"""

from __future__ import annotations

import random
import threading
import time
from typing import NamedTuple

import psycopg
from psycopg import errors

from . import lenders
from ._core import hosts
from .addresses import AddressMap, host_port, public_or_private
from .candidates import NodeTrial
from .dialing import HEDGE_DELAY, Target, under_way
from .discovery import NodeRecord
from .faults import Fault, printable
from .params import Properties
from .placement import Policy
from .request import Request
from .upkeep import Upkeep

PER_CONNECT = 0.02  # seconds by which each connect under way in this process delays the others


class NodeInfo(NamedTuple):
    """A node and its load, at the moment it was asked for."""

    host: str
    """The address or name by which the cluster lists it."""
    port: int
    """The port by which the cluster lists it."""
    public_ip: str
    """Its public address or name; empty if it has none."""
    cloud: str
    """Where it is: the cloud of its `placement`."""
    region: str
    """Where it is: the region of its `placement`."""
    zone: str
    """Where it is: the zone of its `placement`."""
    node_type: str
    """`"primary"` or `"read_replica"`."""
    uuid: str
    """By which the cluster identifies it; empty if its servers do not say."""
    connections: int
    """Open connections of this process, including those being opened."""
    in_use: int
    """How many of them are lent by pools."""
    state: str
    """`"up"`, `"down"` (failed a short while ago) or `"gone"` (no longer in the cluster)."""
    last_error: str | None
    """Why the last attempt to connect to it failed; None if it succeeded."""

    @property
    def placement(self) -> str:
        """`cloud.region.zone`, as in `topology_keys`."""
        return f"{self.cloud}.{self.region}.{self.zone}"

    @property
    def address(self) -> str:
        """`host:port`, as in `connection_counts`."""
        return host_port(self.host, self.port)


class ClusterInfo(NamedTuple):
    """A cluster, at the moment it was asked for."""

    universe_uuid: str | None
    """By which the cluster identifies itself; None if its servers do not say."""
    nodes: tuple[NodeInfo, ...]
    """Its nodes, and those that have left it while connections to them were open."""
    refreshed_at: float | None
    """When the list of nodes was last refreshed, in seconds since the epoch; None before that."""
    refreshes: int
    """How often it has been."""


class Cluster:
    """What is known of one cluster. Safe for any number of threads.

    `_lock` makes one step of taking over a list of nodes, and of arranging it into tiers. It is
    held for a moment and never during I/O; a finaliser, or a signal's handler, may come here while
    its own thread has it. What connects have shown is noted without it: each note is one step, and
    the latest is as good as any.
    """

    def __init__(self) -> None:
        self.table = hosts.HostTable(random.SystemRandom().randrange(1, 2**64))
        self.upkeep = Upkeep(self)
        self._lock = threading.RLock()
        self._listed: tuple[hosts.Host, ...] = ()
        self._tiers: dict[Policy, tuple[hosts.Tier, ...]] = {}
        self.universe_uuid: str | None = None
        self.refreshed_at: float | None = None
        self.refreshes = 0
        # What connects have shown.
        self._public: bool | None = None  # by which addresses it is reached; None: not known yet
        self._detour = False
        self._paces: dict[str, float] = {}  # seconds that connecting takes, by node
        self._answered_at: dict[str, float] = {}
        self.request: Request | None = None
        """The latest with which somebody has been let in."""

    # Selection

    def tiers(self, policy: Policy) -> tuple[hosts.Tier, ...]:
        """The hosts that a policy allows, worked out once per policy and node list."""
        tiers = self._tiers.get(policy)
        if tiers is None:
            with self._lock:
                tiers = self._tiers.get(policy)
                if tiers is None:  # nobody was quicker
                    listed = self._listed
                    nodes: list[NodeRecord] = [host.info for host in listed]
                    tiers = self.table.arrange(
                        [[listed[i] for i in tier] for tier in policy.tiers(nodes)]
                    )
                    self._tiers[policy] = tiers
        return tiers

    def targets(self, record: NodeRecord, address_map: AddressMap) -> list[Target]:
        """Where to find a node, the likely place first."""
        if mapped := address_map.find(record.host, record.port):
            return [Target(mapped[0], "", mapped[1])]
        port = str(record.port)
        private = [Target(record.host, a, port) for a in record.addresses or ("",)]
        if self._public is False or not record.public_ip or record.public_ip == record.host:
            return private
        public = [Target(record.host, a, port) for a in record.public_addresses]
        if not public:
            public = [Target(record.public_ip, "", port)]
        return public if self._public else private + public

    def known(self) -> tuple[list[NodeRecord], list[NodeRecord]]:
        """The nodes on the list: those in service, and those that are down."""
        now = time.monotonic()
        listed = self._listed
        return (
            [host.info for host in listed if host.down_until <= now],
            [host.info for host in listed if host.down_until > now],
        )

    def hedge_delay(self, host: hosts.Host) -> float:
        """Seconds to give a node before the next is tried as well.

        A quarter of a second where connecting is fast. Where it is not, for distance or because
        this process opens many at the same time, what is usual there, and some more.
        """
        paces = self._paces
        usual = paces.get(host.key) or max(list(paces.values()), default=0.0)
        return max(HEDGE_DELAY, 3 * usual, PER_CONNECT * under_way())

    # Health

    def answered(self, host: hosts.Host, seconds: float | None, request: Request | None) -> None:
        """A node has been seen to be there: it is in service, whatever was said of it before.

        `seconds`, `request`: how long connecting took and with what, if it let somebody in.
        """
        self._answered_at[host.key] = time.monotonic()
        if seconds is not None:
            usual = self._paces.get(host.key, seconds)
            self._paces[host.key] = usual + (seconds - usual) / 4
        if request is not None:
            self.request = request
        self._detour = False
        if host.down_until or host.last_error or self.upkeep.is_watching(host):
            self.upkeep.is_back(host)

    def answered_at(self, host: hosts.Host) -> float:
        """When it was last seen to let somebody in, or to refuse; 0.0: never."""
        return self._answered_at.get(host.key, 0.0)

    def failed(
        self,
        trial: NodeTrial,
        error: psycopg.OperationalError,
        fault: Fault,
        properties: Properties,
    ) -> None:
        """A node could not be connected to. Its count stays what it is.

        It is passed over until a look at it succeeds: after the delay, or at once where it has
        only been silent. Where it broke off for no reason (`DOUBTFUL`), that look decides alone.
        """
        host = trial.host
        if self.answered_at(host) > trial.started:
            return  # it has let somebody in since
        text = printable(str(error))
        delay = properties.failed_host_delay
        if delay == 0:
            self.table.mark_down(host, time.monotonic(), text)
            return
        at_once = fault is Fault.DOUBTFUL or isinstance(error, errors.ConnectionTimeout)
        self.upkeep.watch(host, delay, text, at_once=at_once, passed_over=fault is Fault.NODE)

    def reached_by(self, record: NodeRecord, target: Target) -> None:
        """A node has been connected to there: remember by which of its addresses."""
        if self._public is None and record.public_ip and target.hostaddr:
            if target.hostaddr in record.addresses:
                self._public = False
            elif target.hostaddr in record.public_addresses:
                self._public = True

    def on_detour(self) -> bool:
        """No listed node has been reachable lately, and a configured host has."""
        if self._detour:
            now = time.monotonic()
            # A node that is new to the list has not been tried yet.
            self._detour = all(host.down_until > now for host in self._listed)
        return self._detour

    def start_detour(self, request: Request) -> None:
        """A configured host has let somebody in where no node could: look at the list again."""
        self._detour = True
        self.request = request
        self.lost(request)

    def lost(self, request: Request) -> None:
        """No node could be connected to: the list or the addresses may be out of date."""
        self._public = None
        self.upkeep.refresh_soon(request)

    # The node list

    def learn(self, records: list[NodeRecord], ways_in: set[str], request: Request) -> None:
        """Take over a fresh list of nodes: by whom it came, and what was asked."""
        before = {host: host.info for host in self._listed}
        with self._lock:
            self._listed = self.table.update(self._keyed(records))
            self._tiers = {}
            self.universe_uuid = records[0].universe_uuid or self.universe_uuid
            if self._public is None:
                self._public = public_or_private(records, ways_in)
            listed = {host.key for host in self.table.hosts()}
            for memory in (self._paces, self._answered_at):
                for key in memory.keys() - listed:  # a set of its own, made in one step
                    del memory[key]
            self.request = request
            self.refreshed_at = time.time()
            self.refreshes += 1
        moved = [h for h in self._listed if h in before and not _same_place(h.info, before[h])]
        self.upkeep.look_at(moved)

    def _keyed(self, records: list[NodeRecord]) -> list[tuple[str, NodeRecord]]:
        """The records with the keys of their hosts; a known host keeps the key it has.

        Servers of one cluster may be of different releases during an upgrade, so that the same
        node comes now with its uuid, now without.
        """
        known = {host.key: host.info for host in self.table.hosts()}
        at = {host.info.address: host.key for host in self._listed}
        keyed = []
        for record in records:
            key = record.key
            if key not in known:
                other = at.get(record.address)
                if other is not None and not (record.uuid and known[other].uuid):
                    key = other
            keyed.append((key, self._with_addresses(record, known.get(key))))
        return keyed

    @staticmethod
    def _with_addresses(record: NodeRecord, before: NodeRecord | None) -> NodeRecord:
        """A name that cannot be resolved at the moment keeps the addresses that it had."""
        if before is None:
            return record
        if not record.addresses and before.host == record.host:
            record = record._replace(addresses=before.addresses)
        if not record.public_addresses and before.public_ip == record.public_ip:
            record = record._replace(public_addresses=before.public_addresses)
        return record

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
            in_use=lenders.lent_on(host.key),
            state=state if host.listed else "gone",
            last_error=host.last_error or None,
        )

    def info(self) -> ClusterInfo:
        """A snapshot of the cluster."""
        nodes = tuple(self.node_info(host) for host in self.table.hosts())
        return ClusterInfo(self.universe_uuid, nodes, self.refreshed_at, self.refreshes)


def _same_place(one: NodeRecord, other: NodeRecord) -> bool:
    return one._replace(node_type="", cloud="", region="", zone="") == other._replace(
        node_type="", cloud="", region="", zone=""
    )
