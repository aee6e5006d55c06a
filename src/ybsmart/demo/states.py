"""What there is to see of the demo at one moment: plain numbers, for the views."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Phase(enum.Enum):
    """What is going on."""

    START = "start"
    UNIFORM = "uniform"
    TOPOLOGY = "topology"
    POOL = "pool"
    KILLED = "killed"
    BACK = "back"
    GROWN = "grown"
    CLOSED = "closed"


@dataclass(frozen=True)
class NodeState:
    """One node at one moment."""

    address: str
    zone: str
    running: bool
    passed_over: bool
    """ybsmart saw it fail a moment ago and connects elsewhere."""
    connections: int
    """Open ones, by ybsmart's count."""
    sessions: int | None
    """Open ones, by the server's own count; None while it does not run."""
    rate: float | None
    """Requests per second; None without a load, and before there is enough to measure."""
    served: int
    """Requests that were sent in this phase and answered by this node."""


@dataclass(frozen=True)
class LoadState:
    """The load at one moment: all numbers since it began."""

    threads: int
    requests: int
    """Those that were answered and those that failed."""
    failed: int
    longest: float
    """Seconds from the call of the slowest request to its answer or error."""
    error: str
    """Of the request that failed last. May hold a server's words, as they came."""


@dataclass(frozen=True)
class Snapshot:
    """Everything there is to show at one moment."""

    phase: Phase
    nodes: tuple[NodeState, ...] = ()
    call: str = ""
    """What a program would have to write for it."""
    victim: str = ""
    """The address of the node that is killed."""
    load: LoadState | None = None


@dataclass(frozen=True)
class Progress:
    """How far the demo is."""

    now: Snapshot = Snapshot(Phase.START)
    completed: tuple[Snapshot, ...] = ()
    """The last snapshot of each phase that is over."""
