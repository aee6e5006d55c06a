"""The cluster and what runs on it, measured.

Decides which numbers are taken where: connections from ybsmart, sessions and the node that served
a request from the servers themselves.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

import psycopg

import ybsmart
from ybsmart.testing import LocalCluster, LocalNode

from .load import Load
from .states import NodeState, Phase, Snapshot

_STEP = 0.1  # between two looks at a load
_COUNT = 0.3  # between two questions to the servers
_RATE_SECONDS = 0.5  # over which requests per second are measured, and at least 0.2
_PATIENCE = 10.0  # for what takes some milliseconds, on a machine that is busy


class Stage:
    """The cluster and what runs on it, looked at from all sides. For the scenario's thread."""

    def __init__(
        self,
        cluster: LocalCluster,
        show: Callable[[Snapshot], None],
        pause: Callable[[float], None],
    ) -> None:
        self.load: Load | None = None
        self._cluster = cluster
        self._show = show
        self._pause = pause
        self._phase = Phase.START
        self._call = ""
        self._url = cluster.conninfo()
        self._victim = ""
        self._sessions: dict[str, int | None] = {}
        self._counted = 0.0
        self._rates = Rates()
        self.look(count=True)

    def begin(
        self,
        phase: Phase,
        call: str = "",
        properties: Mapping[str, str | float | bool] | None = None,
    ) -> str:
        """Another phase, with another URL if it has properties; return the URL."""
        self._phase = phase
        if properties is not None:
            self._url = self._cluster.conninfo(0, **properties)
            self._call = call.format(url=f'"...?{self._url.partition("?")[2]}"')
        if self.load is not None:
            self.load.begin_phase()
        self._rates = Rates()
        self.look(count=True)
        return self._url

    def kill(self, node: int) -> None:
        self._victim = _address(self._cluster.nodes[node])
        self._cluster.kill(node)

    def start(self, node: int) -> None:
        self._cluster.start(node)

    def watch(self, seconds: float, settled: Callable[[], bool]) -> None:
        """Look again and again for so long, and, within reason, until it has settled."""
        begun = time.monotonic()
        while True:
            self.look()
            over = time.monotonic() - begun
            if over >= seconds and (over >= seconds + _PATIENCE or settled()):
                return
            self._pause(_STEP if over + _STEP <= seconds else max(seconds - over, 0.01))

    def look(self, *, count: bool = False) -> Snapshot:
        """Show how things are, and return it.

        count: ask the servers how many clients they have, however short ago they were asked.

        Raises what broke a thread of the load: that is no failed request.
        """
        if count or time.monotonic() - self._counted >= _COUNT:
            self._count_sessions()
            self._counted = time.monotonic()
        load = None if self.load is None else self.load.state()
        snapshot = Snapshot(self._phase, self._nodes(), self._call, self._victim, load)
        self._show(snapshot)
        return snapshot

    def _count_sessions(self) -> None:
        for node in self._cluster.nodes:
            sessions = None
            if node.state == "running":
                try:
                    sessions = self._cluster.sessions(node)
                except psycopg.Error:
                    pass  # it has just ended
            self._sessions[_address(node)] = sessions

    def servers_agree(self) -> bool:
        """Whether every server counts as many clients as ybsmart counts connections."""
        nodes = self.look(count=True).nodes
        return all(n.sessions == n.connections or not n.running for n in nodes)

    def replaced(self, connections: int) -> bool:
        """Whether there are so many connections, and none to a node that does not run."""
        nodes = self.look().nodes
        lost = any(node.connections for node in nodes if not node.running)
        return not lost and sum(node.connections for node in nodes) == connections

    def even(self) -> bool:
        """Whether no node is passed over, and all have the same number of connections."""
        nodes = self.look().nodes
        return not any(n.passed_over for n in nodes) and len({n.connections for n in nodes}) == 1

    def _nodes(self) -> tuple[NodeState, ...]:
        counts = ybsmart.connection_counts(self._url)
        down = {
            node.address
            for cluster in ybsmart.clusters()
            for node in cluster.nodes
            if node.state == "down"
        }
        served = Counter[str]()
        rates: dict[str, float] | None = None
        if self.load is not None:
            totals, served = self.load.served()
            rates = self._rates.of(totals)
        return tuple(
            NodeState(
                address=address,
                zone=node.zone,
                running=node.state == "running",
                passed_over=address in down,
                connections=counts.get(address, 0),
                sessions=self._sessions.get(address),
                rate=None if rates is None else rates.get(address, 0.0),
                served=served[address],
            )
            for node in self._cluster.nodes
            for address in [_address(node)]
        )


def _address(node: LocalNode) -> str:
    return f"{node.host}:{node.port}"


class Rates:
    """Requests per second, from totals that are told from time to time."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Counter[str]]] = deque()

    def of(self, totals: Counter[str]) -> dict[str, float] | None:
        """The rates up to now; None while it is too early to tell."""
        now = time.monotonic()
        self._samples.append((now, totals))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _RATE_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        seconds = now - since
        if seconds < 0.2:
            return None
        return {node: (count - before[node]) / seconds for node, count in totals.items()}
