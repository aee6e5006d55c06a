"""Loans: a connection into its holder's hands, and back once.

Decides: whose a connection is; that it is claimed from its holder once; whether what comes back is
fit for the next one.

Never: checks, cleans or closes. The shell does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import get_ident, monotonic, which_process
    from .slots import Slot
    from .sweeping import PoolSweeping


@cython.cclass
class PoolLoans(PoolSweeping):
    __slots__ = ()

    @cython.cfunc
    def _lend_vetted(self, timeout: object) -> object:
        """Lend the first connection that passes the user's check."""
        started: cython.double = monotonic()
        left: object = timeout
        failures: cython.Py_ssize_t = 0
        slot: Slot
        conn: Any
        passed: cython.bint
        ours: cython.bint
        loan: cython.longlong
        while True:
            slot = self._find(left)
            conn = self._lend(slot, False, False)
            passed = False
            loan = slot._loan
            try:
                passed = self._vet(conn)
            finally:
                # Unless the check has returned it, by `close` of a pool with `close_returns`: then
                # it is somebody else's to have.
                ours = slot._holder != 0 and slot._loan == loan
                if not ours:
                    passed = False
                elif not passed:
                    conn._pool = None
                    self._retire(slot, conn, "check")
            if passed:
                return conn
            left = self._pause(timeout, started, failures)
            failures += 1
            self._uncount_request()

    @cython.cfunc
    def _lend(self, slot: Slot, as_it_is: cython.bint, in_block: cython.bint) -> object:
        """Hand the connection itself to the caller, who alone has the slot. `as_it_is`: it need
        not be restored, because the shell is the caller. `in_block`: only a `Checkout` is to return
        it."""
        conn: object = slot._conn
        slot._conn = None
        slot._loan += 1
        try:
            if slot._altered and not as_it_is:
                self._restore(conn)
            conn._pool = self  # type: ignore[attr-defined]
            if self._tracing:
                self._trace(slot)
            if self._notifies_acquire:
                self._notify("acquire", conn, None)
        except BaseException:
            self._retire(slot, conn, "error")
            raise
        slot._in_block = in_block
        # Not before: a listener has nothing to return.
        slot._holder = get_ident()
        return conn

    @cython.cfunc
    def _claim(self, slot: Slot, conn: object, loan: cython.longlong) -> cython.bint:
        """Take a connection out of its holder's hands, once; an error if this is not its present
        loan. 0 is any that is not a block's, as only the block knows its number. False: its place
        has been given away, because the holder had dropped it."""
        dropped: cython.bint
        with self._guard:
            if slot._holder and (slot._loan == loan if loan else not slot._in_block):
                slot._holder = 0
                return True
            dropped = slot._was_dropped
            slot._was_dropped = False
        if not dropped:
            raise self._not_lent(conn)
        return False

    @cython.cfunc
    def _return(
        self, slot: Slot, conn: Any, is_idle: cython.bint, discard: cython.bint, error: object
    ) -> object:
        """Take a claimed connection back. `is_idle`: the caller has just seen that it is; `error`:
        what the block ended with that it was lent to."""
        fit: cython.bint = False
        reason: object = "error"
        try:
            # First: this one may be among them, returned by a finaliser after all.
            if self._leaked:
                self._collect_leaked()
            conn._pool = None
            if self._tracing:
                self._untrace(slot)
            if error is not None:
                self._failed_with(conn, error)
            if discard:
                reason = "discard"
            elif (is_idle or self._is_idle(slot)) and not self._cleaning:
                fit = True
            else:
                fit = self._clean(conn)
            if self._notifies_release:
                self._notify("release", conn, error)
                # The listeners have had the connection in their hands.
                fit = fit and self._is_idle(slot)
        finally:
            if fit:
                reason = self._give(slot, conn, 0.0)
            else:
                self._end_use(slot)
            if reason is not None:
                self._retire(slot, conn, reason)
        return None

    @cython.cfunc
    def _end_use(self, slot: Slot) -> object:
        now: cython.double = monotonic()
        with self._guard:
            if slot._lent_at:
                self._uses._add(now - slot._lent_at)
                slot._lent_at = 0.0
        return None

    @cython.cfunc
    def _slot_of(self, conn: Any) -> Slot:
        """The slot of a connection of this pool; an error for any other."""
        if self._process != which_process():  # `_notice_fork`, without a call
            self._forked()
        slot: object = None
        try:
            slot = conn._ybsmart_slot
        except AttributeError:
            pass
        if isinstance(slot, Slot):
            mine: Slot = slot
            if mine._lost is self._leaked:
                return mine
        raise self._not_lent(conn)

    @cython.cfunc
    @cython.inline
    def _is_idle(self, slot: Slot) -> cython.bint:
        """Whether the connection is in order and in no transaction, which it knows by itself."""
        status: cython.int = slot._pgconn.transaction_status  # type: ignore[attr-defined]
        return status == self._idle_status
