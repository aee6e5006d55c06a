"""Which idle connection is lent, and who gets one that is returned or new.

Decides: of the node with the fewest lent, the one returned last; the waiter that came first, never
a newcomer; whether one that was idle for long has to be looked at before.

Never: looks. The shell does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import monotonic
    from .closing import _IDLE, _REBALANCE, REASONS, PoolClosing
    from .openings import Opening
    from .slots import Shelf, Slot
    from .waiters import Waiter


@cython.cclass
class PoolLending(PoolClosing):
    __slots__ = ("_fresh_for", "_lifo", "_turn")

    _fresh_for: cython.double  # how long an idle connection may be lent without a look at it
    _lifo: cython.bint
    _turn: cython.Py_ssize_t  # the shelf at which the search for the next connection starts

    def _start_empty(self) -> None:
        PoolClosing._start_empty(self)
        self._turn = 0

    @cython.cfunc
    def _take(self) -> Slot:
        """Take an idle connection off its shelf, or None. Waiters present imply that none is."""
        with self._guard:
            self._requests_num += 1
            if self._idle == 0 or self._closing:
                return None  # type: ignore[return-value]
            return self._pick()

    @cython.cfunc
    def _uncount_request(self) -> object:
        """What is asked for next is for a request that has been counted."""
        with self._guard:
            self._requests_num -= 1
        return None

    @cython.cfunc
    @cython.inline
    def _pick(self) -> Slot:
        """Lend the idle connection whose turn it is; there is one. Caller holds the section."""
        shelves: tuple = self._shelves  # type: ignore[type-arg]
        shelf: Shelf
        best: Shelf = None  # type: ignore[assignment]
        count: cython.Py_ssize_t = len(shelves)
        left: cython.Py_ssize_t = count
        at: cython.Py_ssize_t = self._turn
        # Fewest lent; among equals each in turn, so that requests which do not overlap are spread
        # as well.
        while left > 0:
            left -= 1
            if at >= count:
                at = 0
            shelf = shelves[at]
            at += 1
            if shelf._idle and (best is None or shelf._lent < best._lent):
                best = shelf
                self._turn = at
                if best._lent == 0:
                    break
        return self._unshelve(best, None)

    @cython.cfunc
    @cython.inline
    def _unshelve(self, shelf: Shelf, above: Slot | None) -> Slot:
        """Lend the top slot of the shelf, or the one below `above`. Caller holds the section."""
        slot: Slot
        if above is None:
            slot = shelf._top
            shelf._top = slot._below
        else:
            slot = above._below
            above._below = slot._below
        if shelf._bottom is slot:
            shelf._bottom = above  # type: ignore[assignment]
        slot._below = None  # type: ignore[assignment]
        shelf._idle -= 1
        self._idle -= 1
        shelf._lent += 1
        slot._lent = True
        return slot

    @cython.cfunc
    def _is_fit(self, slot: Slot, now: cython.double) -> cython.bint:
        """Look at a connection that is about to be lent, and close it if it is not to be."""
        fit: cython.bint = False
        cause: object = "lost"
        try:
            reason: cython.int = self._unfit(slot, now)
            if reason == 0 and now - slot._idle_since >= self._max_idle:
                reason = _IDLE if self._total > self._min_size else 0
            if reason:
                cause = REASONS[reason]
            else:
                fit = self._is_alive(slot._conn)
                if not fit:
                    # What ended this one may have ended its siblings.
                    slot._shelf._suspect_since = monotonic()
        finally:
            if not fit:
                self._retire(slot, slot._conn, cause)
        return fit

    @cython.cfunc
    def _give(self, slot: Slot, conn: object, idle_since: cython.double) -> object:
        """Pass a lent connection on. None if it was; else why it has to be closed.

        `idle_since`: when it was used last, if not now."""
        waiter: Waiter
        reason: cython.int
        now: cython.double = monotonic()
        with self._guard:
            if slot._lent_at:
                self._last_return = now
                self._uses._add(now - slot._lent_at)
                slot._lent_at = 0.0
            reason = self._unfit(slot, now)
            if reason == 0 and slot._shelf._sheds and not self._closing:
                slot._shelf._sheds = False
                reason = _REBALANCE
            if reason == 0:
                slot._conn = conn
                if not self._waiting:
                    self._shelve(slot, idle_since or now)
                    return None
                waiter = self._grant(slot)
        if reason:
            return REASONS[reason]
        waiter._wake()  # type: ignore[operator]
        return None

    @cython.cfunc
    def _grant(self, slot: Slot) -> Waiter:
        """Hand a lent slot to the first waiter, who is to be woken. Caller holds the section."""
        waiter: Waiter = self._queue.grant(slot)
        self._left(waiter)
        return waiter

    @cython.cfunc
    @cython.inline
    def _shelve(self, slot: Slot, now: cython.double) -> object:
        """Make a lent slot idle. Caller holds the section."""
        shelf: Shelf = slot._shelf
        slot._idle_since = now
        slot._lent = False
        if shelf._top is None:
            shelf._top = shelf._bottom = slot
        elif self._lifo:
            slot._below = shelf._top
            shelf._top = slot
        else:
            shelf._bottom._below = slot
            shelf._bottom = slot
        shelf._idle += 1
        shelf._lent -= 1
        self._idle += 1
        return None

    @cython.cfunc
    def _pass(self, slot: Slot) -> object:
        """Pass a lent connection on that the caller was not to have after all."""
        conn: object = slot._conn
        reason = self._give(slot, conn, 0.0)
        if reason is not None:
            self._retire(slot, conn, reason)
        return None

    def _opened(
        self, opening: Opening, conn: Any, key: str, label: str, retire_at: cython.double
    ) -> Opening | None:
        """Take a new connection, of the node `key`, into the pool: the first waiter gets it.

        Return what has to be opened next.
        """
        spare: Opening
        slot: Slot = None  # type: ignore[assignment]
        following: Opening
        given_up: cython.bint
        try:
            spare = Opening()
            slot = Slot(self._leaked, conn, self._shelf(key, label), retire_at)
            conn._pool = None
            conn._ybsmart_slot = slot
            with self._guard:
                # First, because nothing else in here can fail.
                self._slots.add(slot)
                given_up = opening._over
                if not given_up:
                    self._finish(opening)
                    slot._lent = True
                    slot._shelf._lent += 1
                    # After an outage a few at a time, and each success allows for more.
                    self._connect_after = 0.0
                    self._connect_limit *= 2
                    if self._connect_limit > self._max_connecting:
                        self._connect_limit = self._max_connecting
        except BaseException as exc:
            with self._guard:
                self._slots.discard(slot)  # added, if only the set could not grow
            self._begin(self._opening_failed(opening, exc, 0.0, True))
            raise
        if given_up:
            slot._retired = True
            with self._guard:
                self._slots.discard(slot)
            try:
                self._close_conn(conn, "closed")
            finally:
                self._notify("remove", conn, "closed")
                self._report()
            return None
        slot._conn = conn
        self._pass(slot)
        with self._guard:
            following = self._next_opening(spare)
        try:
            self._begin_all()
            self._report()
        except BaseException:
            self._begin(following)
            raise
        return following

    @cython.cfunc
    def _shelf(self, key: str, label: str) -> Shelf:
        """The shelf of a node, made when its first connection comes."""
        fresh: Shelf = Shelf(key, label)
        shelf: Shelf
        while True:
            with self._guard:
                shelves = self._shelves
            for shelf in shelves:
                if shelf._key == key:
                    return shelf
            more = (*shelves, fresh)
            with self._guard:
                # Made outside and published here, unless somebody else was quicker.
                if self._shelves is shelves:
                    self._shelves = more
                    return fresh
