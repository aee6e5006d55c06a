"""A pool as its users call it: a connection is lent, and taken back once.

On top of the layers below, each of which calls only those under it:

    PoolCore        pool.py      getconn, putconn, connection
    Checkout        checkout.py  the block that `connection` returns
    PoolLoans       loans.py     into its holder's hands, and back once
    PoolSweeping    sweeping.py  idle connections that are due
    PoolQueueing    queueing.py  into the queue and out of it
    PoolLending     lending.py   which idle connection; who gets one that is free
    PoolClosing     closing.py   why one is not lent again; its place
    PoolOpenings    openings.py  what is to be opened, and when
    PoolState       state.py     counts, sizes, statistics
    Hooks           hooks.py     what the shell must supply

Decides nothing of its own.

Never: connects, closes, sleeps, logs, raises an error of the package's own. What has to be done
about a decision is done by the subclass, through the hooks.

An exception may be delivered to a thread between any two bytecodes. Compiled, the methods here
have none, so a connection is at any instant either in the books or in the caller's hands.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import which_process
    from .checkout import Checkout
    from .loans import PoolLoans
    from .openings import Opening
    from .slots import Shelf, Slot
    from .times import Times
    from .waiters import CANCELLED, FAILED, GRANTED, WAITING, Waiter, WaiterQueue


def is_compiled() -> bool:
    return cython.compiled


@cython.cclass
class PoolCore(PoolLoans):
    """State and fast path of a pool. Subclassed by the shell, which supplies the hooks."""

    __slots__ = ()

    def __init__(
        self,
        min_size: cython.Py_ssize_t,
        max_size: cython.Py_ssize_t,
        max_connecting: cython.Py_ssize_t,
        max_idle: cython.double,
        max_uses: cython.Py_ssize_t,
        max_waiting: cython.Py_ssize_t,
        check_after: cython.double,
        stagger: cython.double,
        lifo: cython.bint,
        idle_status: cython.int,
    ) -> None:
        """`max_idle`: seconds, infinity for no limit; `max_uses`: loans, for no limit more than
        there can be; `max_waiting`: 0 for no limit. `check_after`: seconds of idleness after which
        `_is_alive` is asked before lending. `stagger`: seconds between openings while there are
        connections that may come back first. `idle_status`: what `conn.pgconn.transaction_status`
        is when nothing is open."""
        self._min_size = min_size
        self._max_size = max_size
        self._max_connecting = max_connecting
        self._max_idle = max_idle
        self._max_uses = max_uses
        self._max_waiting = max_waiting
        self._fresh_for = min(check_after, max_idle)
        self._stagger = stagger
        self._lifo = lifo
        self._idle_status = idle_status
        self._vetting = self._cleaning = self._tracing = self._watched = False
        self._notifies_acquire = self._notifies_release = False
        self._closing = False
        self._start_empty()

    def _start_empty(self) -> None:
        PoolLoans._start_empty(self)
        self._process = which_process()  # last: whoever sees it finds the rest done

    def getconn(self, timeout: Any = None) -> Any:
        """Get a connection, to be returned with `putconn`, once.

        timeout: seconds to wait in all; None takes the pool's `timeout`, 0 only an idle connection.
        Raises `PoolTimeout`, `PoolDeadlock`, `TooManyRequests`, `PoolClosed`, or the error of a
        failed connect. Safe for any number of threads.
        """
        if self._vetting:
            return self._lend_vetted(timeout)
        return self._lend(self._find(timeout), False, False)

    def putconn(self, conn: Any, *, discard: bool = False) -> None:
        """Return a connection to this pool; with `discard`, close it.

        Raises `DoubleRelease` if it is not on loan from this pool, and `TypeError` if it is not a
        connection; then nothing changes. Any thread may return a connection from `getconn`; one
        that was lent to a block is returned by the block only.
        """
        slot: Slot = self._slot_of(conn)
        if self._claim(slot, conn, 0):
            self._return(slot, conn, False, discard, None)
            return
        # By a finaliser that ran after its place was given away.
        try:
            self._close_conn(conn, "discard")
        finally:
            self._notify("remove", conn, "discard")
            self._report()

    def connection(self, timeout: Any = None) -> Checkout:
        """A `with` block that gets a connection, commits at the end or rolls back after an
        exception, and returns it. Arguments and errors are those of `getconn`."""
        return Checkout(self, timeout, True)

    def _check_invariants(self) -> None:
        """Raise if an invariant is broken. For tests; needs a pool at rest."""
        self._collect_leaked()
        problems = []
        if self._total < 0 or (self._total > self._max_size and self._idle):
            problems.append("0 <= total <= max_size")
        lent = sum(shelf.lent for shelf in self._shelves)
        if self._idle != sum(shelf.idle for shelf in self._shelves):
            problems.append("idle == sum of the shelves' idle")
        if self._idle + lent + self._connecting != self._total:
            problems.append("idle + lent + connecting == total")
        if len(self._slots) != self._idle + lent:
            problems.append("idle + lent == slots")
        if self._waiting != len(self._queue):
            problems.append("waiting == length of the queue")
        if self._waiting and self._idle:
            problems.append("somebody waits although a connection is idle")
        if problems:
            raise RuntimeError(f"bug: {self._snapshot()} breaks: {'; '.join(problems)}")


__all__ = [
    "CANCELLED",
    "FAILED",
    "GRANTED",
    "WAITING",
    "Checkout",
    "Opening",
    "PoolCore",
    "Shelf",
    "Slot",
    "Times",
    "Waiter",
    "WaiterQueue",
    "is_compiled",
]
