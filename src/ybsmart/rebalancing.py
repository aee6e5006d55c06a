"""Which connection of a pool should move to another node, and how fast they may.

Decides from counts alone. Where a new connection would go is the cluster's to decide (the least
loaded node of the best level that has one in service), so a connection is moved only if it would
then be in a better place. Never connects, closes or reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from .named_tuples import LeanNamedTuple

# In seconds.
PAUSE = 0.2  # between two moves of a pool
FIRST_DOUBT, LAST_DOUBT = 1.0, 60.0  # instead, after a move that was in vain; doubled in between


class NodeLoad(LeanNamedTuple):
    """A node as one pool sees it."""

    key: str
    total: int
    """Connections of the whole process, those being opened included: new ones go by it."""
    own: int
    """Those of them that are the pool's."""
    takes_more: bool
    """It is in service and has not reached the pool's `max_per_node`."""


def surplus(tiers: Sequence[Sequence[NodeLoad]]) -> str | None:
    """The node that one of the pool's connections should leave; None when all is well.

    `tiers`: the best level first. Moving one at a time, as long as there is one to move, leaves no
    connection on a lower level than a new one would get, and none on a node that has two or more
    above the least loaded of its level; in no more moves than that takes.
    """
    level = next((i for i, tier in enumerate(tiers) if any(n.takes_more for n in tier)), None)
    if level is None:
        return None
    for tier in reversed(tiers[level + 1 :]):
        worse = [node for node in tier if node.own]
        if worse:
            return max(worse, key=lambda node: node.own).key
    fewest = min(node.total for node in tiers[level] if node.takes_more)
    # With a difference of one, the two would only change places.
    fuller = [node for node in tiers[level] if node.own and node.total >= fewest + 2]
    return max(fuller, key=lambda node: node.total).key if fuller else None


class Pace:
    """When a pool may move its next connection: one at a time, and ever more slowly while it does
    not help, as when a node that is said to be in service is not."""

    def __init__(self) -> None:
        self._due = 0.0
        self._doubt = 0.0
        self._left: dict[str, int] = {}  # what nodes had when one was last moved away

    def begin(self, now: float, key: str, total: int) -> float:
        """One is to move from the node `key`, which has `total`. 0.0: go ahead; else the seconds
        to wait before asking again."""
        if now < self._due:
            return self._due - now
        in_vain = total >= self._left.get(key, total + 1)
        self._doubt = min(max(2 * self._doubt, FIRST_DOUBT), LAST_DOUBT) if in_vain else 0.0
        self._left[key] = total
        self._due = now + (self._doubt or PAUSE)
        return 0.0

    def rest(self) -> None:
        """There is nothing to move."""
        self._left.clear()
        self._doubt = 0.0
