"""Pools that are ended on SIGTERM: `close_on_sigterm`.

Has the pools end, each in a thread of its own, and then does what SIGTERM did before. A handler of
Python's runs in the main thread between any two bytecodes: while that thread has a connection, or
waits for one, or is within a lock. So the handler itself takes no lock and ends no pool, and it
waits only where nothing can depend on the main thread; elsewhere it returns, and SIGTERM is sent
again when the pools have ended.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, FrameType
from typing import Any

from . import pool_options
from .pool import ConnectionPool
from .pool_errors import PoolClosed, PoolError
from .pool_hooks import before_refusing

logger = logging.getLogger("ybsmart.pool")

# Where the main thread may have a lock, or be what others wait for: packages by name. A compiled
# core has no frames of its own, but is among the callers of psycopg.
_BUSY_IN = frozenset({"asyncio", "logging", "psycopg", "threading", "ybsmart"})
_GRACE = 1.0  # seconds more than the time-outs, for a thread that is held up


def close_on_sigterm(*pools: ConnectionPool[Any], timeout: float = 10) -> None:
    """On SIGTERM, `end` the pools, and then do what SIGTERM did before.

    Requests in the queue are served, new ones get `PoolClosed`, and whoever holds a connection may
    go on for `timeout` seconds. Then the previous handler is called; if there was none, the signal
    ends the process, with the usual exit status.

    To be called in the main thread (`RuntimeError` elsewhere), after others have installed their
    handlers. Further calls add pools, or change their timeout. Pools are referred to weakly.
    """
    if not pools:
        raise TypeError("close_on_sigterm: expected at least one pool")
    for pool in pools:
        if not isinstance(pool, ConnectionPool):
            raise TypeError(f"pools: expected ConnectionPool, not {type(pool).__name__}")
    seconds = pool_options.seconds("timeout", timeout)
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None:
        raise RuntimeError("SIGTERM has a handler that is not Python's, and could not be called")
    if not isinstance(handler, _Handler):
        handler = _Handler(handler)
    for pool in pools:
        handler.timeouts[pool] = seconds
    try:
        signal.signal(signal.SIGTERM, handler)
    except ValueError:
        raise RuntimeError("close_on_sigterm: only the main thread can handle signals") from None


class _Handler:
    """The handler of SIGTERM, in front of the previous one."""

    def __init__(self, previous: Callable[[int, FrameType | None], Any] | int) -> None:
        self.timeouts: weakref.WeakKeyDictionary[ConnectionPool[Any], float]
        self.timeouts = weakref.WeakKeyDictionary()
        self._previous = previous
        self._ending: _Ending | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        global _awaited
        ending = self._ending
        if ending is None or ending.pid != os.getpid():
            timeouts = list(self.timeouts.items())
            later = bool(timeouts) and (_is_busy(frame) or _holds_any(timeouts))
            ending = self._ending = _Ending(timeouts, announced=later)
            _awaited = ending if later else None
            ending.start()
            if later:
                return
            ending.wait()
            if self._ending is not ending:
                return  # another SIGTERM came at the end of the wait, and has done the rest
        elif not ending.is_over() and time.monotonic() < ending.deadline:
            return  # somebody's second SIGTERM
        self._ending = _awaited = None
        if callable(self._previous):
            self._previous(signum, frame)
        elif self._previous == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)


class _Ending:
    """Pools that are being ended, all at the same time. Without the locks of `threading`, which
    the main thread may have."""

    def __init__(
        self, timeouts: list[tuple[ConnectionPool[Any], float]], *, announced: bool
    ) -> None:
        """announced: whether SIGTERM is sent once more when it is over."""
        self.pid = os.getpid()
        self.timeouts = timeouts
        self.deadline = time.monotonic() + _GRACE + max((t for _, t in timeouts), default=0.0)
        self._to_announce = [None] if announced else []  # whoever takes the one thing in it does
        self._locks = [_thread.allocate_lock() for _ in timeouts]
        for lock in self._locks:
            lock.acquire()

    def start(self) -> None:
        for lock, (pool, timeout) in zip(self._locks, self.timeouts, strict=True):
            try:
                # Looked up now: gevent may have replaced it.
                _thread.start_new_thread(self._end, (pool, timeout, lock))
            except RuntimeError:  # no more threads
                self._ended(lock)

    def is_over(self) -> bool:
        return not any(lock.locked() for lock in self._locks)

    def wait(self) -> None:
        for lock in self._locks:
            if lock.acquire(True, max(0.0, self.deadline - time.monotonic())):
                lock.release()

    def _end(self, pool: ConnectionPool[Any], timeout: float, lock: _thread.LockType) -> None:
        try:
            try:
                pool.end(timeout)
            except PoolClosed:  # by somebody else, who may still be at it
                pool._wait_until(pool._is_gone, timeout)
        except PoolError as exc:
            logger.warning("SIGTERM: %s", exc)
        except BaseException:
            logger.warning("SIGTERM: ending %r failed", pool, exc_info=True)
        finally:
            self._ended(lock)

    def _ended(self, lock: _thread.LockType) -> None:
        lock.release()
        if self.is_over():
            try:
                self._to_announce.pop()
            except IndexError:
                return
            os.kill(self.pid, signal.SIGTERM)


_awaited: _Ending | None = None  # after which SIGTERM will be sent again


def wait_for_signal() -> None:
    """Called by a pool about to refuse a request because it is closed.

    If SIGTERM is the reason, and the main thread would be told so while it only has to stop, it
    stops here, as it would have at the end of the pools.
    """
    ending = _awaited
    if ending is None or threading.get_ident() != threading.main_thread().ident or _is_patched():
        return
    if ending.pid != os.getpid() or _holds_any(ending.timeouts):
        return
    while _awaited is ending and time.monotonic() < ending.deadline:
        time.sleep(0.005)  # in which the signal arrives


before_refusing.append(wait_for_signal)


def _is_busy(frame: FrameType | None) -> bool:
    """Whether others may depend on what the thread does in this frame or in its callers."""
    if _is_patched():
        return True  # all greenlets are in this thread
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _BUSY_IN:
            return True
        frame = frame.f_back
    return False


def _holds_any(timeouts: list[tuple[ConnectionPool[Any], float]]) -> bool:
    """Whether this thread has a connection of any of the pools."""
    here = threading.get_ident()
    return any(slot.holder == here for pool, _ in timeouts for slot in pool._list_slots())


def _is_patched() -> bool:
    """Whether threads are greenlets."""
    return not isinstance(_thread.start_new_thread, BuiltinFunctionType)
