"""A pool of connections for threads and greenlets.

Acts on what the core decides: connects, sleeps, cleans, closes. All of it happens outside the
core's critical sections, and nothing here keeps state of its own about connections or waiters.

Connections are opened by threads that live as long as there is something to open, so that a
request can be served by whatever comes first, and a connection outlives a request that gave up.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, cast, overload

import psycopg
from psycopg import pq, sql
from psycopg.abc import Params, Query
from psycopg.rows import Row, RowFactory, TupleRow

from . import pool_options as check_
from . import sweeper, transactions
from ._core import pool as core
from .cluster import lenders
from .connection import Connection
from .errors import DoubleRelease
from .events import Listener, Listeners
from .faults import Fault, classify
from .liveness import any_has_news, is_alive
from .pool_options import Conninfo, Kwargs
from .result import Result
from .stats import Stats, report
from .steering import Cap, NodesFull, steered_by

if sys.version_info >= (3, 13):
    from typing import Self, TypeVar
else:
    from typing_extensions import Self, TypeVar

if TYPE_CHECKING:
    from .cluster import NodeInfo
    from .pool_errors import PoolError

logger = logging.getLogger("ybsmart.pool")

CT = TypeVar("CT", bound=psycopg.Connection[Any], default=Connection[TupleRow])
T = TypeVar("T")
F = TypeVar("F", bound=Listener)

# Errors after which a node serves no connection: it is shutting down, has crashed or is starting;
# and the one of a node that may no longer be written to.
_NODE_IS_GOING = ("57P01", "57P02", "57P03")
_READ_ONLY = "25006"

# Modules whose frames are of no interest to who looks for a leak.
_OWN = (__name__, core.__name__, transactions.__name__)

IDLE = pq.TransactionStatus.IDLE
_IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

# Between attempts to connect after one has failed: 10 ms, doubled up to 5 s.
_BACKOFF_FIRST, _BACKOFF_MOST = 0.01, 5.0
# Before a check that fails is tried on another connection: none, then doubled up to a second.
_RECHECK_FIRST, _RECHECK_MOST = 0.01, 1.0
# For how long a server with too many clients is not asked for more.
_SQUEEZE = 5.0
# Between connects for the queue while other connections are in use: what is returned meanwhile may
# make the next one superfluous.
_STAGGER = 0.05

_pool_numbers = itertools.count(1)


@dataclass(frozen=True)
class Holder:
    """Who has a connection: for `holders()` and messages."""

    thread: str
    thread_id: int
    age: float
    """Seconds since it was lent."""
    node: str
    """`host:port`, empty where that is not known."""
    taken_at: str | None
    """The lines that lead to where it was taken; only with leak detection."""


class ConnectionPool(core.PoolCore, Generic[CT]):
    """Lends connections, up to a number, to whoever comes first.

    Nothing is opened before it is asked for, but for `min_size`. Requests are served in the order
    of their arrival, a returned or a new connection going straight to the one that has waited
    longest. Of the nodes with an idle connection, the one with the fewest in use lends the next.

    Safe to use from any number of threads, and from greenlets after gevent's `patch_all()`.
    """

    __module__ = "ybsmart"

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        kwargs: Kwargs = None,
        connection_class: type[CT] = cast(type[CT], Connection),
        min_size: int = 0,
        max_size: int | None = None,
        timeout: float | None = 30.0,
        connect_timeout: float | None = 10.0,
        max_idle: float | None = 10.0,
        max_lifetime: float | None = 3600.0,
        max_uses: int | None = None,
        max_waiting: int = 0,
        max_connecting: int | None = None,
        num_workers: int | None = None,
        lifo: bool = True,
        max_per_node: int | None = None,
        open: bool | None = None,
        name: str | None = None,
        configure: Callable[[CT], None] | None = None,
        check: Callable[[CT], None] | None = None,
        reset: Callable[[CT], None] | None = None,
        check_after: float = 0.5,
        reset_on_return: str | None = "rollback",
        discard_on_query_error: bool = False,
        fail_fast: bool = True,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Callable[[Any], None] | None = None,
        leak_detection_threshold: float = 0.0,
        close_returns: bool = False,
    ) -> None:
        """Make a pool; it connects when it is first used, or at once for `min_size` if `open`.

        conninfo, kwargs: given to `connection_class.connect`, load balancing as described there;
            a callable is asked before each connect, for credentials that rotate.
        min_size, max_size: connections kept open, and at most, those being opened or closed
            included. A maximum of None means fixed at `min_size`, or 10 without one.
        timeout: seconds a request may take in all: in the queue, connecting, in hooks. None is
            for ever, 0 means only if a connection is at hand.
        connect_timeout: seconds for one attempt to connect (libpq takes whole seconds, at least
            2); None leaves it to the conninfo, which wins in any case.
        max_idle: seconds after which an idle connection above `min_size` is closed; 0 or None
            for never.
        max_lifetime: seconds a connection lives, less up to a tenth by lot; 0 or None for ever.
        max_uses: loans after which a connection is closed.
        max_waiting: requests that may wait; more raise `TooManyRequests`. 0 is no limit.
        max_connecting: connections opened at a time, 3 by default; also called num_workers.
        lifo: whether the connection returned last is lent first, among those of one node.
        max_per_node: connections to one node at most, those being opened included; when all nodes
            have that many, it is as if `max_size` were reached. With load balancing only.
        open: True fills up to `min_size` now; False refuses requests until `open` is called; None
            fills up with the first request.
        configure: called with each new connection; check: with each before it is lent; reset: with
            each that is returned. A connection is closed when its hook raises or leaves a
            transaction open.
        check_after: seconds after which an idle connection's socket is looked at before it is
            lent. This takes no round trip.
        reset_on_return: "rollback" ends what a connection is returned in the middle of, "discard"
            closes such a connection, None leaves it to `reset`.
        discard_on_query_error: close the connection after any error in `query`.
        fail_fast: whether a failed connect is raised to the request it was made for; if not, it is
            tried again until the request's timeout.
        reconnect_timeout: seconds of failing to keep `min_size` open after which
            `reconnect_failed(pool)` is called, and nothing is tried until the next request.
        leak_detection_threshold: seconds after which a connection in use is reported as leaked,
            with the place where it was taken; 0 for never.
        close_returns: whether `conn.close()` returns a connection instead of closing it.
        name: for messages; `pool-N` by default.

        Raises `TypeError` or `ValueError` that names the parameter, and psycopg's
        `ProgrammingError` for a malformed conninfo.
        """
        least, most = check_.sizes(min_size, max_size)
        if num_workers is not None:
            max_connecting = check_.whole("num_workers", num_workers, 1)
        for hook, value in (
            ("configure", configure),
            ("check", check),
            ("reset", reset),
            ("reconnect_failed", reconnect_failed),
        ):
            check_.optional_callable(hook, value)
        check_.connection_class(connection_class)
        self.conninfo = conninfo
        self.kwargs = kwargs if callable(kwargs) else dict(kwargs or {})
        self.connection_class = connection_class
        self.timeout = check_.optional_seconds("timeout", timeout)
        self.connect_timeout = check_.optional_seconds("connect_timeout", connect_timeout)
        self.max_idle = check_.limit("max_idle", max_idle)
        self.max_lifetime = check_.limit("max_lifetime", max_lifetime)
        self.max_waiting = check_.whole("max_waiting", max_waiting, 0)
        self.num_workers = check_.whole(
            "max_connecting", 3 if max_connecting is None else max_connecting, 1
        )
        self.reconnect_timeout = check_.seconds("reconnect_timeout", reconnect_timeout)
        self.reset_on_return = check_.one_of("reset_on_return", reset_on_return, check_.RESETS)
        self.discard_on_query_error = bool(discard_on_query_error)
        self.fail_fast = bool(fail_fast)
        self.close_returns = bool(close_returns)
        self.name = str(name) if name else f"pool-{next(_pool_numbers)}"
        check_.check_arguments(conninfo, kwargs, self.connect_timeout)
        super().__init__(
            least,
            most,
            self.num_workers,
            self.max_idle,
            -1 if max_uses is None else check_.whole("max_uses", max_uses, 1),
            self.max_waiting,
            check_.seconds("check_after", check_after),
            _STAGGER,
            bool(lifo),
            IDLE,
        )
        self._configure = configure
        self._check = check
        self._reset = reset
        self._reconnect_failed = reconnect_failed
        self.max_per_node = (
            None if max_per_node is None else check_.whole("max_per_node", max_per_node, 1)
        )
        self._leak_threshold = 0.0
        self._evicting = "evict"  # or "drain": what the last of these was, for the statistics
        self._listeners = Listeners()
        self._opened_explicitly = open is not False
        self._fork_safe_state()
        self.leak_detection_threshold = leak_detection_threshold
        lenders[id(self)] = self
        _pools.add(self)
        if open:
            self.open()

    def _fork_safe_state(self) -> None:
        """What a forked child must have of its own: locks, and what they guard."""
        self._stats = Stats()
        self._cap = Cap(self.max_per_node, self._count_on) if self.max_per_node else None
        self._removals: set[int] = set()  # of whose `remove` event nobody has been told yet
        self._failures = 0  # to connect, in a row
        self._failing_since: float | None = None
        self._last_failure: BaseException | None = None  # to connect
        self._last_bad_check: BaseException | None = None
        self._progress = threading.Condition()  # told when somebody waits for the pool itself
        self._hurry = threading.Event()  # ends a connector's pause

    if TYPE_CHECKING:

        def getconn(self, timeout: float | None = None) -> CT: ...
        def connection(  # type: ignore[override]
            self, timeout: float | None = None
        ) -> AbstractContextManager[CT]: ...

    # Queries and transactions

    @overload
    def query(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Row],
        timeout: float | None = None,
        retry: bool = False,
    ) -> Result[Row]: ...

    @overload
    def query(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        timeout: float | None = None,
        retry: bool = False,
    ) -> Result[Any]: ...

    def query(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        timeout: float | None = None,
        retry: bool = False,
    ) -> Result[Any]:
        """Execute one statement, in autocommit, and return all of its result.

        timeout: seconds, for getting a connection. retry: whether it may be executed again, on
        another connection, when the first one breaks; for statements that may be repeated.
        Raises what executing it raises; the connection is kept for others if it is healthy.
        """
        if not isinstance(query, (str, bytes, sql.Composable)) and not _is_template(query):
            raise TypeError(f"query: expected str, bytes or sql.SQL, not {type(query).__name__}")
        attempts = 3 if retry else 1
        while True:
            attempts -= 1
            conn: Any = None
            try:
                with core.Checkout(self, timeout, False) as conn:
                    return self._execute(conn, query, params, row_factory)
            except psycopg.OperationalError:
                if not attempts or conn is None or not conn.broken:
                    raise

    def _execute(
        self, conn: Any, query: Query, params: Params | None, row_factory: RowFactory[Any] | None
    ) -> Result[Any]:
        autocommit = conn.autocommit
        if not autocommit:
            conn.autocommit = True
        try:
            cursor = conn.cursor(row_factory=row_factory) if row_factory else conn.cursor()
            cursor.execute(query, params)
            rows = cursor.fetchall() if cursor.description else []
            return Result(rows, cursor.rowcount, cursor.description, cursor.statusmessage)
        except BaseException:
            if self.discard_on_query_error:
                _close(conn)
            raise
        finally:
            if not autocommit and not conn.closed:
                # A statement such as BEGIN leaves a transaction open, and the next user must not
                # find the connection in autocommit.
                if conn.pgconn.transaction_status in _IN_TRANSACTION:
                    conn.rollback()
                if conn.pgconn.transaction_status == IDLE:
                    conn.autocommit = False
                else:
                    _close(conn)

    def run_transaction(
        self,
        fn: Callable[[CT], T],
        *,
        isolation_level: psycopg.IsolationLevel | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        max_retries: int = 10,
        timeout: float | None = None,
    ) -> T:
        """Run `fn(conn)` in a transaction, commit, and return what it returned.

        It is run again from the beginning, up to `max_retries` times, when the server answers with
        SQLSTATE 40001 or 40P01, in the body or at the COMMIT; after that, the last error is
        raised, as any other is at once. timeout: seconds, for getting a connection each time.
        """
        if not callable(fn):
            raise TypeError(f"fn: expected a callable, not {type(fn).__name__}")
        check_.whole("max_retries", max_retries, 0)
        return transactions.run(
            lambda: self.connection(timeout),
            fn,
            isolation_level=isolation_level,
            read_only=read_only,
            deferrable=deferrable,
            max_retries=max_retries,
        )

    # Opening and closing

    @property
    def closed(self) -> bool:
        """True before `open` of a pool made with `open=False`, and once `close` or `end` is
        called."""
        return self._is_closing() or not self._opened_explicitly

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start to fill the pool up to `min_size`; `wait` for it up to `timeout` seconds.

        Does nothing on an open pool; `PoolClosed` on one that was closed.
        """
        if self._is_closing():
            raise _errors().PoolClosed(f"{self._title()} was closed and cannot be reused")
        self._opened_explicitly = True
        if self.min_size and not self._is_refilling():
            self._refill(True)
            sweeper.watch(self)
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until `min_size` connections are open or, without a minimum, until one can be.

        Raises `PoolTimeout` after `timeout` seconds, and closes the pool.
        """
        if self.closed:
            raise self._closed_error()
        deadline = time.monotonic() + timeout
        if self.min_size:
            self.open()
            # Looked at every now and then as well: lending is not reported.
            while (left := deadline - time.monotonic()) > 0:
                if self._wait_until(self._is_filled, min(left, 0.05)):
                    return
        elif self._can_connect(deadline):
            return
        error = self._timeout_error(timeout)
        cause = self._cause()
        self.close()
        raise error from cause

    def _is_filled(self) -> bool:
        # Those on the way from one hand to the next are neither idle nor has anybody got them.
        there = sum(1 for slot in self.slots() if not slot.lent or slot.holder)
        return there >= self.min_size

    def _can_connect(self, deadline: float) -> bool:
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.putconn(self.getconn(left))
                return True
            except _errors().PoolClosed:
                raise
            except psycopg.Error:  # the next attempt is made when the core lets it
                continue
        return False

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        self._watch_progress(True)
        with self._progress:
            return self._progress.wait_for(condition, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Close now: whoever waits gets `PoolClosed`; lent connections close when returned.

        Waits up to `timeout` seconds for connections that are being opened. Does nothing on a
        closed pool.
        """
        self._start_closing()
        self._hurry.set()
        while self._fail_first(self._closed_error()):
            pass
        self._sweep()
        if timeout > 0:
            self._wait_until(lambda: self.connecting_count == 0, timeout)

    def end(self, timeout: float | None = None) -> None:
        """Lend to newcomers no more, serve those who wait, and return when all is closed.

        Raises `PoolClosed` on a closed pool and, after `timeout` seconds (None: never),
        `PoolTimeout` with the holders if connections are still in use; these close when they are
        returned.
        """
        if timeout is not None:
            check_.seconds("timeout", timeout)
        if not self._start_closing():
            raise _errors().PoolClosed(f"{self._title()} is already closed or closing")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._sweep()  # also frees the places of connections that were dropped
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if self._wait_until(self._is_gone, left):
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise _errors().PoolTimeout(
                    f"{self._title()} has not ended after {timeout:g} s {self._state()}"
                    f"{self._holders_listed()}"
                )

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

    # Looking after it

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes, as in the constructor. Surplus connections close when returned."""
        least = check_.whole("min_size", min_size, 0)
        least, most = check_.sizes(least, max_size)
        self._set_sizes(least, most)
        self._sweep()
        if least and not self.closed:
            self._refill(True)
            sweeper.watch(self)

    def check(self) -> None:
        """Try every idle connection with a round trip; close those that fail."""
        self._inspect(True)
        self._sweep()
        if self.min_size and not self.closed:
            self._refill(True)  # tried anew, if it had been given up

    @staticmethod
    def check_connection(conn: CT) -> None:
        """Return if the connection works, after a round trip; raise if it does not.

        Also for use as the parameter `check`.
        """
        if conn.autocommit:
            conn.execute("")
            return
        conn.autocommit = True
        try:
            conn.execute("")
        finally:
            with suppress(psycopg.Error):
                conn.autocommit = False

    def drain(self) -> None:
        """Close all connections that there are now, the lent ones when they are returned."""
        self._evicting = "drain"
        self._evict(None)

    def evict(self, node: NodeInfo | str | None = None) -> None:
        """Close all connections of one node, the lent ones when they are returned.

        node: a `NodeInfo` or `"host:port"`; None for all nodes. `ValueError` if the pool knows no
        such node.
        """
        self._evicting = "evict"
        if node is None:
            self._evict(None)
            return
        label = node if isinstance(node, str) else node.address
        keys = [shelf.key for shelf in self.shelves() if shelf.label == label]
        if not keys:
            known = ", ".join(repr(shelf.label) for shelf in self.shelves()) or "none yet"
            raise ValueError(f"node: {label!r} is not one of this pool's nodes ({known})")
        for key in keys:
            self._evict(key)

    def tidy(self) -> float | None:
        """What is due by the clock. Called by the sweeper."""
        self._sweep()
        if any_has_news(self._idle_conns()):
            self._inspect(False)
        self._report_leaks()
        if not self.total_count and not (self.min_size and self._is_refilling()):
            return None  # watched again with the next connection
        soonest = min(
            self.max_idle / 4, self.max_lifetime / 10, self.leak_detection_threshold or 1e9
        )
        return min(max(soonest, 0.02), 1.0)

    # Events

    @overload
    def on(self, event: str, fn: F) -> F: ...
    @overload
    def on(self, event: str, fn: None = None) -> Callable[[F], F]: ...
    def on(self, event: str, fn: F | None = None) -> F | Callable[[F], F]:
        """Call `fn` at each event, until `off`; a decorator when `fn` is left out.

        Events: `connect(conn)`, `acquire(conn)`, `release(error, conn)`, `error(error, conn)` for
        an idle connection that broke or a connect that failed (conn is None), and `remove(conn)`.
        Called by the thread that causes the event; exceptions are logged and go no further.
        """
        if fn is None:
            return lambda listener: self.on(event, listener)
        self._listeners.add(event, fn)
        self._update_flags()
        return fn

    def off(self, event: str, fn: Listener) -> None:
        """Call `fn` no more; `ValueError` if it was not called."""
        self._listeners.remove(event, fn)
        self._update_flags()

    # Reports

    def get_stats(self) -> dict[str, Any]:
        """The pool's numbers: psycopg_pool's keys and units, and more.

        Percentiles are upper bounds to the next power of two of a microsecond.
        """
        return self._get_stats(reset=False)

    def pop_stats(self) -> dict[str, Any]:
        """As `get_stats`, and all counters begin at zero again."""
        return self._get_stats(reset=True)

    def _get_stats(self, reset: bool) -> dict[str, Any]:
        numbers = self.numbers()
        if reset:
            self._reset_numbers()
        shelves = self.shelves()
        return {
            **report(numbers, *self._stats.take(reset)),
            "pool_min": self.min_size,
            "pool_max": self.max_size,
            "pool_size": self.total_count,
            "pool_available": self.idle_count,
            "pool_peak": numbers["peak"],
            "pool_connecting": self.connecting_count,
            "pool_checked_out": sum(shelf.lent for shelf in shelves),
            "requests_waiting": self.waiting_count,
            # Added up: a node that was replaced at its address has a shelf for each.
            "nodes": {
                label: {
                    "total": sum(s.idle + s.lent for s in shelves if s.label == label),
                    "idle": sum(s.idle for s in shelves if s.label == label),
                }
                for label in {shelf.label: None for shelf in shelves}
            },
        }

    def holders(self) -> list[Holder]:
        """Who has the connections that are lent, the longest first."""
        now = time.monotonic()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        holders = [
            Holder(
                thread=names.get(slot.holder, "?"),
                thread_id=slot.holder,
                age=now - slot.lent_at,
                node=slot.shelf.label,
                taken_at=_place(slot.note),
            )
            for slot in self.slots()
            if slot.lent and slot.lent_at
        ]
        return sorted(holders, key=lambda holder: -holder.age)

    @property
    def leak_detection_threshold(self) -> float:
        """Seconds in use after which a connection is reported as leaked; 0 is off. May be set."""
        return self._leak_threshold

    @leak_detection_threshold.setter
    def leak_detection_threshold(self, value: float) -> None:
        self._leak_threshold = check_.seconds("leak_detection_threshold", value)
        self._update_flags()
        if self._leak_threshold and self.total_count:
            sweeper.watch(self)

    def _count_on(self, key: str) -> int:
        return sum(shelf.idle + shelf.lent for shelf in self.shelves() if shelf.key == key)

    def lent_on(self, key: str) -> int:
        """How many connections to a node are lent, for `NodeInfo.in_use`."""
        return sum(shelf.lent for shelf in self.shelves() if shelf.key == key)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{kind} {self.name!r}{state} {self._state()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection pool cannot be pickled: make one in each process")

    # What the core asks for: waiting

    def _new_waiter(self, timeout: float | None) -> core.Waiter:
        if self.closed:
            raise self._closed_error()
        if self._limit(timeout) == 0:
            self._count_error("requests_timeouts")
            raise self._timeout_error(0) from self._cause()
        if self.min_size and not self._is_refilling():
            self._refill(True)
        # Looked up now, and not when this module was imported: gevent may have replaced it.
        lock = threading.Lock()
        lock.acquire()
        return core.Waiter(lock.release, lock)

    def _sleep(self, waiter: core.Waiter, timeout: float | None) -> None:
        started = time.monotonic()
        if self._is_deadlock(waiter) and self._withdraw(waiter):
            self._count_error("requests_rejected")
            raise _errors().PoolDeadlock(
                f"{self._title()}: every connection is held by a thread that waits for another "
                f"one; return a connection before asking for the next, or raise max_size "
                f"{self._state()}"
            )
        if not waiter.parked_on.acquire(True, self._limit(timeout)) and self._withdraw(waiter):
            self._count_error("requests_timeouts")
            raise self._timeout_error(time.monotonic() - started) from self._cause()

    def _limit(self, timeout: float | None) -> float:
        """Seconds to wait at most, as `Lock.acquire` wants them: -1 is for ever."""
        seconds = self.timeout if timeout is None else timeout
        return -1 if seconds is None else min(max(seconds, 0), threading.TIMEOUT_MAX)

    def _is_deadlock(self, waiter: core.Waiter) -> bool:
        """Whether the threads that hold the connections all wait, this one being the last of them
        to do so."""
        if self.idle_count or self.connecting_count or self.total_count < self.max_size:
            return False
        here = waiter.thread
        if here != threading.get_ident():
            return False  # a greenlet: the core knows only the thread it shares with others
        holders = {slot.holder for slot in self.slots() if slot.lent}
        if here not in holders or 0 in holders:
            return False
        waiting = [other.thread for other in self._waiters()]
        if not holders.issubset(waiting):
            return False
        return here == next(thread for thread in reversed(waiting) if thread in holders)

    def _too_many(self) -> PoolError:
        self._count_error("requests_rejected")
        error: PoolError = _errors().TooManyRequests(
            f"{self._title()} has already {self.waiting_count} requests waiting, of "
            f"{self.max_waiting} that may {self._state()}"
        )
        return error

    # What the core asks for: connecting

    def _open(self, opening: core.Opening) -> None:
        self._start_connector(opening)

    def _retry_later(self) -> None:
        self._start_connector(None)

    def _start_connector(self, opening: core.Opening | None) -> None:
        threading.Thread(
            target=self._open_all, args=(opening,), name=f"{self.name}-connect", daemon=True
        ).start()

    def _open_all(self, opening: core.Opening | None) -> None:
        """Open one connection after the other, for as long as any is wanted. Without an opening,
        begin by waiting until one may be begun, which the core expects of this thread."""
        if opening is None:
            opening = self._wait_for_opening()
        while opening is not None:
            begun = opening
            try:
                conn = self._connect()
                try:
                    self._connected()
                    key, label = _node_of(conn)
                    sweeper.watch(self)
                except BaseException:
                    _close(conn)
                    raise
            except BaseException as exc:
                try:
                    opening = self._connect_failed(begun, exc)
                except BaseException as worse:  # a listener's
                    opening = self._opening_failed(begun, worse, 0.0, True)
            else:
                # Jitter once and for all, so that those opened together do not end together.
                lives = self.max_lifetime * random.uniform(0.9, 1.0)
                try:
                    opening = self._opened(begun, conn, key, label, time.monotonic() + lives)
                finally:
                    if self._cap is not None:
                        self._cap.over()
                    conn = None  # or this thread would keep a dropped one alive
            if opening is None and self._claim_retry():
                opening = self._wait_for_opening()

    def _connect(self) -> Any:
        started = time.monotonic()
        self._stats.count("connections_num")
        text, options = check_.connect_arguments(self.conninfo, self.kwargs, self.connect_timeout)
        with steered_by(self._cap):
            conn = self.connection_class.connect(text, **options)
        try:
            conn._pool = self  # type: ignore[assignment]
            if self._configure is not None:
                self._configure(conn)
                self._must_be_idle(conn, "configure")
        except BaseException:
            _close(conn)
            raise
        self._stats.connected(time.monotonic() - started)
        self._listeners.tell("connect", conn)
        return conn

    def _connected(self) -> None:
        self._failures = 0
        self._failing_since = None
        self._last_failure = None

    def _connect_failed(self, opening: core.Opening, error: BaseException) -> core.Opening | None:
        if self._cap is not None:
            self._cap.over()
            if isinstance(error, NodesFull):
                # As if `max_size` were reached: with the connections there are, or when one ends.
                delay = 0.0 if self._squeeze(_SQUEEZE) else _BACKOFF_FIRST
                return self._opening_failed(opening, error, delay, False)
        self._stats.count("connections_errors")
        self._last_failure = _without_traceback(error)
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if classify(error) is Fault.BUSY and self._squeeze(_SQUEEZE):
            # With the connections there are, the request will be served.
            logger.info("%s: no more connections for now: %s", self.name, error)
            return self._opening_failed(opening, error, 0.0, False)
        told = self.fail_fast and opening.owner is not None
        # The first failure is tried again at once, for the next in line: it may have been chance.
        delay = 0.0
        if self._failures or not told:
            delay = min(_BACKOFF_FIRST * 2 ** min(self._failures, 16), _BACKOFF_MOST)
            delay *= random.uniform(0.5, 1.0)
        if told:
            self._count_error()
        else:
            logger.log(
                logging.INFO if self._failures else logging.WARNING,
                "%s: connecting failed, next reconnection attempt in %.2f s: %s",
                self.name,
                delay,
                error,
            )
            self._listeners.tell("error", error, None)
        self._failures += 1
        return self._opening_failed(opening, error, delay, self.fail_fast)

    def _wait_for_opening(self) -> core.Opening | None:
        """Wait until what is wanted may be opened; None when nothing is any more, or another
        thread waits instead."""
        while True:
            delay = self._wait_to_retry()
            if delay < 0.0:
                return None
            if delay > 0.0:
                self._hurry.wait(self._until_given_up(delay))
                continue
            opening = self._retry()
            if opening is not None or not self._claim_retry():
                return opening

    def _until_given_up(self, delay: float) -> float:
        """The delay, or less if refilling is to be given up before. If that is now, do so."""
        since = self._failing_since
        if since is None or not self.min_size or not self._is_refilling():
            return delay
        left = since + self.reconnect_timeout - time.monotonic()
        if left > 0:
            return min(delay, left)
        self._refill(False)
        # The next request begins afresh.
        self._failing_since = None
        self._failures = 0
        self._forgive()
        logger.warning("%s: no connection for %g s", self.name, self.reconnect_timeout)
        if self._reconnect_failed is not None:
            try:
                self._reconnect_failed(self)
            except BaseException:
                logger.warning("%s: reconnect_failed failed", self.name, exc_info=True)
        return 0.0

    # What the core asks for: lending and taking back

    def _is_alive(self, conn: Any) -> bool:
        return is_alive(conn)

    def _passes(self, conn: Any, thorough: bool) -> bool:
        if not thorough:
            return is_alive(conn)
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
            self._must_be_idle(conn, "check")
        except Exception as exc:
            logger.info("%s: a connection failed check: %s", self.name, exc)
            self._last_bad_check = _without_traceback(exc)
            return False
        self._last_bad_check = None
        return True

    def _pause(self, timeout: float | None, started: float, failures: int) -> float | None:
        pause = min(_RECHECK_FIRST * 2 ** min(failures - 1, 16), _RECHECK_MOST) if failures else 0.0
        limit = self._limit(timeout)
        if limit < 0:
            time.sleep(pause)
            return None
        left = limit - (time.monotonic() - started)
        if left <= pause:
            time.sleep(max(left, 0))
            self._count_error("requests_timeouts")
            raise self._timeout_error(limit) from self._cause()
        time.sleep(pause)
        return left - pause

    def _must_be_idle(self, conn: psycopg.Connection[Any], hook: str) -> None:
        status = pq.TransactionStatus(conn.pgconn.transaction_status)
        if status != IDLE:
            raise psycopg.ProgrammingError(
                f"the function {hook} left the connection in status {status.name}: discarded"
            )

    def _clean(self, conn: Any) -> bool:
        status = pq.TransactionStatus(conn.pgconn.transaction_status)
        try:
            if status in _IN_TRANSACTION and self.reset_on_return == "rollback":
                logger.warning("rolling back returned connection: %s", conn)
                self._stats.count("returns_rolled_back")
                conn.rollback()
            elif status == pq.TransactionStatus.UNKNOWN:
                if conn.broken:
                    # Whatever ended it may have ended the others on its node.
                    self._suspect(conn)
            elif status != IDLE and not (status in _IN_TRANSACTION and self._reset is not None):
                logger.warning("closing returned connection: %s", conn)
                _close(conn)
            if self._reset is not None and not conn.closed:
                self._reset(conn)
                self._must_be_idle(conn, "reset")
        except Exception as exc:
            logger.warning(
                "closing a connection that could not be reset: %s: %s: %s",
                conn,
                type(exc).__name__,
                exc,
            )
            _close(conn)
        if conn.closed:
            self._stats.count("returns_bad")
            logger.warning("discarding closed connection: %s", conn)
        return bool(conn.pgconn.transaction_status == IDLE)

    def _close_conn(self, conn: Any, reason: str) -> None:
        self._removals.add(id(conn))
        if reason == "evict":
            reason = self._evicting
        self._stats.count(f"removed_{reason}")
        if reason in ("lost", "check"):
            self._stats.count("connections_lost")
        conn.removal_reason = reason
        try:
            _close(conn)
        except Exception as exc:
            logger.warning("%s: closing a connection failed: %s", self.name, exc)

    def _failed_with(self, conn: Any, error: BaseException) -> None:
        sqlstate = getattr(error, "sqlstate", None)
        if sqlstate is None or not isinstance(error, psycopg.Error):
            return
        if sqlstate in _NODE_IS_GOING or (
            sqlstate == _READ_ONLY and not conn.read_only and not _asked_read_only(error)
        ):
            # So will the others on this node, or they would be told the same.
            self._evicting = "evict"
            self._evict_siblings(conn)
        elif sqlstate.startswith("08"):
            self._suspect(conn)

    def _notify(self, event: str, conn: Any, about: Any) -> None:
        if event == "release":
            self._listeners.tell("release", about, conn)
            return
        try:
            if about == "lost":
                lost = psycopg.OperationalError("the server closed the idle connection")
                logger.warning("%s: %s: %s", self.name, lost, conn)
                self._listeners.tell("error", lost, conn)
            self._listeners.tell(event, conn)
        finally:
            if event == "remove":
                self._removals.discard(id(conn))

    def _update_flags(self) -> None:
        listening = core.ON_ACQUIRE if self._listeners.of("acquire") else 0
        listening |= core.ON_RELEASE if self._listeners.of("release") else 0
        self._set_flags(
            self._check is not None, self._reset is not None, bool(self._leak_threshold), listening
        )

    # Leaks

    def _trace(self, slot: core.Slot) -> None:
        # Only what is needed to find the lines later, if anybody wants to know.
        frames = traceback.walk_stack(sys._getframe(1))
        users = ((f, line) for f, line in frames if f.f_globals.get("__name__") not in _OWN)
        slot.note = traceback.StackSummary.extract(users, limit=8, lookup_lines=False)

    def _untrace(self, slot: core.Slot) -> None:
        if isinstance(slot.note, _Reported):
            logger.warning(
                "%s: a connection reported as leaked was returned after %.1f s",
                self.name,
                time.monotonic() - slot.lent_at,
            )
        slot.note = None

    def _report_leaks(self) -> None:
        threshold = self._leak_threshold
        if not threshold:
            return
        now = time.monotonic()
        for slot in self.slots():
            age = now - slot.lent_at
            note = slot.note
            if not slot.lent or not slot.lent_at or isinstance(note, _Reported) or age < threshold:
                continue
            slot.note = _Reported(note)  # once is enough
            self._stats.count("leaks_suspected")
            logger.warning(
                "%s: a connection is in use for %.1f s; it was taken at\n%s",
                self.name,
                age,
                _place(note) or "an unknown place: before leak detection was on",
            )

    def _lost_one(self, slot: core.Slot) -> None:
        self._stats.count("removed_leak")
        place = _place(slot.note)
        logger.warning(
            "%s: a connection was dropped instead of returned%s",
            self.name,
            f"; it was taken at\n{place}" if place else "",
        )

    # Words

    def _progressed(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def _count_error(self, name: str | None = None) -> None:
        self._stats.count("requests_errors")
        if name is not None:
            self._stats.count(name)

    def _not_lent(self, conn: Any) -> Exception:
        if not isinstance(conn, psycopg.Connection):
            return TypeError(f"expected a connection of {self.name!r}, not {type(conn).__name__}")
        pool = getattr(conn, "_pool", None)
        where = f"it comes from pool {pool.name!r}" if pool else "it doesn't come from any pool"
        return DoubleRelease(f"can't return connection to pool {self.name!r}, {where}: {conn}")

    def _closed_error(self) -> PoolError:
        if not self._opened_explicitly:
            error: PoolError = _errors().PoolClosed(f"{self._title()} is not open yet")
        else:
            error = _errors().PoolClosed(f"{self._title()} is already closed")
        return error

    def _timeout_error(self, waited: float) -> PoolError:
        error: PoolError = _errors().PoolTimeout(
            f"{self._title()}: couldn't get a connection after {waited:.2f} sec {self._state()}"
            f"{self._holders_listed()}"
        )
        return error

    def _cause(self) -> BaseException | None:
        """What is likely to be behind a time-out."""
        return self._last_failure or self._last_bad_check

    def _holders_listed(self) -> str:
        """Who has the connections, for messages."""
        held = self.holders()
        lines = [
            f"\n  {h.thread} for {h.age:.2f} s on {h.node or '?'}"
            + (f", taken at\n{textwrap.indent(h.taken_at, '    ')}" if h.taken_at else "")
            for h in held[:10]
        ]
        if len(held) > 10:
            lines.append(f"\n  and {len(held) - 10} more")
        return "; in use by" + "".join(lines) if lines else ""

    def _title(self) -> str:
        return f"the pool {self.name!r}"

    def _state(self) -> str:
        """The counters, for messages."""
        return (
            f"(total {self.total_count} of {self.max_size}, idle {self.idle_count}, "
            f"connecting {self.connecting_count}, waiting {self.waiting_count})"
        )


def _errors() -> Any:
    """The pool's errors, imported when one is raised: see there."""
    from . import pool_errors

    return pool_errors


def _node_of(conn: psycopg.Connection[Any]) -> tuple[str, str]:
    """The node a connection goes to: its key, and its name for people."""
    lease = getattr(conn, "_lease", None)
    if lease is not None:
        return lease.host.key, lease.host.info.address
    return "", f"{conn.info.host}:{conn.info.port}"


def _close(conn: Any) -> None:
    """Close a connection, which its own `close` does only when it is in no pool."""
    conn._pool = None
    conn.close()


class _Reported:
    """The note of a loan that has been reported as a leak."""

    def __init__(self, note: traceback.StackSummary | None) -> None:
        self.note = note


def _place(note: Any) -> str | None:
    """The lines that lead to where a connection was taken."""
    if isinstance(note, _Reported):
        note = note.note
    return "".join(note.format()) if note else None


def _without_traceback(error: BaseException) -> BaseException:
    """The error for keeping: its traceback would keep its raisers' variables, and the original
    goes to the request it was for."""
    try:
        twin = type(error).__new__(type(error), *error.args)
        twin.__dict__.update(error.__dict__)
    except Exception:
        twin = psycopg.OperationalError(str(error))
    twin.__cause__ = error.__cause__
    return twin


def _asked_read_only(error: psycopg.Error) -> bool:
    """Whether it comes from a transaction that `run_transaction` made read-only."""
    return getattr(error, "ybsmart_read_only", False)


def _is_template(query: object) -> bool:
    # PEP 750, from Python 3.14 on; psycopg takes it where the interpreter has it.
    return type(query).__module__ == "string.templatelib"


# Forked children

_pools: weakref.WeakSet[ConnectionPool[Any]] = weakref.WeakSet()
# Connections of the parent process. Closing one would end the parent's session, so they stay.
_inherited: list[object] = []


def _start_empty_in_child() -> None:
    for pool in list(_pools):
        _inherited.append(pool._inheritance())
        pool._start_empty()
        pool._fork_safe_state()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_empty_in_child)
