"""The load on the demo's pool, and what came of its requests.

Decides what counts as served and as failed. Never knows what the demo is doing, or shows anything.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import psycopg

import ybsmart

from .states import LoadState

REQUEST_SECONDS = 0.01
_PATIENCE = 10.0  # for requests that are under way at the end


class Load:
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
