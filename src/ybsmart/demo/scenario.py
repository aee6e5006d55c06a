"""What the demo does, and what it measures: connections, then a pool that loses a node.

Decides the order of events, how long each lasts, and which numbers are taken where: connections
from ybsmart, sessions and the node that served a request from the servers themselves. Must never
write anything anywhere, and never leave a server, thread or connection behind, however it ends.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

import psycopg

import ybsmart
from ybsmart.testing import LocalCluster, LocalNode

CONNECTIONS = 30
ZONE = "aws.us-west.us-west-2a"
POOL_SIZE = 12
# Half of what the pool may open, so that it can be seen where new connections go.
THREADS = POOL_SIZE // 2
REQUEST_SECONDS = 0.01
PASSED_OVER_SECONDS = 1

_STEP = 0.1  # between two looks at a load
_COUNT = 0.3  # between two questions to the servers
_RATE_SECONDS = 0.5  # over which requests per second are measured, and at least 0.2
_PATIENCE = 10.0  # for what takes some milliseconds, on a machine that is busy


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


# Of the demo's time; starting and closing take what they take.
_SHARES = {
    Phase.UNIFORM: 0.17,
    Phase.TOPOLOGY: 0.17,
    Phase.POOL: 0.15,
    Phase.KILLED: 0.2,
    Phase.BACK: 0.13,
    Phase.GROWN: 0.18,
}


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


class _Stopped(Exception):
    """`Scenario.stop` was called."""


class Scenario:
    """One run of the demo. `run` in one thread; everything else from any."""

    def __init__(self, seconds: float) -> None:
        """seconds: how long to take, roughly, starting and closing not included."""
        self._seconds = seconds
        self._stop = threading.Event()
        self._progress = Progress()

    @property
    def progress(self) -> Progress:
        """What is to be seen now, and what has been."""
        return self._progress

    def stop(self) -> None:
        """Make `run` close everything and return, within a second or so."""
        self._stop.set()

    def run(self) -> bool:
        """Do everything there is to do. False if it was stopped before the end.

        Raises what `LocalCluster` and connecting raise. In any case all is closed on return.
        """
        try:
            with ExitStack() as stack:
                self._pause(0)
                stage = _Stage(self._new_cluster(stack), self._show, self._pause)
                self._complete()
                self._connect(stage, Phase.UNIFORM, loadBalance=True)
                self._connect(stage, Phase.TOPOLOGY, loadBalance=True, topologyKeys=ZONE)
                self._use_pool(stage, stack)
        except _Stopped:
            return False
        self._show(Snapshot(Phase.CLOSED, load=self._progress.now.load))
        self._complete()
        return True

    def _new_cluster(self, stack: ExitStack) -> LocalCluster:
        try:
            return stack.enter_context(LocalCluster())
        finally:
            # Also after an error: a terminal's Ctrl-C ends programs that help the cluster to start.
            self._pause(0)

    def _connect(self, stage: _Stage, phase: Phase, **properties: str | float | bool) -> None:
        url = stage.begin(phase, "ybsmart.connect({url})", properties)
        # Thirty take a tenth of a second, too little to see anything.
        step = self._lasts(phase) * 0.4 / CONNECTIONS
        begun = time.monotonic()
        with ExitStack() as opened:
            for number in range(1, CONNECTIONS + 1):
                opened.enter_context(closing(ybsmart.connect(url)))
                stage.look()
                self._pause(max(begun + number * step - time.monotonic(), 0))
            # A server counts a client a moment after the client does.
            stage.watch(self._lasts(phase) * 0.6, stage.servers_agree)
            self._complete()
        stage.watch(0, stage.servers_agree)

    def _use_pool(self, stage: _Stage, stack: ExitStack) -> None:
        url = stage.begin(
            Phase.POOL,
            f"ybsmart.ConnectionPool({{url}}, max_size={POOL_SIZE})",
            {"loadBalance": True, "failedHostReconnectDelaySecs": PASSED_OVER_SECONDS},
        )
        pool = stack.enter_context(ybsmart.ConnectionPool(url, max_size=POOL_SIZE))
        load = stage.load = _Load(pool)
        stack.callback(load.stop)
        load.grow(THREADS)
        self._watch_load(stage, Phase.POOL, lambda: pool.total_count == THREADS)

        # The node in the URL: after the first connection, it is a node like any other.
        stage.kill(0)
        stage.begin(Phase.KILLED)
        self._watch_load(stage, Phase.KILLED, lambda: stage.replaced(THREADS))

        stage.start(0)
        stage.begin(Phase.BACK)
        self._watch_load(stage, Phase.BACK, stage.even)

        stage.begin(Phase.GROWN)
        load.grow(POOL_SIZE)
        self._watch_load(stage, Phase.GROWN, lambda: pool.total_count == POOL_SIZE)

    def _watch_load(self, stage: _Stage, phase: Phase, settled: Callable[[], bool]) -> None:
        half = self._lasts(phase) / 2
        stage.watch(half, settled)
        # What is reported is measured when all has settled.
        stage.watch(max(half, 0.4), stage.servers_agree)
        self._complete()

    def _lasts(self, phase: Phase) -> float:
        return _SHARES[phase] * self._seconds

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def _show(self, snapshot: Snapshot) -> None:
        self._progress = Progress(snapshot, self._progress.completed)

    def _complete(self) -> None:
        now = self._progress.now
        self._progress = Progress(now, (*self._progress.completed, now))


class _Stage:
    """The cluster and what runs on it, looked at from all sides. For the scenario's thread."""

    def __init__(
        self,
        cluster: LocalCluster,
        show: Callable[[Snapshot], None],
        pause: Callable[[float], None],
    ) -> None:
        self.load: _Load | None = None
        self._cluster = cluster
        self._show = show
        self._pause = pause
        self._phase = Phase.START
        self._call = ""
        self._url = cluster.conninfo()
        self._victim = ""
        self._sessions: dict[str, int | None] = {}
        self._counted = 0.0
        self._rates = _Rates()
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
        self._rates = _Rates()
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


class _Rates:
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


class _Load:
    """Threads that send one request after the other through a pool, and what came of these.

    A request asks which server it is on, so that the count per node is not ybsmart's word.
    """

    _REQUEST = (
        "SELECT host(inet_server_addr()) || ':' || inet_server_port()"
        f" FROM pg_sleep({REQUEST_SECONDS})"
    )

    def __init__(self, pool: ybsmart.ConnectionPool) -> None:
        self._pool = pool
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._broken: Exception | None = None
        self._lock = threading.Lock()  # guards the following
        self._phase = 0
        self._totals = Counter[str]()
        self._in_phase = Counter[str]()
        self._failed = 0
        self._longest = 0.0
        self._error = ""

    def grow(self, threads: int) -> None:
        """Have so many threads."""
        while len(self._threads) < threads:
            # Daemons, so that nothing can keep the process from ending.
            thread = threading.Thread(target=self._work, name="ybsmart-demo-load", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the threads; each finishes its request first."""
        self._over.set()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))

    def begin_phase(self) -> None:
        """Count requests that are sent from now on apart from earlier ones."""
        with self._lock:
            self._phase += 1
            self._in_phase.clear()

    def served(self) -> tuple[Counter[str], Counter[str]]:
        """Answered requests by node: all of them, and those sent in this phase."""
        with self._lock:
            return self._totals.copy(), self._in_phase.copy()

    def state(self) -> LoadState:
        if self._broken is not None:
            raise self._broken
        with self._lock:
            requests = self._totals.total() + self._failed
            return LoadState(len(self._threads), requests, self._failed, self._longest, self._error)

    def _work(self) -> None:
        try:
            self._send()
        except Exception as error:
            self._broken = error

    def _send(self) -> None:
        while not self._over.is_set():
            phase = self._phase
            begun = time.monotonic()
            try:
                node = str(self._pool.query(self._REQUEST).scalar())
            except psycopg.Error as error:
                self._note(begun, error=str(error))
                # As long as an answer takes, or failures would outnumber requests at once.
                self._over.wait(REQUEST_SECONDS)
            else:
                self._note(begun, node=node, phase=phase)

    def _note(self, begun: float, *, node: str = "", phase: int = 0, error: str = "") -> None:
        seconds = time.monotonic() - begun
        with self._lock:
            self._longest = max(self._longest, seconds)
            if error:
                self._failed += 1
                self._error = error
            else:
                self._totals[node] += 1
                if phase == self._phase:
                    self._in_phase[node] += 1
