"""Idle connections that are closed without anybody asking for one.

Decides: which are due by the clock, which go with a node that is evicted, and which one leaves a
node that has too many.

Never: looks at one or closes it. The shell does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import monotonic
    from .closing import _IDLE, REASONS
    from .queueing import PoolQueueing
    from .slots import Shelf, Slot


@cython.cclass
class PoolSweeping(PoolQueueing):
    __slots__ = ()

    def _suspect(self, conn: Any) -> None:
        """Look at every idle connection of this one's node before it is lent again."""
        slot: Any = getattr(conn, "_ybsmart_slot", None)
        if isinstance(slot, Slot):
            mine: Slot = slot
            mine._shelf._suspect_since = monotonic()

    def _evict_siblings(self, conn: Any) -> None:
        """Close all connections of this one's node, itself included, as `_evict` does."""
        slot: Any = getattr(conn, "_ybsmart_slot", None)
        if isinstance(slot, Slot):
            mine: Slot = slot
            self._evict(mine._shelf._key, "evict")

    def _evict(self, key: str | None, reason: str) -> None:
        """Close all connections, or those of one node: the idle ones now, the others when they are
        returned. `reason`: "evict", "drain" or "silent"; the last one holds."""
        shelf: Shelf
        evicted_as: cython.int = REASONS.index(reason)
        for shelf in self._list_shelves():
            if key is None or shelf._key == key:
                with self._guard:
                    shelf._generation += 1
                    shelf._evicted_as = evicted_as
        self._sweep()

    def _shed(self, key: str | None) -> None:
        """Close one connection of that node and open another in its stead: the one that has been
        idle the longest, or else the next one that is returned. None: no node is to lose any."""
        shelf: Shelf
        slot: Slot = None  # type: ignore[assignment]
        for shelf in self._list_shelves():
            with self._guard:
                shelf._sheds = False
                if key is not None and shelf._key == key and not self._closing:
                    slot = self._longest_idle(shelf)
                    shelf._sheds = slot is None
        if slot is not None:
            self._retire(slot, slot._conn, "rebalance")

    def _sweep(self) -> int:
        """Close the idle connections that have been there long enough, the oldest first.

        Return how many.
        """
        closed: cython.Py_ssize_t = 0
        slot: Slot
        reason: cython.int
        self._collect_leaked()
        while True:
            with self._guard:
                slot = self._oldest_unfit(monotonic())
                reason = 0
                if slot is not None:
                    reason = self._unfit(slot, monotonic()) or _IDLE
            if slot is None:
                return closed
            self._retire(slot, slot._conn, REASONS[reason])
            closed += 1

    @cython.cfunc
    def _oldest_unfit(self, now: cython.double) -> Slot:
        """Lend the idle slot that is to be closed next, or None. Caller holds the section."""
        shelf: Shelf
        slot: Slot
        above: Slot
        oldest: Slot = None  # type: ignore[assignment]
        over: Slot = None  # type: ignore[assignment]
        i: cython.Py_ssize_t
        spare: cython.bint = self._total > self._min_size
        for i in range(len(self._shelves)):
            shelf = self._shelves[i]
            above = None  # type: ignore[assignment]
            slot = shelf._top
            while slot is not None:
                if (
                    self._unfit(slot, now) or (spare and now - slot._idle_since >= self._max_idle)
                ) and (oldest is None or slot._idle_since < oldest._idle_since):
                    oldest, over = slot, above
                above = slot
                slot = slot._below
        if oldest is None:
            return None
        return self._unshelve(oldest._shelf, over)

    def _inspect(self, thorough: bool) -> None:
        """Have the shell look at all idle connections, one at a time; close those that fail.

        Each goes back to its place in the order, and has been idle for as long as before.
        """
        shelf: Shelf
        slot: Slot
        fit: cython.bint
        reason: object
        for shelf in self._list_shelves():
            for _ in range(shelf._idle):
                with self._guard:
                    slot = self._longest_idle(shelf)
                if slot is None:
                    break
                conn: object = slot._conn
                fit = False
                reason = "check" if thorough else "lost"
                try:
                    fit = self._passes(conn, thorough)
                finally:
                    if fit:
                        reason = self._give(slot, conn, slot._idle_since)
                    else:
                        shelf._suspect_since = monotonic()
                    if reason is not None:
                        self._retire(slot, conn, reason)
                conn = None

    @cython.cfunc
    def _longest_idle(self, shelf: Shelf) -> Slot:
        """Lend the slot at the far end of where returned ones are put, or None. Taking all of them
        and putting each back leaves the order as it is. Caller holds the section."""
        above: Slot = None  # type: ignore[assignment]
        slot: Slot = shelf._top
        if slot is None:
            return None
        if self._lifo:
            while slot._below is not None:
                above = slot
                slot = slot._below
        return self._unshelve(shelf, above)

    def _idle_conns(self) -> list[Any]:
        """The idle connections, for a look from afar: they may be lent at any moment."""
        conns: list[Any] = [None] * (self._idle + 8)
        shelf: Shelf
        slot: Slot
        i: cython.Py_ssize_t
        number: cython.Py_ssize_t = 0
        with self._guard:
            for i in range(len(self._shelves)):
                shelf = self._shelves[i]
                slot = shelf._top
                while slot is not None and number < len(conns):
                    conns[number] = slot._conn
                    slot = slot._below
                    number += 1
        return conns[:number]
