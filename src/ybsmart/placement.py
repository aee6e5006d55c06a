"""Which nodes a request may use, and in which order: node types and topology keys.

Pure data: turns a list of nodes and a policy into tiers, the best first. Never connects, counts or
looks at health; the host table picks within the tiers.

The tables are those of YugabyteDB's smart-driver documentation ("Order of node selection").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .named_tuples import LeanNamedTuple

MODES = ("false", "true", "any", "only-primary", "only-rr", "prefer-primary", "prefer-rr")
PRIMARY = "primary"
READ_REPLICA = "read_replica"

_TYPE_OF_MODE = {
    "only-primary": PRIMARY,
    "prefer-primary": PRIMARY,
    "only-rr": READ_REPLICA,
    "prefer-rr": READ_REPLICA,
}


class Placed(Protocol):
    """What tiers are made of: anything that knows where it is and of which type."""

    @property
    def cloud(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def zone(self) -> str: ...
    @property
    def node_type(self) -> str: ...


class TopologyKey(LeanNamedTuple):
    """`cloud.region.zone:priority`; `zone` None stands for `*`. Compared without case."""

    cloud: str
    region: str
    zone: str | None
    priority: int = 1

    def matches(self, node: Placed) -> bool:
        return (
            node.cloud.casefold() == self.cloud
            and node.region.casefold() == self.region
            and (self.zone is None or node.zone.casefold() == self.zone)
        )


def parse_topology_keys(text: str) -> tuple[TopologyKey, ...]:
    """Read `cloud.region.zone[:1..10]`, comma separated.

    Raises ValueError that names the key at fault and what is allowed.
    """
    return tuple(_parse_key(key.strip()) for key in text.split(","))


def _parse_key(key: str) -> TopologyKey:
    placement, colon, priority = key.partition(":")
    parts = [part.strip().casefold() for part in placement.split(".")]
    if colon and not (priority.isascii() and priority.isdigit() and 1 <= int(priority) <= 10):
        raise ValueError(f"{key!r}: the priority behind ':' is a number from 1 to 10")
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"{key!r}: expected cloud.region.zone, with or without :priority")
    if "*" in parts[:2]:
        raise ValueError(f"{key!r}: only the zone may be '*'")
    cloud, region, zone = parts
    return TopologyKey(cloud, region, None if zone == "*" else zone, int(priority or 1))


class Policy(LeanNamedTuple):
    """What a request says about the nodes it wants."""

    mode: str = "any"
    topology_keys: tuple[TopologyKey, ...] = ()
    keys_only: bool = False

    @property
    def _wanted(self) -> str | None:
        """The node type that is asked for or preferred."""
        return _TYPE_OF_MODE.get(self.mode)

    def describe(self) -> str:
        """The nodes that are allowed, in words, for messages."""
        type_ = {PRIMARY: "primary nodes", READ_REPLICA: "read replicas"}
        what = type_.get(self._wanted or "", "nodes")
        if self.mode.startswith("prefer"):
            what = "nodes"
        elif self.keys_only and self.topology_keys:
            what += " matching topology_keys"
        return what

    def may_leave_the_list(self) -> bool:
        """Whether a host will do that the cluster does not list: any node would, then."""
        return self._wanted is None and not (self.keys_only and self.topology_keys)

    def tiers(self, nodes: Sequence[Placed]) -> tuple[tuple[int, ...], ...]:
        """The nodes this policy allows, by index: the best tier first, each node in one tier."""
        wanted = self._wanted
        left = [i for i, n in enumerate(nodes) if wanted in (None, n.node_type)]
        tiers = []
        for priority in sorted({key.priority for key in self.topology_keys}):
            keys = [key for key in self.topology_keys if key.priority == priority]
            tiers.append([i for i in left if any(key.matches(nodes[i]) for key in keys)])
            left = [i for i in left if i not in tiers[-1]]
        prefers = self.mode.startswith("prefer")
        # A preference ignores keys_only, as documented: it means "rather than fail".
        if prefers or not (self.keys_only and self.topology_keys):
            tiers.append(left)
        if prefers:
            # The other type comes last and from the whole cluster, without regard to the keys.
            tiers.append([i for i, n in enumerate(nodes) if n.node_type != wanted])
        return tuple(tuple(tier) for tier in tiers if tier)
