"""The state of a pool: which connections are idle or lent, who waits, what has to be opened.

Decides: which idle connection is lent (of the node with the fewest in use, the one returned last),
who gets a connection that is returned or new (the waiter that came first, never a newcomer), and
when another must be opened. It does so in critical sections that are over in a few dozen
machine instructions.

Never: connects, closes, sleeps, logs, raises an error of the package's own. What has to be done
about a decision is done by the subclass, through the hooks at the end of `PoolCore`, and outside
every critical section: inside one, nothing allocates what the garbage collector tracks, runs
Python code or lets go of the last reference to anything, because each of these may run a finaliser
that comes back here.

An exception may be delivered to a thread between any two bytecodes. Compiled, the methods here
have none, so a connection is at any instant either in the books or in the caller's hands.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython

    from ._shim import monotonic
else:
    from ybsmart._core import _shim as cython
    from ybsmart._core._shim import monotonic


WAITING = "waiting"
GRANTED = "granted"
FAILED = "failed"
CANCELLED = "cancelled"


def is_compiled() -> bool:
    return cython.compiled


@cython.final
@cython.cclass
class Waiter:
    """One place in the queue.

    `parked_on` is what the waiter sleeps on, `wake` what whoever settles it calls afterwards, and
    once only. Both are the shell's.
    """

    __slots__ = ("_in_queue", "_next", "_outcome", "_parked_on", "_previous", "_state", "_wake")

    _wake: object
    _parked_on: object
    _state: str
    _outcome: object
    _in_queue: cython.bint
    _previous: Waiter
    _next: Waiter

    def __init__(self, wake: Callable[[], object], parked_on: object = None) -> None:
        self._wake = wake
        self._parked_on = parked_on
        self._state = WAITING
        self._outcome = None
        self._in_queue = False
        self._previous = None  # type: ignore[assignment]
        self._next = None  # type: ignore[assignment]

    @property
    def wake(self) -> Callable[[], object]:
        return self._wake  # type: ignore[return-value]

    @property
    def parked_on(self) -> Any:
        return self._parked_on

    @property
    def state(self) -> str:
        """WAITING until settled, then GRANTED, FAILED or CANCELLED for good."""
        return self._state

    @property
    def outcome(self) -> Any:
        """What was granted, or the error it failed with."""
        return self._outcome

    def __repr__(self) -> str:
        return f"<Waiter {self._state}>"


@cython.final
@cython.cclass
class WaiterQueue:
    """Waiters in order of arrival; each operation costs the same at any length.

    It has no guard of its own. The owner calls it within the owner's critical section, and nothing
    here allocates or runs Python code.
    """

    __slots__ = ("_first", "_last", "_length")

    _first: Waiter
    _last: Waiter
    _length: cython.Py_ssize_t

    def __init__(self) -> None:
        self._first = None  # type: ignore[assignment]
        self._last = None  # type: ignore[assignment]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @cython.ccall
    def append(self, waiter: Waiter) -> object:
        """Queue a new waiter behind all others."""
        if waiter._in_queue or waiter._state is not WAITING:
            raise RuntimeError(f"bug: {waiter!r} has been queued before")
        waiter._in_queue = True
        waiter._previous = self._last
        if self._last is None:
            self._first = waiter
        else:
            self._last._next = waiter
        self._last = waiter
        self._length += 1
        return None

    @cython.ccall
    def grant(self, what: object) -> Waiter:
        """Hand `what` to the waiter that came first; return it, to be woken. None: nobody waits."""
        waiter: Waiter = self._first
        if waiter is not None:
            self._settle(waiter, GRANTED, what)
        return waiter

    @cython.ccall
    def fail(self, waiter: Waiter, error: object) -> cython.bint:
        """End the wait with an error. False, and nothing changes, if it has ended already."""
        if not waiter._in_queue:
            return False
        self._settle(waiter, FAILED, error)
        return True

    @cython.ccall
    def cancel(self, waiter: Waiter) -> cython.bint:
        """Leave the queue. False, and nothing changes, if the wait has ended already: then the
        outcome is the waiter's, and a granted one must be passed on."""
        if not waiter._in_queue:
            return False
        self._settle(waiter, CANCELLED, None)
        return True

    @cython.ccall
    def first(self) -> Waiter:
        """The waiter that is next; it stays in the queue."""
        return self._first

    @cython.cfunc
    def _settle(self, waiter: Waiter, state: str, outcome: object) -> object:
        previous: Waiter = waiter._previous
        following: Waiter = waiter._next
        if previous is None:
            self._first = following
        else:
            previous._next = following
        if following is None:
            self._last = previous
        else:
            following._previous = previous
        waiter._previous = None  # type: ignore[assignment]
        waiter._next = None  # type: ignore[assignment]
        waiter._in_queue = False
        waiter._outcome = outcome
        waiter._state = state
        self._length -= 1
        return None

    def __iter__(self) -> Iterator[Waiter]:
        """From the first to the last, of a queue at rest."""
        waiter: Waiter = self._first
        while waiter is not None:
            yield waiter
            waiter = waiter._next

    def __repr__(self) -> str:
        return f"<WaiterQueue length={self._length}>"


@cython.final
@cython.cclass
class Shelf:
    """The connections of one node: a stack of idle ones, and how many are lent."""

    __slots__ = ("_idle", "_key", "_lent", "_suspect_since", "_top")

    _key: str
    _top: Slot
    _idle: cython.Py_ssize_t
    _lent: cython.Py_ssize_t
    _suspect_since: cython.double

    def __init__(self, key: str) -> None:
        self._key = key
        self._top = None  # type: ignore[assignment]
        self._idle = 0
        self._lent = 0
        self._suspect_since = 0.0

    @property
    def key(self) -> str:
        """The node's identity, as the shell gave it."""
        return self._key

    @property
    def idle(self) -> int:
        return self._idle

    @property
    def lent(self) -> int:
        return self._lent

    def __repr__(self) -> str:
        return f"<Shelf {self._key} idle={self._idle} lent={self._lent}>"


@cython.final
@cython.cclass
class Slot:
    """One physical connection's place in the pool, for as long as it is open.

    It refers to the connection only while the pool has it: a lent connection that is dropped by
    its holder is collected, and the slot learns of it.
    """

    __slots__ = (
        "_below",
        "_conn",
        "_idle_since",
        "_lent",
        "_pgconn",
        "_pool",
        "_retired",
        "_shelf",
        "_watch",
    )

    _pool: PoolCore
    _shelf: Shelf
    _conn: object
    _pgconn: object
    _watch: object
    _below: Slot
    _idle_since: cython.double
    _lent: cython.bint
    _retired: cython.bint

    def __init__(self, pool: PoolCore, conn: Any, shelf: Shelf) -> None:
        self._pool = pool
        self._shelf = shelf
        self._conn = conn
        self._pgconn = conn.pgconn
        self._watch = weakref.ref(conn, self._dropped)
        self._below = None  # type: ignore[assignment]
        self._idle_since = 0.0
        self._lent = False
        self._retired = False

    @property
    def shelf(self) -> Shelf:
        return self._shelf

    def _dropped(self, _: object) -> None:
        # Called by the garbage collector, so possibly inside a critical section of this very
        # thread: leave a note and return.
        if self._lent and not self._retired:
            self._pool._leaked.append(self)

    def __repr__(self) -> str:
        state = "retired" if self._retired else "lent" if self._lent else "idle"
        return f"<Slot {state} on {self._shelf.key}>"


@cython.final
@cython.cclass
class Opening:
    """A connection being opened: it counts as a connection, and has, at first, a requester."""

    __slots__ = ("_next", "_over", "_owner")

    _owner: Waiter
    _next: Opening
    _over: cython.bint

    def __init__(self) -> None:
        self._over = False
        self._owner = None  # type: ignore[assignment]
        self._next = None  # type: ignore[assignment]

    @property
    def owner(self) -> Waiter | None:
        """Who is told if it fails. None when nobody in the queue depends on it."""
        return self._owner


@cython.final
@cython.cclass
class Checkout:
    """`with` block around one lent connection; what `ConnectionPool.connection` returns."""

    __slots__ = ("_conn", "_pool", "_settle", "_timeout")

    _pool: PoolCore
    _timeout: Any
    _settle: cython.bint
    _conn: object

    def __init__(self, pool: PoolCore, timeout: Any, settle: cython.bint) -> None:
        """`settle`: commit or roll back at the end, as a psycopg connection's own block does."""
        self._pool = pool
        self._timeout = timeout
        self._settle = settle
        self._conn = None

    def __enter__(self) -> Any:
        if self._conn is not None:
            raise RuntimeError("this block has been entered already: call connection() for each")
        self._conn = self._pool.getconn(self._timeout)
        return self._conn

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        conn: Any = self._conn
        self._conn = None
        try:
            if self._settle and not self._pool._is_idle(conn.pgconn):
                conn.__exit__(exc_type, exc, traceback)
        finally:
            self._pool.putconn(conn)


@cython.cclass
class PoolCore:
    """State and fast path of a pool. Subclassed by the shell, which supplies the hooks.

    Guarded by its own critical section: all attributes below, those of its shelves and slots, and
    the queue. "Caller holds the section" marks the helpers that rely on it.
    """

    __slots__ = (
        "_check_after",
        "_closing",
        "_connecting",
        "_guard",
        "_idle",
        "_idle_status",
        "_leaked",
        "_lent",
        "_max_connecting",
        "_max_size",
        "_openings",
        "_queue",
        "_shelves",
        "_total",
        "_turn",
        "_waiting",
    )

    _guard: object
    _queue: WaiterQueue
    _waiting: cython.Py_ssize_t  # the queue's length, as an integer that the fast path can read
    _shelves: tuple  # type: ignore[type-arg]
    _openings: Opening  # those under way, linked
    _turn: cython.Py_ssize_t  # the shelf at which the search for the next connection starts
    _idle: cython.Py_ssize_t
    _lent: cython.Py_ssize_t
    _connecting: cython.Py_ssize_t
    _total: cython.Py_ssize_t  # idle, lent, connecting, and closing until closed
    _max_size: cython.Py_ssize_t
    _max_connecting: cython.Py_ssize_t
    _check_after: cython.double
    _closing: cython.bint
    _idle_status: cython.int
    _leaked: deque[Slot]

    def __init__(
        self,
        max_size: cython.Py_ssize_t,
        max_connecting: cython.Py_ssize_t,
        check_after: cython.double,
        idle_status: cython.int,
    ) -> None:
        """`idle_status`: what `conn.pgconn.transaction_status` is when nothing is open.
        `check_after`: seconds of idleness after which `_is_alive` is asked before lending."""
        if not cython.compiled:
            self._guard = cython.new_guard()
        self._queue = WaiterQueue()
        self._waiting = 0
        self._shelves = ()
        self._openings = None  # type: ignore[assignment]
        self._turn = 0
        self._idle = 0
        self._lent = 0
        self._connecting = 0
        self._total = 0
        self._max_size = max_size
        self._max_connecting = max_connecting
        self._check_after = check_after
        self._closing = False
        self._idle_status = idle_status
        self._leaked = deque()

    # What the pool's users call

    def getconn(self, timeout: float | None = None) -> Any:
        slot: Slot = self._take()
        if slot is not None and self._is_stale(slot):
            slot = self._first_alive(slot)
        if slot is None:
            slot = self._queue_up(timeout)
        return self._lend(slot)

    def putconn(self, conn: Any, *, discard: bool = False) -> None:
        slot: Slot = self._slot_of(conn)
        fit: cython.bint = False
        try:
            if not discard:
                fit = self._is_idle(slot._pgconn) or self._clean(conn)
        finally:
            conn._pool = None
            if not (fit and self._give(slot, conn)):
                self._retire(slot, conn)

    def connection(self, timeout: float | None = None) -> Checkout:
        return Checkout(self, timeout, True)

    @property
    def total_count(self) -> int:
        """Connections that exist: idle, lent, being opened, being closed."""
        return self._total

    @property
    def idle_count(self) -> int:
        """Connections ready to be lent."""
        return self._idle

    @property
    def waiting_count(self) -> int:
        """Requests in the queue."""
        return self._waiting

    @property
    def connecting_count(self) -> int:
        """Connections being opened."""
        return self._connecting

    # The fast path

    @cython.cfunc
    def _take(self) -> Slot:
        """Take an idle connection off its shelf, or None. Waiters present imply that none is."""
        shelf: Shelf
        best: Shelf
        slot: Slot
        count: cython.Py_ssize_t
        at: cython.Py_ssize_t
        with cython.critical_section(self):
            if self._idle == 0 or self._closing:
                return None  # type: ignore[return-value]
            # Fewest lent; among equals each in turn, so that requests which do not overlap
            # are spread as well.
            best = None  # type: ignore[assignment]
            count = len(self._shelves)
            at = self._turn
            for _ in range(count):
                if at >= count:
                    at = 0
                shelf = self._shelves[at]
                at += 1
                if shelf._idle and (best is None or shelf._lent < best._lent):
                    best = shelf
                    self._turn = at
            slot = best._top
            best._top = slot._below
            slot._below = None  # type: ignore[assignment]
            best._idle -= 1
            self._idle -= 1
            best._lent += 1
            self._lent += 1
            slot._lent = True
        return slot

    @cython.cfunc
    @cython.inline
    def _is_stale(self, slot: Slot) -> cython.bint:
        """Whether it has been idle for long, or since before its node was in trouble."""
        since: cython.double = slot._idle_since
        return since < slot._shelf._suspect_since or monotonic() - since > self._check_after

    @cython.cfunc
    @cython.inline
    def _is_idle(self, pgconn: Any) -> cython.bint:
        """Whether the connection is in order and in no transaction, which it knows by itself."""
        status: cython.int = pgconn.transaction_status
        return status == self._idle_status

    @cython.cfunc
    def _lend(self, slot: Slot) -> object:
        """Hand the connection itself to the caller, who alone has the slot."""
        conn: object = slot._conn
        slot._conn = None
        try:
            conn._pool = self  # type: ignore[attr-defined]
        except BaseException:
            self._retire(slot, conn)
            raise
        return conn

    @cython.cfunc
    def _slot_of(self, conn: Any) -> Slot:
        """The slot of a connection that is lent by this pool; an error for any other."""
        slot: object = getattr(conn, "_ybsmart_slot", None)
        if isinstance(slot, Slot):
            mine: Slot = slot
            if mine._pool is self and mine._lent and not mine._retired:
                return mine
        raise self._not_lent(conn)

    @cython.cfunc
    def _give(self, slot: Slot, conn: object) -> cython.bint:
        """Take a lent connection back and pass it on. False: it is of no more use here."""
        waiter: Waiter = None  # type: ignore[assignment]
        # Read before the section; the idle time starts now whoever comes first.
        slot._idle_since = monotonic()
        with cython.critical_section(self):
            if self._waiting == 0 and self._closing:
                return False
            slot._conn = conn
            if self._waiting == 0:
                self._shelve(slot)
            else:
                waiter = self._grant(slot)
        if waiter is not None:
            waiter._wake()  # type: ignore[operator]
        return True

    @cython.cfunc
    @cython.inline
    def _shelve(self, slot: Slot) -> object:
        """Make a lent slot idle. Caller holds the section."""
        shelf: Shelf = slot._shelf
        slot._lent = False
        slot._below = shelf._top
        shelf._top = slot
        shelf._idle += 1
        shelf._lent -= 1
        self._idle += 1
        self._lent -= 1
        return None

    # The queue

    @cython.cfunc
    def _queue_up(self, timeout: object) -> Slot:
        """Wait, through the hooks, until the waiter is settled."""
        waiter: Waiter = self._new_waiter(timeout)
        try:
            self._begin(self._enqueue(waiter))
            self._sleep(waiter, timeout)
        except BaseException:
            self._abandon(waiter)
            raise
        if waiter._state is FAILED:
            raise waiter._outcome  # type: ignore[misc]
        return waiter._outcome  # type: ignore[return-value]

    @cython.cfunc
    def _enqueue(self, waiter: Waiter) -> Opening:
        """Queue a waiter, or settle it at once. Return what has to be opened on its account."""
        spare: Opening = Opening()
        slot: Slot
        refused: cython.bint
        self._collect_leaked()
        slot = self._take()  # one may have come back since the caller looked
        with cython.critical_section(self):
            refused = self._closing
            if not refused:
                self._queue.append(waiter)
                self._waiting += 1
                if slot is None:
                    return self._next_opening(spare)
        if slot is not None:
            # Goes to the head of the queue like any other: who that is has been decided.
            self._pass(slot)
        if refused:
            raise self._closed_error()
        with cython.critical_section(self):
            return self._next_opening(spare)

    @cython.cfunc
    def _pass(self, slot: Slot) -> object:
        """Pass a lent connection on that the caller was not to have after all."""
        conn: object = slot._conn
        if not self._give(slot, conn):
            self._retire(slot, conn)
        return None

    @cython.cfunc
    def _grant(self, slot: Slot) -> Waiter:
        """Hand a lent slot to the first waiter, to be woken. Caller holds the section."""
        waiter: Waiter = self._queue.grant(slot)
        self._left(waiter)
        return waiter

    def _withdraw(self, waiter: Waiter) -> bool:
        """Leave the queue. False: the wait has been settled already."""
        with cython.critical_section(self):
            if not self._queue.cancel(waiter):
                return False
            self._left(waiter)
        return True

    @cython.cfunc
    def _abandon(self, waiter: Waiter) -> object:
        """Leave the queue for good; a connection that was granted meanwhile goes to the next."""
        if not self._withdraw(waiter) and waiter._state is GRANTED:
            self._pass(waiter._outcome)  # type: ignore[arg-type]
        return None

    def _fail_first(self, error: BaseException) -> bool:
        """Fail the waiter that is next. False: nobody waits."""
        waiter: Waiter
        with cython.critical_section(self):
            waiter = self._queue.first()
            if waiter is None:
                return False
            self._queue.fail(waiter, error)
            self._left(waiter)
        waiter._wake()  # type: ignore[operator]
        return True

    # Opening and closing

    @cython.cfunc
    def _next_opening(self, spare: Opening) -> Opening:
        """Use `spare` for the first waiter nothing is being opened for, if one may be opened.

        As many are opened at a time as there are waiters, and always for those in front. Caller
        holds the section.
        """
        if (
            self._waiting <= self._connecting
            or self._connecting >= self._max_connecting
            or self._total >= self._max_size
        ):
            return None  # type: ignore[return-value]
        self._connecting += 1
        self._total += 1
        self._assign(spare)
        spare._next = self._openings
        self._openings = spare
        return spare

    @cython.cfunc
    def _opening_of(self, waiter: Waiter) -> Opening:
        """The opening whose requester this waiter is, or None. Caller holds the section."""
        opening: Opening = self._openings
        while opening is not None and opening._owner is not waiter:
            opening = opening._next
        return opening

    @cython.cfunc
    def _assign(self, opening: Opening) -> object:
        """Give the opening to the first waiter without one. Caller holds the section."""
        waiter: Waiter = self._queue.first()
        while waiter is not None and self._opening_of(waiter) is not None:
            waiter = waiter._next
        opening._owner = waiter
        return None

    @cython.cfunc
    def _left(self, waiter: Waiter) -> object:
        """A waiter left the queue; the next in line inherits its opening. Caller holds the
        section."""
        opening: Opening
        self._waiting -= 1
        if self._openings is not None:
            opening = self._opening_of(waiter)
            if opening is not None:
                self._assign(opening)
        return None

    @cython.cfunc
    def _finish(self, opening: Opening) -> Waiter:
        """The opening is over; return its requester, if it has one. Caller holds the section."""
        before: Opening = self._openings
        owner: Waiter = opening._owner
        if before is opening:
            self._openings = opening._next
        else:
            while before._next is not opening:
                before = before._next
            before._next = opening._next
        opening._next = None  # type: ignore[assignment]
        opening._owner = None  # type: ignore[assignment]
        opening._over = True
        self._connecting -= 1
        return owner

    @cython.cfunc
    def _begin(self, opening: Opening | None) -> object:
        """Have the shell open it, if there is anything to open."""
        while opening is not None:
            try:
                self._open(opening)
            except Exception as exc:
                # Nobody but the requester is to hear that, say, no thread could be started.
                opening = self._opening_failed(opening, exc)
            except BaseException as exc:
                self._begin(self._opening_failed(opening, exc))
                raise
            else:
                break
        return None

    def _opened(self, opening: Opening, conn: Any, key: str) -> Opening | None:
        """Take a new connection, of the node `key`, into the pool: the first waiter gets it.

        Return what has to be opened next.
        """
        spare: Opening = Opening()
        slot: Slot = Slot(self, conn, self._shelf(key))
        following: Opening
        given_up: cython.bint
        placed: cython.bint
        conn._pool = None
        conn._ybsmart_slot = slot
        with cython.critical_section(self):
            given_up = opening._over
            if not given_up:
                self._finish(opening)
                slot._lent = True
                slot._shelf._lent += 1
                self._lent += 1
        if given_up:
            self._close_conn(conn)
            return None
        placed = self._give(slot, conn)
        with cython.critical_section(self):
            following = self._next_opening(spare)
        if not placed:
            self._retire(slot, conn)
        return following

    def _opening_failed(self, opening: Opening, error: BaseException) -> Opening | None:
        """Free the place; tell the requester, if it still waits. Return what to open next."""
        spare: Opening = Opening()
        owner: Waiter
        following: Opening
        with cython.critical_section(self):
            if opening._over:
                return None
            owner = self._finish(opening)
            self._total -= 1
            if owner is not None:
                self._queue.fail(owner, error)
                self._waiting -= 1
            following = self._next_opening(spare)
        if owner is not None:
            owner._wake()  # type: ignore[operator]
        self._report_closing()
        return following

    @cython.cfunc
    def _retire(self, slot: Slot, conn: object) -> object:
        """Close a lent connection for good. It counts until it is closed."""
        with cython.critical_section(self):
            if slot._retired:
                return None
            slot._retired = True
            slot._conn = None
        try:
            self._close_conn(conn)
        finally:
            self._removed(slot)
        return None

    @cython.cfunc
    def _removed(self, slot: Slot) -> object:
        """A retired connection is closed: its place is free, for the first waiter."""
        spare: Opening = Opening()
        following: Opening
        slot._watch = None  # ends the cycle through its callback
        with cython.critical_section(self):
            self._lent -= 1
            slot._shelf._lent -= 1
            self._total -= 1
            following = self._next_opening(spare)
        self._begin(following)
        self._report_closing()
        return None

    @cython.cfunc
    def _first_alive(self, slot: Slot) -> Slot:
        """The slot if its connection answers for itself, else another idle one that does."""
        while slot is not None and self._is_stale(slot):
            alive: cython.bint = False
            try:
                alive = self._is_alive(slot._conn)
            finally:
                if not alive:
                    # What ended this one may have ended its siblings.
                    slot._shelf._suspect_since = monotonic()
                    self._retire(slot, slot._conn)
            if alive:
                break
            slot = self._take()
        return slot

    def _suspect(self, conn: Any) -> None:
        """Look at every idle connection of this one's node before it is lent again."""
        slot: Any = getattr(conn, "_ybsmart_slot", None)
        if isinstance(slot, Slot):
            mine: Slot = slot
            mine._shelf._suspect_since = monotonic()

    def _retire_idle(self) -> bool:
        """Close one idle connection of a closing pool. False: there is none."""
        slot: Slot = None  # type: ignore[assignment]
        shelf: Shelf
        with cython.critical_section(self):
            if self._closing and self._idle:
                for shelf in self._shelves:
                    if shelf._idle:
                        slot = shelf._top
                        shelf._top = slot._below
                        slot._below = None  # type: ignore[assignment]
                        shelf._idle -= 1
                        shelf._lent += 1
                        self._idle -= 1
                        self._lent += 1
                        slot._lent = True
                        break
        if slot is None:
            return False
        self._retire(slot, slot._conn)
        return True

    def _is_closing(self) -> bool:
        return self._closing

    def _start_closing(self) -> bool:
        """Refuse newcomers from now on. False: it was closing already."""
        with cython.critical_section(self):
            if self._closing:
                return False
            self._closing = True
        return True

    @cython.cfunc
    def _report_closing(self) -> object:
        if self._closing:
            self._closing_progressed()
        return None

    @cython.cfunc
    def _collect_leaked(self) -> object:
        """Free the places of connections that were dropped instead of returned."""
        leaked = self._leaked
        while leaked:
            try:
                slot: Slot = leaked.popleft()
            except IndexError:  # another thread took the last one
                break
            slot._retired = True
            self._removed(slot)
        return None

    @cython.cfunc
    def _shelf(self, key: str) -> Shelf:
        """The shelf of a node, made when its first connection comes."""
        fresh: Shelf = Shelf(key)
        shelf: Shelf
        while True:
            with cython.critical_section(self):
                shelves = self._shelves
            for shelf in shelves:
                if shelf._key == key:
                    return shelf
            more = (*shelves, fresh)
            with cython.critical_section(self):
                # Made outside and published here, unless somebody else was quicker.
                if self._shelves is shelves:
                    self._shelves = more
                    return fresh

    # For tests and reports

    def shelves(self) -> tuple[Shelf, ...]:
        """The shelves, one per node that ever had a connection here."""
        with cython.critical_section(self):
            return self._shelves

    def check(self) -> None:
        """Raise if an invariant is broken. For tests; needs a pool at rest."""
        self._collect_leaked()
        problems = []
        if not 0 <= self._total <= self._max_size:
            problems.append("0 <= total <= max_size")
        if self._idle + self._lent + self._connecting != self._total:
            problems.append("idle + lent + connecting == total")
        if self._idle != sum(shelf.idle for shelf in self._shelves):
            problems.append("idle == sum of the shelves' idle")
        if self._lent != sum(shelf.lent for shelf in self._shelves):
            problems.append("lent == sum of the shelves' lent")
        if self._waiting != len(self._queue):
            problems.append("waiting == length of the queue")
        if self._waiting and self._idle:
            problems.append("somebody waits although a connection is idle")
        if problems:
            raise RuntimeError(f"bug: {self.snapshot()} breaks: {'; '.join(problems)}")

    def snapshot(self) -> dict[str, Any]:
        """The numbers, for tests and messages; exact only of a pool at rest."""
        return {
            "total": self._total,
            "idle": self._idle,
            "lent": self._lent,
            "connecting": self._connecting,
            "waiting": self._waiting,
            "closing": self._closing,
            "shelves": {shelf.key: (shelf.idle, shelf.lent) for shelf in self._shelves},
        }

    # Hooks: what the shell does about the decisions. Never called inside a critical section.

    def _new_waiter(self, timeout: Any) -> Waiter:
        """Make a waiter, with something to sleep on; raise if there is to be no waiting at all."""
        raise NotImplementedError

    def _sleep(self, waiter: Waiter, timeout: Any) -> None:
        """Sleep until the waiter is settled, or `_withdraw` it and raise."""
        raise NotImplementedError

    def _open(self, opening: Any) -> None:
        """Start to open a connection; `_opened` or `_opening_failed` must follow, and soon."""
        raise NotImplementedError

    def _is_alive(self, conn: Any) -> bool:
        """Whether an idle connection still has its server, as far as its socket knows."""
        raise NotImplementedError

    def _clean(self, conn: Any) -> bool:
        """Make a returned connection fit for the next user. False: close it instead."""
        raise NotImplementedError

    def _close_conn(self, conn: Any) -> None:
        """Close a connection; errors are the hook's to deal with."""
        raise NotImplementedError

    def _closing_progressed(self) -> None:
        """A closing pool has lost a connection, or ended an attempt to open one."""
        raise NotImplementedError

    def _not_lent(self, conn: Any) -> Exception:
        """The error for a connection that is not on loan from here."""
        raise NotImplementedError

    def _closed_error(self) -> Exception:
        """The error for a request to a closing pool."""
        raise NotImplementedError
