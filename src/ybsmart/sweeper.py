"""One thread per process that tidies up the pools, while there is one that needs it.

It closes what has been idle or alive for too long, frees the places of connections that were
dropped, keeps minimums filled and reports leaks. All of this is also done, later, without it:
nothing waits for this thread, and a pool in use works as well without.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import Protocol

logger = logging.getLogger("ybsmart.pool")


class Sweepable(Protocol):
    """A pool, as far as this module is concerned."""

    def _tidy(self) -> float | None:
        """Do what is due; return in how many seconds to come again, None for not at all."""
        ...


# Guards the two below. A finaliser may come here while its own thread has it.
_lock = threading.RLock()
_pools: weakref.WeakSet[Sweepable] = weakref.WeakSet()
_thread: threading.Thread | None = None
_wake = threading.Event()


def watch(pool: Sweepable) -> None:
    """See to the pool from now on, for as long as its `_tidy` asks for it."""
    global _thread
    with _lock:
        _pools.add(pool)
        if _thread is not None and _thread.is_alive():
            started = False
        else:
            _thread = threading.Thread(target=_run, name="ybsmart-sweep", daemon=True)
            _thread.start()
            started = True
    if not started:
        _wake.set()


def _run() -> None:
    global _thread
    while True:
        _wake.clear()
        pause: float | None = None
        with _lock:
            pools = list(_pools)
        for pool in pools:
            # First let go of it, then ask: whoever has it watched meanwhile is not overlooked.
            with _lock:
                _pools.discard(pool)
            after = _tidy(pool)
            if after is not None:
                with _lock:
                    _pools.add(pool)
                pause = after if pause is None else min(pause, after)
        # No reference may keep a pool alive while this thread sleeps.
        pools = pool = None  # type: ignore[assignment]
        if pause is None:
            with _lock:
                if not _pools:
                    _thread = None
                    return
            continue
        _wake.wait(max(pause, 0.01))


def _tidy(pool: Sweepable) -> float | None:
    try:
        return pool._tidy()
    except BaseException:  # a listener's; this thread is everybody's
        logger.warning("tidying up %r failed", pool, exc_info=True)
        return 1.0


def _forget() -> None:
    """A forked child has no such thread, and no connections to tidy up."""
    global _lock, _thread, _wake
    _lock, _wake, _thread = threading.RLock(), threading.Event(), None
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
