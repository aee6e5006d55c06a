"""A pool of connections for threads and greenlets: what users call.

Checks what it is given, and has the core and its hooks do the rest. Keeps no state of its own about
connections or waiters.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, overload

import psycopg
from psycopg.abc import Params, Query
from psycopg.rows import BaseRowFactory, Row, RowFactory, TupleRow

from . import leaks, lenders, pool_messages, pool_options, statements, sweeper, transactions
from ._core import pool as core
from .alarm import Alarm
from .connection import Connection
from .connector import Backoff
from .events import (
    AnyListener,
    ConnEvent,
    ConnListener,
    ErrorEvent,
    ErrorListener,
    Listener,
    Listeners,
)
from .hygiene import IDLE
from .pool_lifetime import PoolLifetime
from .pool_options import Conninfo, Kwargs
from .result import Result
from .stats import Stats, report
from .steering import Cap
from .tending import Tending

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from .cluster import NodeInfo

# Covariant: whoever takes a pool of psycopg's connections takes a pool of any subclass.
CT = TypeVar(  # noqa: PLC0105 (psycopg_pool's name for it)
    "CT", bound=psycopg.Connection[Any], default=Connection[TupleRow], covariant=True
)
T = TypeVar("T")
FC = TypeVar("FC", bound=ConnListener)
FE = TypeVar("FE", bound=ErrorListener)
FA = TypeVar("FA", bound=AnyListener)

# Between connects for the queue while other connections are in use: what is returned meanwhile may
# make the next one superfluous.
_STAGGER = 0.01

_pool_numbers = itertools.count(1)


class ConnectionPool(PoolLifetime, Generic[CT]):
    """Keeps up to `max_size` connections open and lends them, first come, first served.

    Apart from `min_size`, connections are opened only when they are needed. A returned or new
    connection goes straight to the request that has waited longest. Of the nodes with an idle
    connection, the next one lent is on the node with the fewest in use.

    Safe to use from any number of threads, and from greenlets after gevent's `patch_all()`.
    """

    __module__ = "ybsmart"

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        kwargs: Kwargs = None,
        # Not a cast, which would hide the default from pyright.
        connection_class: type[CT] = Connection,  # type: ignore[assignment]
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
        rebalance: bool = True,
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
        """Create a pool. It connects when it is first used; with `open=True`, fills up at once.

        conninfo, kwargs: the arguments of `connection_class.connect`, which include load balancing.
            A callable is called before each connect, for credentials that change.
        min_size, max_size: how many connections are kept open, and how many there may be, including
            those being opened or closed. If `max_size` is None it is `min_size`, or 10 without one.
        timeout: seconds that a request may take in all: in the queue, connecting, in hooks. None
            means for ever; 0 takes a connection only if one is idle.
        connect_timeout: seconds for one attempt to connect (libpq takes whole seconds, at least
            2). A `connect_timeout` in the conninfo has precedence; None leaves it to that.
        max_idle: seconds after which an idle connection above `min_size` is closed; 0 or None:
            never.
        max_lifetime: seconds after which a connection is closed, less up to a tenth at random; 0 or
            None: never.
        max_uses: loans after which a connection is closed; None: no limit.
        max_waiting: how many requests may wait; more raise `TooManyRequests`. 0: no limit.
        max_connecting: how many connections are opened at a time, 3 by default; also called
            `num_workers`.
        lifo: whether, of the idle connections to a node, the one returned last is lent first.
        max_per_node: how many connections there may be to one node, including those being opened.
            When all nodes have as many, it is as if `max_size` were reached. Only with load
            balancing.
        rebalance: whether surplus connections are moved, a few per second, to nodes that join, come
            back or are preferred; lent ones only once they are returned.
        open: True fills the pool up to `min_size` now; False refuses requests until `open` is
            called; None fills it with the first request.
        configure: called with each new connection; check: with each before it is lent; reset: with
            each that is returned. If a hook raises, or leaves a transaction open, the connection is
            closed.
        check_after: seconds after which an idle connection's socket is looked at before it is
            lent. This takes no round trip.
        reset_on_return: "rollback" ends a transaction that is open when a connection is returned,
            "discard" closes the connection instead, None leaves it to `reset`.
        discard_on_query_error: whether any error in `query` closes the connection.
        fail_fast: whether the error of a failed connect is raised in the request that it was for;
            if not, the pool tries again until the request's timeout.
        reconnect_timeout: seconds of failing to keep `min_size` open after which
            `reconnect_failed(pool)` is called, and nothing is tried until the next request.
        leak_detection_threshold: seconds after which a lent connection is reported as leaked, with
            the place where it was taken; 0: never.
        close_returns: whether `conn.close()` returns a connection instead of closing it.
        name: for messages; `pool-N` by default.

        Raises `TypeError` or `ValueError`, naming the parameter, and psycopg's `ProgrammingError`
        for a malformed conninfo.
        """
        least, most = pool_options.sizes(min_size, max_size)
        if num_workers is not None:
            max_connecting = pool_options.whole("num_workers", num_workers, 1)
        for hook, value in (
            ("configure", configure),
            ("check", check),
            ("reset", reset),
            ("reconnect_failed", reconnect_failed),
        ):
            pool_options.optional_callable(hook, value)
        pool_options.connection_class(connection_class)
        self.conninfo = conninfo
        self.kwargs = kwargs if callable(kwargs) else dict(kwargs or {})
        self.connection_class = connection_class
        self.timeout = pool_options.optional_seconds("timeout", timeout)
        self.connect_timeout = pool_options.optional_seconds("connect_timeout", connect_timeout)
        self.max_idle = pool_options.limit("max_idle", max_idle)
        self.max_lifetime = pool_options.limit("max_lifetime", max_lifetime)
        self.max_waiting = pool_options.whole("max_waiting", max_waiting, 0)
        self.num_workers = pool_options.whole(
            "max_connecting", 3 if max_connecting is None else max_connecting, 1
        )
        self.max_per_node = (
            None if max_per_node is None else pool_options.whole("max_per_node", max_per_node, 1)
        )
        self.reconnect_timeout = pool_options.seconds("reconnect_timeout", reconnect_timeout)
        self.reset_on_return = pool_options.one_of(
            "reset_on_return", reset_on_return, pool_options.RESETS
        )
        self.discard_on_query_error = bool(discard_on_query_error)
        self.fail_fast = bool(fail_fast)
        self.close_returns = bool(close_returns)
        self.rebalance = bool(rebalance)
        self.name = str(name) if name else f"pool-{next(_pool_numbers)}"
        pool_options.check_arguments(conninfo, kwargs, self.connect_timeout)
        super().__init__(
            least,
            most,
            self.num_workers,
            self.max_idle,
            sys.maxsize if max_uses is None else pool_options.whole("max_uses", max_uses, 1),
            self.max_waiting,
            pool_options.seconds("check_after", check_after),
            _STAGGER,
            bool(lifo),
            IDLE,
        )
        self._configure = configure
        self._check = check
        self._reset = reset
        self._reconnect_failed = reconnect_failed
        self._leak_threshold = 0.0
        self._listeners = Listeners()
        self._opened_explicitly = open is not False
        self.leak_detection_threshold = leak_detection_threshold
        lenders.register(self)
        if open:
            self.open()

    def _begin_anew(self) -> tuple[list[Any], object]:
        """In a forked child: start empty; return the parent's connections, as libpq has them, and
        what refers to them."""
        inheritance = self._inheritance(pool_messages.forked(self))
        self._start_empty()
        return inheritance

    def _start_empty(self) -> None:
        self._stats = Stats()
        self._cap = Cap(self.max_per_node, self._count_on) if self.max_per_node else None
        # Of whose `remove` event nobody has been told yet, by identity. Weakly: an interrupt may be
        # why nobody ever is.
        self._removals: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._backoff = Backoff()
        self._tending = Tending()
        self._last_bad_check: BaseException | None = None
        self._onlookers: set[Alarm] = set()
        super()._start_empty()

    if TYPE_CHECKING:
        connection_class: type[CT]

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
        row_factory: RowFactory[Row] | BaseRowFactory[Row],  # the latter for pyright
        timeout: float | None = None,
        retry: bool = False,
    ) -> Result[Row]: ...

    @overload
    def query(
        self: ConnectionPool[psycopg.Connection[Row]],
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        timeout: float | None = None,
        retry: bool = False,
    ) -> Result[Row]: ...

    def query(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        timeout: float | None = None,
        retry: bool = False,
    ) -> Result[Any]:
        """Execute one statement, in autocommit, and return its whole result.

        timeout: seconds for getting a connection. retry: whether the statement may be executed
        again on another connection if the first one breaks; for statements that may be repeated.
        Raises the error of the statement; the connection is kept if it is healthy.
        """
        if not isinstance(query, str):
            statements.must_be_query(query)
        attempts = 3 if retry else 1
        while True:
            attempts -= 1
            conn: Any = None
            try:
                with core.Checkout(self, timeout, False) as conn:
                    return statements.execute(
                        conn, query, params, row_factory, self.discard_on_query_error
                    )
            except psycopg.OperationalError:
                if not attempts or conn is None or not conn.broken:
                    raise

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

        If the server answers with SQLSTATE 40001 or 40P01, in the body or at the COMMIT, `fn` is
        run again from the beginning, up to `max_retries` times, before the last error is raised.
        Any other error is raised at once. timeout: seconds for getting a connection each time.
        """
        if not callable(fn):
            raise TypeError(f"fn: expected a callable, not {type(fn).__name__}")
        pool_options.whole("max_retries", max_retries, 0)
        return transactions.run(
            lambda: self.connection(timeout),
            fn,
            isolation_level=isolation_level,
            read_only=read_only,
            deferrable=deferrable,
            max_retries=max_retries,
        )

    # Looking after it

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes; arguments and errors are those of the constructor. Surplus connections
        are closed, the lent ones when they are returned."""
        least, most = pool_options.sizes(min_size, max_size)
        self._set_sizes(least, most)
        self._sweep()
        if least and not self.closed:
            self._refill(True)
            sweeper.watch(self)

    def check(self) -> None:
        """Check every idle connection with a round trip, and close those that fail."""
        self._inspect(True)
        self._sweep()
        if self.min_size and not self.closed:
            self._refill(True)  # tried anew, if it had been given up

    def drain(self) -> None:
        """Close all present connections, the lent ones when they are returned."""
        self._evict(None, "drain")

    def evict(self, node: NodeInfo | str | None = None) -> None:
        """Close all connections of one node, the lent ones when they are returned.

        node: a `NodeInfo` or `"host:port"`; None means all nodes. `ValueError` if the pool does not
        know the node.
        """
        if node is None:
            self._evict(None, "evict")
            return
        label = node if isinstance(node, str) else node.address
        keys = [shelf.key for shelf in self._list_shelves() if shelf.label == label]
        if not keys:
            known = ", ".join(repr(shelf.label) for shelf in self._list_shelves()) or "none yet"
            raise ValueError(f"node: {label!r} is not one of this pool's nodes ({known})")
        for key in keys:
            self._evict(key, "evict")

    # Events

    # These overlap with the last but one, for functions that take any arguments: no harm.
    @overload
    def on(self, event: ConnEvent, fn: FC) -> FC: ...  # type: ignore[overload-overlap]
    @overload
    def on(self, event: ConnEvent, fn: None = None) -> Callable[[FC], FC]: ...
    @overload
    def on(self, event: ErrorEvent, fn: FE) -> FE: ...  # type: ignore[overload-overlap]
    @overload
    def on(self, event: ErrorEvent, fn: None = None) -> Callable[[FE], FE]: ...
    @overload
    def on(self, event: str, fn: FA) -> FA: ...
    @overload
    def on(self, event: str, fn: None = None) -> Callable[[FA], FA]: ...
    def on(self, event: str, fn: Listener | None = None) -> Any:
        """Call `fn` at each such event, until `off`. Without `fn`, this is a decorator.

        Events: `connect(conn)`, `acquire(conn)`, `release(error, conn)`, `error(error, conn)` for
        an idle connection that broke or a connect that failed (conn is None), and `remove(conn)`,
        for the reason `conn.removal_reason`.
        Statements of `connect` and `release` listeners are committed; those of `acquire` listeners
        are part of the transaction that follows, or are committed before a `query`. Listeners are
        called in the thread that causes the event; their exceptions are logged and go no further.
        `ValueError` for any other event, `TypeError` if `fn` cannot be called.
        """
        if fn is None:
            return lambda listener: self.on(event, listener)
        self._listeners.add(event, fn)
        self._update_flags()
        return fn

    def off(self, event: str, fn: Listener) -> None:
        """Stop calling `fn` at this event; `ValueError` if it was not being called."""
        self._listeners.remove(event, fn)
        self._update_flags()

    # Reports

    def get_stats(self) -> dict[str, Any]:
        """The pool's statistics: those of psycopg_pool, with its keys and units, and more.

        Percentiles are rounded up to the next power of two in microseconds.
        """
        return self._get_stats(reset=False)

    def pop_stats(self) -> dict[str, Any]:
        """Return the same as `get_stats`, and set all counters back to zero."""
        return self._get_stats(reset=True)

    def _get_stats(self, reset: bool) -> dict[str, Any]:
        numbers = self._numbers(reset)
        shelves = self._list_shelves()
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

    def holders(self) -> list[leaks.Holder]:
        """Who has the connections that are lent, the longest first."""
        return leaks.holders(self._list_slots())

    @property
    def leak_detection_threshold(self) -> float:
        """Seconds in use after which a connection is reported as leaked; 0 is off. May be set."""
        return self._leak_threshold

    @leak_detection_threshold.setter
    def leak_detection_threshold(self, value: float) -> None:
        self._leak_threshold = pool_options.seconds("leak_detection_threshold", value)
        self._update_flags()
        if self._leak_threshold and self.total_count:
            sweeper.watch(self)

    def _count_on(self, key: str) -> int:
        return sum(shelf.idle + shelf.lent for shelf in self._list_shelves() if shelf.key == key)

    def _lent_on(self, key: str) -> int:
        """How many connections to a node are lent, for `NodeInfo.in_use`."""
        return sum(shelf.lent for shelf in self._list_shelves() if shelf.key == key)

    def __repr__(self) -> str:
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        try:
            state = " closed" if self.closed else ""
            return f"<{kind} {self.name!r}{state} {pool_messages.state(self)}>"
        except AttributeError:  # a debugger looks at one whose constructor has failed
            return f"<{kind} that could not be made>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection pool cannot be pickled: make one in each process")
