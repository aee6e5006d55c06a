"""A pool's numbers, under psycopg_pool's names and in its units, and a few more.

Turns what the core counted into what people and monitoring read. Never counts requests itself:
only what happens rarely, connects and removals, is counted here.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

REMOVAL_REASONS = (
    "idle", "lifetime", "uses", "lost", "error", "check", "evict", "drain", "silent", "rebalance",
    "resize", "discard", "leak", "closed",
)  # fmt: skip


class Stats:
    """What is counted outside the fast path. Safe for any number of threads, and for a garbage
    collector that runs a finaliser which counts, or reads, in the middle of any method.

    The counts only grow: what a reader that sets them back has had is kept beside them, so that
    nothing is lost between two of these.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # of all but the two queues
        self._digesting = False  # somebody is, and it may be this very thread, further up
        self._counts: Counter[str] = Counter()
        self._connect_buckets = [0] * 32
        self._taken: tuple[Counter[str], list[int]] = (Counter(), [0] * 32)
        # What has happened since: appending is one step, whoever else is at it.
        self._news: deque[tuple[str, int]] = deque()
        self._connects: deque[float] = deque()

    def count(self, name: str, number: int = 1) -> None:
        self._news.append((name, number))
        # Not waited for: this may be a finaliser's thread, in the middle of anything.
        if len(self._news) > 1000 and self._lock.acquire(False):
            try:
                self._digest()
            finally:
                self._lock.release()

    def connected(self, seconds: float) -> None:
        self._connects.append(seconds)
        self.count("connections_ms", int(1000 * seconds))

    def _digest(self) -> None:
        """Add up the news. The caller has the lock."""
        if self._digesting:
            return
        self._digesting = True
        try:
            with suppress(IndexError):
                while True:
                    name, number = self._news.popleft()
                    self._counts[name] += number
            with suppress(IndexError):
                while True:
                    us = int(1e6 * self._connects.popleft())
                    self._connect_buckets[min(us.bit_length(), 31)] += 1
        finally:
            self._digesting = False

    def take(self, reset: bool) -> tuple[Counter[str], list[int]]:
        """What has been counted since the last reset; `reset`: now is one."""
        with self._lock:
            self._digest()
            now = self._counts.copy(), self._connect_buckets.copy()
            before = self._taken
            if reset:
                # In one statement: a finaliser may have been here since `now`.
                before, self._taken = self._taken, now
        counts = Counter({name: n - before[0][name] for name, n in now[0].items()})
        return counts, [n - was for n, was in zip(now[1], before[1], strict=True)]


def report(
    numbers: dict[str, Any], counts: Counter[str], connect_buckets: Sequence[int]
) -> dict[str, Any]:
    """The counters under their public names; times in milliseconds."""
    stats: dict[str, Any] = {
        "usage_ms": int(1000 * numbers["usage"]),
        "requests_num": numbers["requests"],
        "requests_queued": numbers["queued"],
        "requests_wait_ms": int(1000 * numbers["wait"]),
        **{
            name: counts[name]
            for name in (
                "requests_errors",
                "requests_timeouts",
                "requests_rejected",
                "returns_bad",
                "returns_rolled_back",
                "connections_num",
                "connections_ms",
                "connections_errors",
                "connections_lost",
            )
        },
        "leaks_suspected": counts["leaks_suspected"],
        **{f"removed_{reason}": counts[f"removed_{reason}"] for reason in REMOVAL_REASONS},
    }
    for name, buckets in (
        ("wait", numbers["wait_buckets"]),
        ("usage", numbers["usage_buckets"]),
        ("connect", connect_buckets),
    ):
        stats[f"{name}_ms_p50"] = percentile(buckets, 0.50)
        stats[f"{name}_ms_p99"] = percentile(buckets, 0.99)
        stats[f"{name}_ms_max"] = percentile(buckets, 1.0)
    return stats


def percentile(buckets: Sequence[int], share: float) -> float:
    """The time in milliseconds that this share of them did not exceed, to the power of two.

    Bucket n counts the times below 2**n microseconds.
    """
    target = share * sum(buckets)
    passed = 0
    for n, count in enumerate(buckets):
        passed += count
        if count and passed >= target:
            return float(2**n / 1000)
    return 0.0
