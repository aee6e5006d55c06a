"""When a connection has served long enough, and how its place is freed.

Decides: why a connection is not lent again; that its place is free once it is closed, and once its
holder has dropped it.

Never: closes one. The shell does.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from .openings import Opening, PoolOpenings
    from .slots import Slot

# Why a connection is closed, as indices: what `_unfit` finds, and more.
REASONS = (
    "", "closed", "lifetime", "uses", "resize", "idle", "rebalance", "evict", "drain", "silent"
)  # fmt: skip
_CLOSED, _LIFETIME, _USES, _RESIZE, _IDLE, _REBALANCE, _EVICT = 1, 2, 3, 4, 5, 6, 7


@cython.cclass
class PoolClosing(PoolOpenings):
    __slots__ = ()

    @cython.cfunc
    def _unfit(self, slot: Slot, now: cython.double) -> cython.int:
        """Why a slot is not to be lent again, as an index into REASONS; 0 if it is. Caller holds
        the section, or the slot alone."""
        if self._closing and self._waiting == 0:
            return _CLOSED
        if now >= slot._retire_at:
            return _LIFETIME
        if slot._loan >= self._max_uses:
            return _USES
        if slot._generation != slot._shelf._generation:
            return slot._shelf._evicted_as or _EVICT
        if self._total > self._max_size:
            return _RESIZE
        return 0

    @cython.cfunc
    def _retire(self, slot: Slot, conn: object, reason: object) -> object:
        """Close a lent connection for good. It counts until it is closed."""
        with self._guard:
            if slot._retired:
                return None
            slot._retired = True
            slot._holder = 0
            slot._conn = None
        try:
            self._close_conn(conn, reason)
        finally:
            try:
                if not self._removed(slot) and reason == "rebalance":
                    self._replace()
            finally:
                self._notify("remove", conn, reason)
                self._report()
        return None

    @cython.cfunc
    def _removed(self, slot: Slot) -> cython.bint:
        """A retired connection is closed: its place is free, for the first waiter. Whether that
        has something opened."""
        spare: Opening
        following: Opening
        slot._unwatch()
        with self._guard:
            self._slots.discard(slot)
            slot._shelf._lent -= 1
            self._total -= 1
        spare = Opening()  # may fail: the place is free all the same
        with self._guard:
            following = self._next_opening(spare)
        self._begin(following)
        self._see_to_retry()
        return following is not None

    @cython.cfunc
    def _collect_leaked(self) -> object:
        """Free the places of connections that were dropped instead of returned."""
        self._notice_fork()
        leaked = self._leaked
        while leaked:
            try:
                slot: Slot = leaked.popleft()
            except IndexError:  # another thread took the last one
                break
            with self._guard:
                lost: cython.bint = slot._holder != 0
                slot._holder = 0
                if lost:
                    slot._retired = slot._was_dropped = True
                else:
                    # A finaliser has returned it after all. It is not watched any more, so it is
                    # not lent again.
                    slot._generation = -1
            if not lost:
                continue
            # Mostly the last reference, which ends the session before another takes its place.
            slot._pgconn = None
            try:
                self._removed(slot)
            finally:
                self._lost_one(slot)
                self._report()
        return None

    def _start_closing(self) -> bool:
        """Refuse newcomers from now on. False: it was closing already."""
        self._collect_leaked()
        with self._guard:
            if self._closing:
                return False
            self._closing = True
        return True
