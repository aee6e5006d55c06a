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
from .alarm import Alarm

logger = logging.getLogger("ybsmart.pool")


class Sweepable(Protocol):
    """A pool, as far as this module is concerned."""

    def _tidy(self) -> float | None:
        """Do what is due; return in how many seconds to come again, None for not at all."""
        ...


# Guards the three below. A finaliser may come here while its own thread has it.
_lock = threading.RLock()
# By their identity. Not a WeakSet: that cannot be read while a finaliser adds to it.
_pools: weakref.WeakValueDictionary[int, Sweepable] = weakref.WeakValueDictionary()
_thread: threading.Thread | None = None
_alarm: Alarm | None = None  # what the thread sleeps on


def watch(pool: Sweepable) -> None:
    """See to the pool from now on, for as long as its `_tidy` asks for it."""
    forks.notice()
    with _lock:
        _pools[id(pool)] = pool
    if not _start_if_wanted() and (alarm := _alarm) is not None:
        alarm.ring()


def _start_if_wanted() -> bool:
    """Start the thread if there is none and anything to do; whether it was started. Where there
    can be no more threads, that is left to the next who has a pool watched."""
    global _thread, _alarm
    thread: threading.Thread | None = None
    try:
        with _lock:
            if _thread is not None or not _pools:
                return False
            _alarm = alarm = Alarm()
            thread = _thread = threading.Thread(
                target=_run, args=(alarm,), name="ybsmart-sweep", daemon=True
            )
        # Without the lock: starting a greenlet switches to others, which may come here.
        thread.start()
    except BaseException as exc:
        with _lock:
            if _thread is thread:
                _thread = None
        if isinstance(exc, RuntimeError):
            return False
        raise
    return True


def _run(alarm: Alarm) -> None:
    global _thread
    try:
        # Until another is in its place: an interrupt may have made it seem that this one had not
        # been started, and a greenlet goes on in a forked child.
        while alarm is _alarm and (pause := _sweep()) is not None:
            alarm.sleep(max(pause, 0.01))
    except BaseException:  # somebody wants this thread to end
        with _lock:
            if alarm is _alarm:
                _thread = None
        raise
    finally:
        # If it has ended before its time, the pools need another.
        _start_if_wanted()


def _sweep() -> float | None:
    """One round; the time until the next, None if there is none: then the thread is no more."""
    global _thread
    pause: float | None = None
    with _lock:
        pools = [pool for ref in _pools.valuerefs() if (pool := ref()) is not None]
    for pool in pools:
        # First let go of it, then ask: whoever has it watched meanwhile is not overlooked.
        with _lock:
            _pools.pop(id(pool), None)
        after: float | None = 1.0
        try:
            after = pool._tidy()
        except Exception:
            logger.warning("tidying up %r failed", pool, exc_info=True)
        finally:
            if after is not None:
                with _lock:
                    _pools[id(pool)] = pool
                pause = after if pause is None else min(pause, after)
    with _lock:
        if pause is None and not _pools:
            _thread = None
            return None
    return pause or 0.0


def _forget() -> None:
    """A forked child has no such thread, and no connections to tidy up."""
    global _lock, _thread, _alarm
    _lock, _thread, _alarm = threading.RLock(), None, None
    _pools.clear()


forks.in_child(_forget)
