"""A pool of connections for threads and greenlets.

Acts on what the core decides: connects, sleeps, cleans, closes. All of it happens outside the
core's critical sections, and nothing here keeps state of its own about connections or waiters.

Connections are opened by threads that live as long as there is something to open, so that a
request can be served by whatever comes first, and a connection outlives a request that gave up.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, cast

import psycopg
from psycopg import pq, sql
from psycopg.abc import Params, Query
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import Row, RowFactory, TupleRow

from ._core import pool as core
from .cluster import lenders
from .connection import Connection
from .errors import DoubleRelease, PoolClosed, PoolTimeout
from .liveness import is_alive
from .params import split
from .result import Result

if sys.version_info >= (3, 13):
    from typing import Self, TypeVar
else:
    from typing_extensions import Self, TypeVar

logger = logging.getLogger("ybsmart.pool")

CT = TypeVar("CT", bound=psycopg.Connection[Any], default=Connection[TupleRow])

IDLE = pq.TransactionStatus.IDLE
_IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

_numbers = itertools.count(1)


class ConnectionPool(core.PoolCore, Generic[CT]):
    """Lends connections, up to a number, to whoever comes first.

    Nothing is opened before it is asked for. Requests are served in the order of their arrival, a
    returned or a new connection going straight to the one that has waited longest. Of the nodes
    with an idle connection, the one with the fewest in use lends the next.

    Safe to use from any number of threads, and from greenlets after gevent's `patch_all()`.
    """

    __module__ = "ybsmart"

    def __init__(
        self,
        conninfo: str = "",
        *,
        kwargs: Mapping[str, Any] | None = None,
        connection_class: type[CT] = cast(type[CT], Connection),
        max_size: int = 10,
        timeout: float | None = 30.0,
        connect_timeout: float | None = 10.0,
        max_connecting: int = 3,
        check_after: float = 0.5,
        name: str | None = None,
    ) -> None:
        """Make a pool; it connects when it is first used.

        conninfo, kwargs: given to `connection_class.connect`; load balancing as described there.
        max_size: connections at most, those being opened or closed included.
        timeout: seconds a request waits, for a place in turn and for connecting; None is for
            ever, 0 means only if a connection is at hand.
        connect_timeout: seconds for one attempt to connect (libpq rounds to whole seconds, at
            least 2); None leaves it to the conninfo, which wins in any case.
        max_connecting: connections opened at a time.
        check_after: seconds after which an idle connection's socket is looked at before it is
            lent. This takes no round trip.
        name: for messages; `pool-N` by default.

        Raises `TypeError` or `ValueError` that names the parameter, and psycopg's
        `ProgrammingError` for a malformed conninfo.
        """
        if not isinstance(conninfo, str):
            raise TypeError(f"conninfo: expected a string, not {type(conninfo).__name__}")
        if not (
            isinstance(connection_class, type) and issubclass(connection_class, psycopg.Connection)
        ):
            raise TypeError("connection_class: expected a subclass of psycopg.Connection")
        self.conninfo = conninfo
        self.kwargs = dict(kwargs or {})
        self.connection_class = connection_class
        self.max_size = _whole("max_size", max_size)
        self.timeout = None if timeout is None else _seconds("timeout", timeout)
        self.name = f"pool-{next(_numbers)}" if name is None else str(name)
        super().__init__(
            self.max_size,
            _whole("max_connecting", max_connecting),
            _seconds("check_after", check_after),
            IDLE,
        )
        self._options = dict(self.kwargs)
        _, rest, libpq = split(conninfo, self.kwargs)
        if connect_timeout is not None:
            seconds = _seconds("connect_timeout", connect_timeout)
            if "connect_timeout" not in conninfo_to_dict(rest, **_strings(libpq)):
                self._options["connect_timeout"] = max(1, round(seconds))
        self._last_failure: BaseException | None = None
        self._progress = threading.Condition()  # told when a closing pool gets nearer to its end
        lenders.add(self)

    if TYPE_CHECKING:

        def getconn(self, timeout: float | None = None) -> CT: ...
        def connection(  # type: ignore[override]
            self, timeout: float | None = None
        ) -> AbstractContextManager[CT]: ...

    # Using it

    def query(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Row] | None = None,
        timeout: float | None = None,
    ) -> Result[Row]:
        """Execute one statement, in autocommit, and return all of its result.

        `timeout` in seconds is for getting a connection. Raises what executing it raises; the
        connection is kept for others if it is healthy, and closed if it is not.
        """
        if not isinstance(query, (str, bytes, sql.Composable)) and not _is_template(query):
            raise TypeError(f"query: expected str, bytes or sql.SQL, not {type(query).__name__}")
        with core.Checkout(self, timeout, False) as conn:
            autocommit = conn.autocommit
            if not autocommit:
                conn.autocommit = True
            try:
                cursor = conn.cursor(row_factory=row_factory) if row_factory else conn.cursor()
                cursor.execute(query, params)
                rows = cursor.fetchall() if cursor.description else []
                return Result(rows, cursor.rowcount, cursor.description, cursor.statusmessage)
            finally:
                if not autocommit and conn.pgconn.transaction_status == IDLE:
                    conn.autocommit = False

    @property
    def closed(self) -> bool:
        """True as soon as `close` or `end` has been called."""
        return self._is_closing()

    def close(self, timeout: float = 5.0) -> None:
        """Close now: whoever waits gets `PoolClosed`; lent connections close when returned.

        Waits up to `timeout` seconds for connections that are being opened. Does nothing on a
        closed pool.
        """
        self._start_closing()
        while self._fail_first(self._closed_error()):
            pass
        while self._retire_idle():
            pass
        with self._progress:
            self._progress.wait_for(lambda: self.connecting_count == 0, timeout)

    def end(self, timeout: float | None = None) -> None:
        """Lend to newcomers no more, serve those who wait, and return when all is closed.

        Raises `PoolClosed` on a closed pool and, after `timeout` seconds (None: never),
        `PoolTimeout` if connections are still in use; these close when they are returned.
        """
        if not self._start_closing():
            raise PoolClosed(f"{self._title()} is already closed or closing")
        while self._retire_idle():
            pass
        with self._progress:
            if not self._progress.wait_for(lambda: self.total_count == 0, timeout):
                raise PoolTimeout(
                    f"{self._title()} has not ended after {timeout:g} s {self._numbers()}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        cls = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{cls} {self.name!r}{state} {self._numbers()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection pool cannot be pickled: make one in each process")

    def lent_on(self, key: str) -> int:
        """How many connections to a node are lent, for `NodeInfo.in_use`."""
        return sum(shelf.lent for shelf in self.shelves() if shelf.key == key)

    # What the core asks for

    def _new_waiter(self, timeout: float | None) -> core.Waiter:
        if self._limit(timeout) == 0:
            raise self._closed_error() if self.closed else self._timeout_error(0)
        # Looked up now, and not when this module was imported: gevent may have replaced it.
        lock = threading.Lock()
        lock.acquire()
        return core.Waiter(lock.release, lock)

    def _sleep(self, waiter: core.Waiter, timeout: float | None) -> None:
        started = time.monotonic()
        limit = self._limit(timeout)
        if not waiter.parked_on.acquire(True, limit) and self._withdraw(waiter):
            raise self._timeout_error(time.monotonic() - started) from self._last_failure

    def _limit(self, timeout: float | None) -> float:
        """Seconds to wait at most, as `Lock.acquire` wants them: -1 is for ever."""
        seconds = self.timeout if timeout is None else timeout
        return -1 if seconds is None else min(max(seconds, 0), threading.TIMEOUT_MAX)

    def _open(self, opening: core.Opening) -> None:
        threading.Thread(
            target=self._open_all, args=(opening,), name=f"{self.name}-connect", daemon=True
        ).start()

    def _open_all(self, opening: core.Opening | None) -> None:
        while opening is not None:
            try:
                conn = self.connection_class.connect(self.conninfo, **self._options)
            except BaseException as exc:
                self._last_failure = exc
                opening = self._opening_failed(opening, exc)
            else:
                self._last_failure = None
                opening = self._opened(opening, conn, _node_key(conn))

    def _is_alive(self, conn: psycopg.Connection[Any]) -> bool:
        return is_alive(conn)

    def _clean(self, conn: psycopg.Connection[Any]) -> bool:
        status = pq.TransactionStatus(conn.pgconn.transaction_status)
        try:
            if status in _IN_TRANSACTION:
                logger.warning(
                    "%s: rolling back a connection returned in %s", self.name, status.name
                )
                conn.rollback()
            elif conn.broken:
                # Whatever ended it may have ended the others on its node.
                self._suspect(conn)
            elif not conn.closed:
                logger.warning("%s: closing a connection returned in %s", self.name, status.name)
        except Exception as exc:
            logger.warning("%s: rollback failed, closing the connection: %s", self.name, exc)
        return conn.pgconn.transaction_status == IDLE

    def _close_conn(self, conn: psycopg.Connection[Any]) -> None:
        try:
            conn.close()
        except Exception as exc:
            logger.warning("%s: closing a connection failed: %s", self.name, exc)

    def _closing_progressed(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def _not_lent(self, conn: Any) -> Exception:
        if not isinstance(conn, psycopg.Connection):
            return TypeError(f"expected a connection of {self.name!r}, not {type(conn).__name__}")
        return DoubleRelease(
            f"the connection is not on loan from {self.name!r}: it was returned before, or comes "
            "from elsewhere"
        )

    def _closed_error(self) -> Exception:
        return PoolClosed(f"{self._title()} is already closed")

    def _timeout_error(self, waited: float) -> Exception:
        return PoolTimeout(f"{self._title()}: no connection after {waited:.2f} s {self._numbers()}")

    def _title(self) -> str:
        return f"the pool {self.name!r}"

    def _numbers(self) -> str:
        """The counters, for messages."""
        return (
            f"(total {self.total_count} of {self.max_size}, idle {self.idle_count}, "
            f"connecting {self.connecting_count}, waiting {self.waiting_count})"
        )


def _node_key(conn: psycopg.Connection[Any]) -> str:
    """The node a connection goes to; the same for all where that is not known."""
    lease = getattr(conn, "_lease", None)
    return lease.host.key if lease is not None else ""


def _strings(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if isinstance(value, (str, int))}


def _is_template(query: object) -> bool:
    # PEP 750, from Python 3.14 on; psycopg takes it where the interpreter has it.
    return type(query).__module__ == "string.templatelib"


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}: must be at least 1, not {value}")
    return value


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, not {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}: must be 0 or more, not {value!r}")
    return float(value)
