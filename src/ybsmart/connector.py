"""Opens the connections that a pool's core asks for, in threads that end when nothing is wanted.

A request can so be served by whatever comes first, and a connection outlives a request that gave
up. The core decides what is opened and when; this decides what a failure means: who is told, and
how long to wait before the next attempt.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from . import sweeper
from ._core import pool as core
from .addresses import host_port
from .alarm import Alarm
from .faults import Fault, classify
from .hygiene import close, end_transaction, must_be_idle
from .pool_options import connect_arguments
from .steering import NodesFull, steered_by

if TYPE_CHECKING:
    from .pool_hooks import PoolHooks
    from .tending import Tending

logger = logging.getLogger("ybsmart.pool")

# Between attempts to connect after one has failed: 10 ms, doubled up to 5 s.
_FIRST_DELAY, _LONGEST_DELAY = 0.01, 5.0
# For how long a server with too many clients is not asked for more.
_SQUEEZE = 5.0


class Backoff:
    """The failures to connect in a row: how many, since when, the last one, and how long to wait
    before the next attempt.

    One per pool, for all its connectors. Each field is replaced as a whole, so reading it needs no
    lock; two connectors that fail at the same moment may count as one.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.since: float | None = None
        self.last_error: BaseException | None = None
        self._alarm = Alarm()

    def succeeded(self) -> None:
        self.failures = 0
        self.since = None
        self.last_error = None

    def failed(self, error: BaseException) -> None:
        self.last_error = without_traceback(error)
        if self.since is None:
            self.since = time.monotonic()

    def delay(self) -> float:
        """Seconds, at random, before the next attempt."""
        longest = min(_FIRST_DELAY * 2.0 ** min(self.failures, 16), _LONGEST_DELAY)
        return longest * random.uniform(0.5, 1.0)

    def forget(self) -> None:
        """Begin afresh, with the next request."""
        self.failures = 0
        self.since = None

    def pause(self, seconds: float) -> None:
        """Called by the one connector that waits for its pool."""
        self._alarm.sleep(seconds)

    def cut_short(self) -> None:
        """End the pause."""
        self._alarm.ring()


class Connector:
    """One thread that opens connections for a pool, for as long as any is wanted."""

    def __init__(self, pool: PoolHooks) -> None:
        self._pool = pool

    def start(self, opening: core.Opening | None) -> None:
        """With an opening, or to wait until one may be begun, which the core then expects."""
        threading.Thread(
            target=self._run, args=(opening,), name=f"{self._pool.name}-connect", daemon=True
        ).start()

    def _run(self, opening: core.Opening | None) -> None:
        pool = self._pool
        if opening is None:
            opening = self._wait_for_opening()
        while opening is not None:
            begun = opening
            try:
                conn = self._connect()
                try:
                    pool._backoff.succeeded()
                    key, label = _node_of(conn)
                    _tell(pool._tending, conn)
                    sweeper.watch(pool)
                except BaseException:
                    close(conn)
                    raise
            except BaseException as exc:
                try:
                    opening = self._failed(begun, exc)
                except BaseException as worse:  # a listener's
                    opening = pool._opening_failed(begun, worse, 0.0, True)
            else:
                # Jitter once and for all, so that those opened together do not end together.
                lives = pool.max_lifetime * random.uniform(0.9, 1.0)
                if pool._cap is not None:
                    pool._cap.landing()
                try:
                    opening = pool._opened(begun, conn, key, label, time.monotonic() + lives)
                finally:
                    if pool._cap is not None:
                        pool._cap.over()
                    conn = None  # or this thread would keep a dropped one alive
            if opening is None and pool._claim_retry():
                opening = self._wait_for_opening()

    def _connect(self) -> Any:
        pool = self._pool
        started = time.monotonic()
        pool._stats.count("connections_num")
        text, options = connect_arguments(pool.conninfo, pool.kwargs, pool.connect_timeout)
        with steered_by(pool._cap):
            conn = pool.connection_class.connect(text, **options)
        try:
            conn._pool = pool
            conn._ybsmart_kept_cursor, conn._ybsmart_autocommit = None, False  # see `statements`
            if pool._configure is not None:
                pool._configure(conn)
                must_be_idle(conn, "configure")
            pool._stats.connected(time.monotonic() - started)
            pool._listeners.tell("connect", conn)
            end_transaction(conn)
        except BaseException:
            close(conn)
            raise
        return conn

    def _failed(self, opening: core.Opening, error: BaseException) -> core.Opening | None:
        pool, backoff = self._pool, self._pool._backoff
        if pool._cap is not None:
            pool._cap.over()
            if isinstance(error, NodesFull):
                # As if `max_size` were reached: with the connections there are, or when one ends.
                delay = 0.0 if error.certain and pool._squeeze(_SQUEEZE) else _FIRST_DELAY
                return pool._opening_failed(opening, error, delay, False)
        pool._stats.count("connections_errors")
        backoff.failed(error)
        if classify(error) is Fault.BUSY and pool._squeeze(_SQUEEZE):
            # With the connections there are, the request will be served.
            logger.info("%s: no more connections for now: %s", pool.name, error)
            return pool._opening_failed(opening, error, 0.0, False)
        told = pool.fail_fast and opening.has_owner
        # The first failure is tried again at once, for the next in line: it may have been chance.
        delay = backoff.delay() if backoff.failures or not told else 0.0
        if told:
            pool._count_error()
        else:
            logger.log(
                logging.INFO if backoff.failures else logging.WARNING,
                "%s: connecting failed, next reconnection attempt in %.2f s: %s",
                pool.name,
                delay,
                error,
            )
            pool._listeners.tell("error", error, None)
        backoff.failures += 1
        return pool._opening_failed(opening, error, delay, pool.fail_fast)

    def _wait_for_opening(self) -> core.Opening | None:
        """Wait until what is wanted may be opened; None when nothing is any more, or another
        thread waits instead."""
        pool = self._pool
        while True:
            try:
                delay = pool._wait_to_retry()
                if delay < 0.0:
                    return None
                if delay > 0.0:
                    pool._backoff.pause(self._until_given_up(delay))
                    continue
                opening = pool._retry()
                if opening is not None or not pool._claim_retry():
                    return opening
            except BaseException:
                # `reconnect_failed` ends this thread: the core expects somebody to wait. Where
                # there can be no other thread, this one goes on.
                try:
                    self.start(None)
                except RuntimeError:
                    continue
                raise

    def _until_given_up(self, delay: float) -> float:
        """The delay, or less if refilling is to be given up before. If that is now, do so."""
        pool, backoff = self._pool, self._pool._backoff
        since = backoff.since
        if since is None or not pool.min_size or not pool._is_refilling():
            return delay
        left = since + pool.reconnect_timeout - time.monotonic()
        if left > 0:
            return min(delay, left)
        pool._refill(False)
        backoff.forget()
        pool._forgive()
        logger.warning("%s: no connection for %g s", pool.name, pool.reconnect_timeout)
        if pool._reconnect_failed is not None:
            try:
                pool._reconnect_failed(pool)
            except Exception:
                logger.warning("%s: reconnect_failed failed", pool.name, exc_info=True)
        return 0.0


def _node_of(conn: psycopg.Connection[Any]) -> tuple[str, str]:
    """The node a connection goes to: its key, and its name for people."""
    lease = getattr(conn, "_lease", None)
    if lease is not None:
        return lease.host.key, lease.host.info.address
    return "", host_port(conn.info.host, conn.info.port)


def _tell(tending: Tending, conn: psycopg.Connection[Any]) -> None:
    """By which cluster it came, if by any."""
    cluster, request = getattr(conn, "_cluster", None), getattr(conn, "_request", None)
    if cluster is not None and request is not None:
        tending.came_by(cluster, request)


def without_traceback(error: BaseException) -> BaseException:
    """The error for keeping: its traceback would keep its raisers' variables, and the original
    goes to the request it was for."""
    try:
        twin = type(error).__new__(type(error), *error.args)
        twin.__dict__.update(error.__dict__)
    except Exception:
        twin = psycopg.OperationalError(str(error))
    twin.__cause__ = error.__cause__
    return twin
