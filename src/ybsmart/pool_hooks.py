"""What a pool does about its core's decisions: waits, checks, cleans, closes, tells.

Every method here but a few helpers is a hook of `PoolCore`, called outside its critical sections
by the thread that causes it. What users call is in `pool.py`; connecting is in `connector.py`.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from . import forks, hygiene, leaks, pool_messages, pool_options, silence, sweeper
from ._core import parking
from ._core import pool as core
from .alarm import Alarm
from .connector import Backoff, Connector, without_traceback
from .events import Listeners
from .hygiene import IDLE, IN_TRANSACTION
from .liveness import any_has_news, is_alive
from .pool_options import Conninfo
from .stats import Stats
from .steering import Cap
from .tending import Tending

if TYPE_CHECKING:
    from .pool_errors import PoolClosed

logger = logging.getLogger("ybsmart.pool")

# Errors after which a node serves no connection: it is shutting down, has crashed or is starting;
# and the one of a node that may no longer be written to.
_NODE_IS_GOING = ("57P01", "57P02", "57P03")
_READ_ONLY = "25006"

# Before a check that fails is tried on another connection: none, then doubled up to a second.
_RECHECK_FIRST, _RECHECK_MOST = 0.01, 1.0

_ON_THE_WAY_OUT = 0.01  # seconds that a thread is given to let go of what it has handed over

# Called before somebody is told that a pool is closed: by `sigterm`, once that is in use.
before_refusing: list[Callable[[], object]] = []


class PoolHooks(core.PoolCore):
    """The hooks of the core. `ConnectionPool` sets all of these."""

    name: str
    conninfo: Conninfo
    kwargs: dict[str, Any] | Callable[[], Mapping[str, Any]]
    connection_class: Any
    timeout: float | None
    connect_timeout: float | None
    max_idle: float
    max_lifetime: float
    max_waiting: int
    num_workers: int
    reset_on_return: str | None
    discard_on_query_error: bool
    close_returns: bool
    fail_fast: bool
    reconnect_timeout: float
    max_per_node: int | None
    rebalance: bool
    _configure: Callable[[Any], None] | None
    _check: Callable[[Any], None] | None
    _reset: Callable[[Any], None] | None
    _reconnect_failed: Callable[[Any], None] | None
    _cap: Cap | None
    _leak_threshold: float
    _listeners: Listeners
    _opened_explicitly: bool
    _stats: Stats
    _backoff: Backoff
    _tending: Tending
    _removals: weakref.WeakValueDictionary[int, Any]
    _last_bad_check: BaseException | None
    _onlookers: set[Alarm]  # of those who wait for the pool itself; each access is one step

    # All of them, because only while a pool has nothing in a dictionary are its methods found fast.
    __slots__ = (*__annotations__, "__dict__", "__weakref__")

    @property
    def closed(self) -> bool:
        """True before `open` of a pool made with `open=False`, and once `close` or `end` is
        called."""
        return self._is_closing() or not self._opened_explicitly

    @staticmethod
    def check_connection(conn: psycopg.Connection[Any]) -> None:
        """Return if the connection works, after a round trip; raise if it does not, or if it takes
        more than 2 seconds. Leaves the connection as it is.

        Also for use as the parameter `check`.
        """
        hygiene.round_trip(conn)

    def _forked(self) -> None:
        forks.notice()

    # Waiting

    def _must_be_seconds(self, timeout: Any) -> None:
        pool_options.time_left("timeout", timeout)

    def _new_waiter(self, timeout: float | None) -> core.Waiter:
        if not self._opened_explicitly or self._is_closing():
            raise self._closed_error()
        seconds = self.timeout if timeout is None else timeout
        if seconds is not None and seconds <= 0:
            self._count_error("requests_timeouts")
            raise pool_messages.timed_out(self, 0) from self._cause()
        if self.min_size and not self._is_refilling():
            self._refill(True)
        lock = parking.held_lock()
        return core.Waiter(lock.release, lock)

    def _sleep(self, waiter: core.Waiter, timeout: float | None) -> None:
        if self._is_deadlock(waiter) and self._has_own_thread(waiter):
            # Perhaps one was dropped: in a cycle, or without the GIL, or while the thread that has
            # opened it was still on its way out with it. Only now will it be found.
            time.sleep(_ON_THE_WAY_OUT)
            gc.collect()
            self._sweep()
            if self._is_deadlock(waiter) and self._withdraw(waiter):
                self._count_error("requests_rejected")
                raise pool_messages.deadlock(self)
        seconds = self.timeout if timeout is None else timeout
        if seconds is None:
            seconds = -1
        elif seconds > threading.TIMEOUT_MAX:
            seconds = threading.TIMEOUT_MAX
        if not waiter.parked_on.acquire(True, seconds) and self._withdraw(waiter):
            self._count_error("requests_timeouts")
            raise pool_messages.timed_out(self, seconds) from self._cause()

    @staticmethod
    def _has_own_thread(waiter: core.Waiter) -> bool:
        """Whether who waits is no greenlet: these share the thread by which the core knows them."""
        return waiter.thread == threading.get_ident()

    def _too_many(self) -> Exception:
        self._count_error("requests_rejected")
        return pool_messages.too_many(self)

    # Connecting

    def _open(self, opening: core.Opening) -> None:
        Connector(self).start(opening)

    def _retry_later(self) -> None:
        Connector(self).start(None)

    # Lending and taking back

    def _is_alive(self, conn: Any) -> bool:
        return is_alive(conn)

    def _passes(self, conn: Any, thorough: bool) -> bool:
        if not thorough:
            return is_alive(conn)
        hygiene.restore(conn)
        try:
            self.check_connection(conn)
        except Exception as exc:
            logger.warning("%s: closing a broken connection: %s: %s", self.name, conn, exc)
            return False
        return True

    def _vet(self, conn: Any) -> bool:
        assert self._check is not None
        try:
            self._check(conn)
            hygiene.must_be_idle(conn, "check")
        except Exception as exc:
            logger.info("%s: a connection failed check: %s", self.name, exc)
            self._last_bad_check = without_traceback(exc)
            return False
        self._last_bad_check = None
        return True

    def _pause(self, timeout: float | None, started: float, failures: int) -> float | None:
        pause = min(_RECHECK_FIRST * 2 ** min(failures - 1, 16), _RECHECK_MOST) if failures else 0.0
        limit = self.timeout if timeout is None else timeout
        if limit is None:
            time.sleep(pause)
            return None
        left = limit - (time.monotonic() - started)
        if left <= pause:
            time.sleep(max(left, 0))
            self._count_error("requests_timeouts")
            raise pool_messages.timed_out(self, limit) from self._cause()
        time.sleep(pause)
        return left - pause

    def _restore(self, conn: Any) -> None:
        hygiene.restore(conn)

    def _clean(self, conn: Any) -> bool:
        hygiene.restore(conn)
        status = conn.pgconn.transaction_status
        if status in IN_TRANSACTION and self.reset_on_return == "rollback":
            self._stats.count("returns_rolled_back")
        elif status == pq.TransactionStatus.UNKNOWN and conn.broken:
            # Whatever ended it may have ended the others on its node.
            self._suspect(conn)
            sweeper.watch(self)  # to drop them all now
        hygiene.clean(conn, self.reset_on_return, self._reset)
        if conn.closed:
            self._stats.count("returns_bad")
        return bool(conn.pgconn.transaction_status == IDLE)

    def _close_conn(self, conn: Any, reason: str) -> None:
        self._removals[id(conn)] = conn
        self._stats.count(f"removed_{reason}")
        if reason in ("lost", "check"):
            self._stats.count("connections_lost")
        if reason == "lost":
            sweeper.watch(self)  # to drop its siblings now, too
        conn.removal_reason = reason
        try:
            try:
                if conn.pgconn.transaction_status == IDLE:
                    hygiene.restore(conn)
            finally:
                hygiene.close(conn)
        except Exception as exc:
            logger.warning("%s: closing a connection failed: %s", self.name, exc)

    def _failed_with(self, conn: Any, error: BaseException) -> None:
        sqlstate = getattr(error, "sqlstate", None)
        if sqlstate is None and isinstance(error, psycopg.OperationalError):
            silence.explain(error, conn)
        if sqlstate is None or not isinstance(error, psycopg.Error):
            return
        if sqlstate in _NODE_IS_GOING or (
            sqlstate == _READ_ONLY and not conn.read_only and not _asked_read_only(error)
        ):
            # So will the others on this node, or they would be told the same.
            self._evict_siblings(conn)
        elif sqlstate.startswith("08"):
            self._suspect(conn)

    def _notify(self, event: str, conn: Any, about: Any) -> None:
        if event != "remove":
            hygiene.restore(conn)
        if event == "release":
            # What is discarded may be in its holder's transaction: not ours to commit.
            was_idle = conn.pgconn.transaction_status == IDLE
            self._listeners.tell("release", about, conn)
            if was_idle:
                self._end_transaction(conn)
            return
        try:
            if about == "lost":
                lost = psycopg.OperationalError("the server closed the idle connection")
                logger.warning("%s: %s: %s", self.name, lost, conn)
                self._listeners.tell("error", lost, conn)
            self._listeners.tell(event, conn)
        finally:
            if event == "remove":
                self._removals.pop(id(conn), None)

    def _end_transaction(self, conn: Any) -> None:
        """End what listeners of `release` have begun; the core closes what is not idle then."""
        try:
            hygiene.end_transaction(conn)
        except Exception as exc:
            logger.warning("a listener of %r failed: %r", "release", exc, exc_info=True)

    def _update_flags(self) -> None:
        """Say which hooks there are: again, until that is what has been said, because another
        thread may be at it as well."""
        said = None
        while (flags := self._flags()) != said:
            self._set_flags(*flags)
            said = flags

    def _flags(self) -> tuple[bool, bool, bool, bool, bool]:
        return (
            self._check is not None,
            self._reset is not None,
            bool(self._leak_threshold),
            bool(self._listeners.of("acquire")),
            bool(self._listeners.of("release")),
        )

    # Upkeep, and leaks

    def _tidy(self) -> float | None:
        """What is due by the clock. Called by the sweeper."""
        self._sweep()
        if any_has_news(self._idle_conns()):
            self._inspect(False)
        self._report_leaks()
        wanted = self._tending.tend(self)
        if not self.total_count and not (self.min_size and self._is_refilling()):
            return None  # watched again with the next connection
        soonest = min(self.max_idle / 4, self.max_lifetime / 10, self._leak_threshold or 1e9)
        return min(max(min(soonest, wanted or 1.0), 0.02), 1.0)

    def _trace(self, slot: core.Slot) -> None:
        leaks.note_place(slot)

    def _untrace(self, slot: core.Slot) -> None:
        if leaks.was_reported(slot):
            logger.warning(
                "%s: a connection reported as leaked was returned after %.1f s",
                self.name,
                time.monotonic() - slot.lent_at,
            )
        slot.note = None

    def _report_leaks(self) -> None:
        if not self._leak_threshold:
            return
        for slot, age in leaks.overdue(self._list_slots(), self._leak_threshold):
            self._stats.count("leaks_suspected")
            logger.warning(
                "%s: a connection is in use for %.1f s; it was taken at\n%s",
                self.name,
                age,
                leaks.place(slot) or "an unknown place: before leak detection was on",
            )

    def _lost_one(self, slot: core.Slot) -> None:
        self._stats.count("removed_leak")
        place = leaks.place(slot)
        logger.warning(
            "%s: a connection was dropped instead of returned%s",
            self.name,
            f"; it was taken at\n{place}" if place else "",
        )

    # Numbers and words

    def _progressed(self) -> None:
        for alarm in list(self._onlookers):
            alarm.ring()

    def _count_error(self, name: str | None = None) -> None:
        self._stats.count("requests_errors")
        if name is not None:
            self._stats.count(name)

    def _not_lent(self, conn: Any) -> Exception:
        return pool_messages.not_lent(self, conn)

    def _closed_error(self) -> PoolClosed:
        for action in before_refusing:
            action()
        if self._opened_explicitly:
            return pool_messages.closed(self)
        return pool_messages.not_open(self)

    def _cause(self) -> BaseException | None:
        """What is likely to be behind a time-out."""
        return self._backoff.last_error or self._last_bad_check


def _asked_read_only(error: psycopg.Error) -> bool:
    """Whether it comes from a transaction that `run_transaction` made read-only."""
    return getattr(error, "ybsmart_read_only", False)
