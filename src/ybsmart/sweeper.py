"""One thread per process that tidies up the pools, while there is one that needs it.

It closes what has been idle or alive for too long, frees the places of connections that were
dropped, keeps minimums filled and reports leaks. All of this is also done, later, without it:
nothing waits for this thread, and a pool in use works as well without.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from . import forks

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
    forks.notice()
    with _lock:
        _pools.add(pool)
    if not _start_if_wanted():
        _wake.set()


def _start_if_wanted() -> bool:
    """Start the thread if there is none and anything to do; whether it was started."""
    global _thread
    thread: threading.Thread | None = None
    try:
        with _lock:
            if _thread is not None or not _pools:
                return False
            thread = _thread = threading.Thread(target=_run, name="ybsmart-sweep", daemon=True)
        # Without the lock: starting a greenlet switches to others, which may come here.
        thread.start()
    except BaseException:
        with _lock:
            if _thread is thread:
                _thread = None
        raise
    return True


def _run() -> None:
    global _thread
    try:
        while (pause := _sweep()) is not None:
            _wake.wait(max(pause, 0.01))
    except BaseException:
        # Somebody wants this thread to end; the pools need another.
        with _lock:
            _thread = None
        _start_if_wanted()
        raise


def _sweep() -> float | None:
    """One round; the time until the next, None if there is none: then the thread is no more."""
    global _thread
    _wake.clear()
    pause: float | None = None
    with _lock:
        pools = list(_pools)
    for pool in pools:
        # First let go of it, then ask: whoever has it watched meanwhile is not overlooked.
        with _lock:
            _pools.discard(pool)
        after: float | None = 1.0
        try:
            after = pool._tidy()
        except Exception:
            logger.warning("tidying up %r failed", pool, exc_info=True)
        finally:
            if after is not None:
                with _lock:
                    _pools.add(pool)
                pause = after if pause is None else min(pause, after)
    with _lock:
        if pause is None and not _pools:
            _thread = None
            return None
    return pause or 0.0


def _forget() -> None:
    """A forked child has no such thread, and no connections to tidy up."""
    global _lock, _thread, _wake
    _lock, _wake, _thread = threading.RLock(), threading.Event(), None
    _pools.clear()


forks.in_child(_forget)
