"""The block around a loan.

Decides: that what the block was lent is returned at its end, whatever ended it, unless somebody
else has returned it meanwhile.

Never: commits or rolls back. The connection does. An exception may be delivered between any two
bytecodes; compiled, the methods here have none.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from .loans import PoolLoans
    from .slots import Slot


@cython.final
@cython.freelist(8)
@cython.cclass
class Checkout:
    """`with` block around one lent connection; what `ConnectionPool.connection` returns."""

    __slots__ = ("_conn", "_ends_transaction", "_loan", "_pool", "_slot", "_timeout")

    _pool: PoolLoans
    _timeout: object
    _ends_transaction: cython.bint
    _conn: object
    _slot: Slot
    _loan: cython.longlong

    def __init__(self, pool: PoolLoans, timeout: object, ends_transaction: cython.bint) -> None:
        """`ends_transaction`: by committing or rolling back, as a psycopg connection's own block
        does. If not, the block is the shell's own, and gets a connection that it has altered as it
        is."""
        self._pool = pool
        self._timeout = timeout
        self._ends_transaction = ends_transaction
        self._conn = None
        self._slot = None  # type: ignore[assignment]
        self._loan = 0

    def __enter__(self) -> Any:
        if self._conn is not None:
            raise RuntimeError("this block has been entered already: call connection() for each")
        pool: PoolLoans = self._pool
        slot: Slot
        conn: object
        if pool._vetting:
            conn = pool._lend_vetted(self._timeout)
            slot = pool._slot_of(conn)
            slot._in_block = True  # not before the check, which may return it
        else:
            slot = pool._find(self._timeout)
            conn = pool._lend(slot, not self._ends_transaction, True)
        self._slot = slot
        self._loan = slot._loan
        self._conn = conn
        return conn

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        pool: PoolLoans = self._pool
        slot: Slot = self._slot
        conn: Any = self._conn
        self._conn = None
        pool._notice_fork()
        if slot is None or slot._loan != self._loan or not slot._holder:
            # Somebody else's by now, or the parent process's, or nobody's: leave it alone.
            raise pool._not_lent(conn)
        error: object = exc
        idle: cython.bint = False
        try:
            idle = pool._is_idle(slot)
            if self._ends_transaction and not idle:
                conn.__exit__(exc_type, exc, traceback)
                idle = pool._is_idle(slot)
        except BaseException as failure:
            error = failure
            raise
        finally:
            if pool._claim(slot, conn, self._loan):
                pool._return(slot, conn, idle, False, error)
            error = None  # uncompiled, this frame is in its traceback
