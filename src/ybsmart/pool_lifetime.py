"""How a pool begins and ends: opening, waiting until it is ready, closing, ending.

Decides how long to wait for either, and what to raise after that. Never opens or closes a
connection itself: the core has the hooks do so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import psycopg

from . import pool_messages, pool_options, sweeper
from .alarm import Alarm
from .pool_hooks import PoolHooks

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

# Between attempts of `wait` to get a connection.
_RETRY_WAIT = 0.02


def _deadline(timeout: float) -> float:
    """When it is over. A longer time than any lock can wait for is as good as for ever."""
    return time.monotonic() + min(timeout, threading.TIMEOUT_MAX)


class PoolLifetime(PoolHooks):
    """What users call at the beginning and at the end; the rest is in `ConnectionPool`."""

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start filling the pool up to `min_size`; with `wait`, wait until it is filled.

        timeout: seconds to wait. Does nothing on an open pool. Raises `PoolClosed` if the pool was
        closed, and the errors of `wait`.
        """
        if self._is_closing():
            raise pool_messages.not_again(self)
        self._opened_explicitly = True
        if self.min_size and not self._is_refilling():
            self._refill(True)
            sweeper.watch(self)
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until `min_size` connections are open or, without a minimum, until one is.

        After `timeout` seconds, closes the pool and raises `PoolTimeout`.
        """
        pool_options.time_left("timeout", timeout)
        if self.closed:
            raise self._closed_error()
        deadline = _deadline(timeout)
        if self.min_size:
            self.open()
            # Looked at every now and then as well: lending is not reported.
            while (left := deadline - time.monotonic()) > 0:
                if self._wait_until(self._is_filled, min(left, 0.05)):
                    return
        elif self._can_connect(deadline):
            return
        error = pool_messages.timed_out(self, timeout)
        cause = self._cause()
        self.close()
        raise error from cause

    def _is_filled(self) -> bool:
        # Those on the way from one hand to the next, or being closed, are neither idle nor has
        # anybody got them.
        there = sum(1 for slot in self._list_slots() if slot.idle or slot.holder)
        return there >= self.min_size

    def _can_connect(self, deadline: float) -> bool:
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.putconn(self.getconn(left))
                return True
            except psycopg.Error:
                if self.closed:
                    raise
            # The core keeps connects apart; but a full queue, say, refuses at once.
            time.sleep(min(left, _RETRY_WAIT))
        return False

    def _wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        deadline = _deadline(timeout)
        self._watch_progress(True)
        alarm = Alarm()
        try:
            self._onlookers.add(alarm)
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                alarm.sleep(left)
            return True
        finally:
            self._onlookers.discard(alarm)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool now. Requests in the queue get `PoolClosed`; lent connections are closed
        when they are returned.

        Waits up to `timeout` seconds for connections that are being opened. Does nothing on a
        closed pool.
        """
        pool_options.time_left("timeout", timeout)
        self._start_closing()
        while self._fail_first(self._closed_error()):
            pass
        self._backoff.cut_short()  # nothing is wanted any more
        self._sweep()
        if timeout > 0:
            self._wait_until(lambda: self.connecting_count == 0, timeout)

    def end(self, timeout: float | None = None) -> None:
        """Accept no new requests, serve those in the queue, and return when all connections are
        closed.

        Raises `PoolClosed` on a closed pool. If connections are still in use after `timeout`
        seconds (None: no limit), raises `PoolTimeout`, which names the holders; those connections
        are closed when they are returned.
        """
        if timeout is not None:
            pool_options.seconds("timeout", timeout)
        if not self._start_closing():
            raise pool_messages.ends_already(self)
        deadline = None if timeout is None else _deadline(timeout)
        while True:
            self._sweep()  # also frees the places of connections that were dropped
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if self._wait_until(self._is_gone, left):
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise pool_messages.not_ended(self, timeout or 0.0)

    def _is_gone(self) -> bool:
        return not self.total_count and not self._removals

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
