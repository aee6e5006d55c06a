"""What the demo does: connections, then a pool that loses a node.

Decides the order of events and how long each lasts. Must never write anything anywhere, and never
leave a server, thread or connection behind, however it ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import ybsmart
from ybsmart.testing import LocalCluster

from .load import Load
from .stage import Stage
from .states import Phase, Progress, Snapshot

CONNECTIONS = 30
ZONE = "aws.us-west.us-west-2a"
POOL_SIZE = 12
# Half of what the pool may open, so that it can be seen where new connections go.
THREADS = POOL_SIZE // 2
PASSED_OVER_SECONDS = 1


# Of the demo's time; starting and closing take what they take.
_SHARES = {
    Phase.UNIFORM: 0.17,
    Phase.TOPOLOGY: 0.17,
    Phase.POOL: 0.15,
    Phase.KILLED: 0.2,
    Phase.BACK: 0.13,
    Phase.GROWN: 0.18,
}


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
                stage = Stage(self._new_cluster(stack), self._show, self._pause)
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

    def _connect(self, stage: Stage, phase: Phase, **properties: str | float | bool) -> None:
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

    def _use_pool(self, stage: Stage, stack: ExitStack) -> None:
        url = stage.begin(
            Phase.POOL,
            f"ybsmart.ConnectionPool({{url}}, max_size={POOL_SIZE})",
            {"loadBalance": True, "failedHostReconnectDelaySecs": PASSED_OVER_SECONDS},
        )
        pool = stack.enter_context(ybsmart.ConnectionPool(url, max_size=POOL_SIZE))
        load = stage.load = Load(pool)
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

    def _watch_load(self, stage: Stage, phase: Phase, settled: Callable[[], bool]) -> None:
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
