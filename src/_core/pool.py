"""The state of a pool: which connections are idle or lent, who waits, what has to be opened.

Decides: which idle connection is lent (of the node with the fewest in use, the one returned last),
who gets a connection that is returned or new (the waiter that came first, never a newcomer), when
another must be opened, and when one has served long enough. It does so in critical sections that
are over in a few dozen machine instructions.

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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import cython

    from ._shim import get_ident, monotonic
else:
    from ybsmart._core import _shim as cython

    if cython.compiled:
        from cython.cimports.cpython.pythread import PyThread_get_thread_ident as get_ident
        from cython.cimports.cpython.time import monotonic
    else:
        from ybsmart._core._shim import get_ident, monotonic

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

    __slots__ = (
        "_in_queue",
        "_next",
        "_outcome",
        "_parked_on",
        "_previous",
        "_state",
        "_thread",
        "_wake",
    )

    _wake: object
    _parked_on: object
    _state: str
    _outcome: object
    _thread: cython.ulonglong
    _in_queue: cython.bint
    _previous: Waiter
    _next: Waiter

    def __init__(self, wake: Callable[[], object], parked_on: object = None) -> None:
        self._wake = wake
        self._parked_on = parked_on
        self._state = WAITING
        self._outcome = None
        self._thread = get_ident()
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

    @property
    def thread(self) -> int:
        """The identity of the thread that made it."""
        return self._thread

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

    __slots__ = (
        "_bottom",
        "_generation",
        "_idle",
        "_key",
        "_label",
        "_lent",
        "_suspect_since",
        "_top",
    )

    _key: str
    _label: str
    _top: Slot
    _bottom: Slot
    _idle: cython.Py_ssize_t
    _lent: cython.Py_ssize_t
    _generation: cython.Py_ssize_t  # connections of an earlier one are closed when they come back
    _suspect_since: cython.double

    def __init__(self, key: str, label: str) -> None:
        self._key = key
        self._label = label
        self._top = None  # type: ignore[assignment]
        self._bottom = None  # type: ignore[assignment]
        self._idle = 0
        self._lent = 0
        self._generation = 0
        self._suspect_since = 0.0

    @property
    def key(self) -> str:
        """The node's identity, as the shell gave it."""
        return self._key

    @property
    def label(self) -> str:
        """The node's name for people."""
        return self._label

    @property
    def idle(self) -> int:
        return self._idle

    @property
    def lent(self) -> int:
        return self._lent

    def __repr__(self) -> str:
        return f"<Shelf {self._label} idle={self._idle} lent={self._lent}>"


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
        "_fresh_until",
        "_generation",
        "_holder",
        "_idle_since",
        "_in_block",
        "_lent",
        "_lent_at",
        "_loan",
        "_lost",
        "_note",
        "_pgconn",
        "_retire_at",
        "_retired",
        "_shelf",
        "_uses_left",
        "_was_dropped",
        "_watch",
    )

    _lost: object  # the pool's `_leaked`, by which it knows its own: a returned connection that
    # somebody keeps must not keep the pool
    _shelf: Shelf
    _conn: object
    _pgconn: object
    _watch: object
    _note: object
    _below: Slot
    _idle_since: cython.double
    _fresh_until: cython.double  # idle for longer, it is looked at before it is lent
    _retire_at: cython.double
    _lent_at: cython.double
    _holder: cython.ulonglong  # 0 unless in somebody's hands: neither on the way there nor back
    _uses_left: cython.Py_ssize_t  # below zero: no limit
    _generation: cython.Py_ssize_t
    _loan: cython.longlong  # the number of the present or last one
    _in_block: cython.bint  # lent through a `Checkout`
    _was_dropped: cython.bint  # its place was given away because its holder was collected
    _lent: cython.bint
    _retired: cython.bint

    def __init__(self, pool: PoolCore, conn: Any, shelf: Shelf, retire_at: cython.double) -> None:
        self._lost = pool._leaked
        self._shelf = shelf
        self._conn = conn
        self._pgconn = conn.pgconn
        self._watch = weakref.ref(conn, self._dropped)
        self._note = None
        self._below = None  # type: ignore[assignment]
        self._idle_since = 0.0
        self._fresh_until = 0.0
        self._retire_at = retire_at
        self._lent_at = 0.0
        self._holder = 0
        self._uses_left = pool._max_uses
        self._generation = shelf._generation
        self._loan = 0
        self._in_block = False
        self._was_dropped = False
        self._lent = False
        self._retired = False

    @property
    def shelf(self) -> Shelf:
        return self._shelf

    @property
    def lent(self) -> bool:
        return self._lent and not self._retired

    @property
    def lent_at(self) -> float:
        """The clock's time when it was lent last."""
        return self._lent_at

    @property
    def holder(self) -> int:
        """The identity of the thread that it was lent to; 0 on the way from one to the next."""
        return self._holder

    @property
    def note(self) -> Any:
        """The shell's, about the present loan. Any thread may read and set it."""
        if not cython.compiled:
            return self._note
        with cython.critical_section(self):
            return self._note

    @note.setter
    def note(self, note: Any) -> None:
        if not cython.compiled:
            self._note = note
            return
        with cython.critical_section(self):
            # Swapped, so that what is replaced is let go of outside the section.
            self._note, note = note, self._note

    def _dropped(self, _: object) -> None:
        # Called by the garbage collector, so possibly inside a critical section of this very
        # thread: leave a note and return.
        if self._holder:
            self._lost.append(self)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        state = "retired" if self._retired else "lent" if self._lent else "idle"
        return f"<Slot {state} on {self._shelf.label}>"


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
        """Who is told if it fails. None when nobody in the queue depends on it. For tests; needs a
        pool at rest."""
        return self._owner

    @property
    def has_owner(self) -> bool:
        """Whether anybody is told if it fails, at this moment."""
        return self._owner is not None


@cython.final
@cython.cclass
class Checkout:
    """`with` block around one lent connection; what `ConnectionPool.connection` returns."""

    __slots__ = ("_conn", "_loan", "_pool", "_settle", "_timeout")

    _pool: PoolCore
    _timeout: object
    _settle: cython.bint
    _conn: object
    _loan: cython.longlong

    def __init__(self, pool: PoolCore, timeout: object, settle: cython.bint) -> None:
        """`settle`: commit or roll back at the end, as a psycopg connection's own block does."""
        self._pool = pool
        self._timeout = timeout
        self._settle = settle
        self._conn = None
        self._loan = 0

    def __enter__(self) -> Any:
        if self._conn is not None:
            raise RuntimeError("this block has been entered already: call connection() for each")
        conn: object = self._pool.getconn(self._timeout)  # type: ignore[arg-type]
        slot: Slot = self._pool._slot_of(conn)
        slot._in_block = True
        self._loan = slot._loan
        self._conn = conn
        return conn

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        conn: Any = self._conn
        self._conn = None
        slot: Slot = self._pool._slot_of(conn)
        if slot._loan != self._loan or not slot._holder:
            # Somebody else's by now, or the parent process's, or nobody's: leave it alone.
            raise self._pool._not_lent(conn)
        error: object = exc
        try:
            if self._settle and not self._pool._is_idle(conn.pgconn):
                conn.__exit__(exc_type, exc, traceback)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._pool._claim(slot, conn, self._loan)
            self._pool._return(slot, conn, False, error)
            error = None  # uncompiled, this frame is in its traceback


# Why a connection is closed: what `_unfit` finds, as indices.
REASONS = ("", "closed", "lifetime", "uses", "evict", "resize", "idle")
_CLOSED, _LIFETIME, _USES, _EVICT, _RESIZE, _IDLE = 1, 2, 3, 4, 5, 6

# Whom the shell's `_notify` tells: bits of `_listening`.
ON_ACQUIRE, ON_RELEASE = 1, 2


@cython.cclass
class PoolCore:
    """State and fast path of a pool. Subclassed by the shell, which supplies the hooks.

    Guarded by its own critical section: all attributes below, those of its shelves and slots, and
    the queue. "Caller holds the section" marks the helpers that rely on it. Times are seconds of
    the monotonic clock.
    """

    __slots__ = (
        "_check_after",
        "_closing",
        "_connect_after",
        "_connect_limit",
        "_connecting",
        "_guard",
        "_idle",
        "_idle_status",
        "_last_opening",
        "_leaked",
        "_lent",
        "_lifo",
        "_listening",
        "_max_connecting",
        "_max_idle",
        "_max_size",
        "_max_uses",
        "_max_waiting",
        "_min_size",
        "_openings",
        "_peak",
        "_queue",
        "_queued_num",
        "_refilling",
        "_requests_num",
        "_retrying",
        "_shelves",
        "_slots",
        "_squeezed_to",
        "_squeezed_until",
        "_stagger",
        "_total",
        "_tracing",
        "_turn",
        "_usage",
        "_usage_buckets",
        "_vetting",
        "_wait",
        "_wait_buckets",
        "_waiting",
        "_washing",
        "_watched",
    )

    _guard: object
    _queue: WaiterQueue
    _waiting: cython.Py_ssize_t  # the queue's length, as an integer that the fast path can read
    _shelves: tuple  # type: ignore[type-arg]
    _slots: set[Slot]  # all that are open
    _openings: Opening  # those under way, linked
    _turn: cython.Py_ssize_t  # the shelf at which the search for the next connection starts

    _idle: cython.Py_ssize_t
    _lent: cython.Py_ssize_t
    _connecting: cython.Py_ssize_t
    _total: cython.Py_ssize_t  # idle, lent, connecting, and closing until closed
    _peak: cython.Py_ssize_t  # the most that `_total` has been
    _closing: cython.bint

    _min_size: cython.Py_ssize_t
    _max_size: cython.Py_ssize_t
    _max_connecting: cython.Py_ssize_t
    _max_uses: cython.Py_ssize_t
    _max_waiting: cython.Py_ssize_t
    _max_idle: cython.double
    _check_after: cython.double
    _lifo: cython.bint
    _idle_status: cython.int

    _connect_limit: cython.Py_ssize_t  # how many may be opened at a time just now
    _connect_after: cython.double  # and from when on
    _last_opening: cython.double  # when the last one was begun
    _stagger: cython.double
    _retrying: cython.bint  # somebody waits to open what may not be opened yet
    _refilling: cython.bint  # up to the minimum, without anybody asking
    _squeezed_to: cython.Py_ssize_t  # the maximum while the server has too many clients
    _squeezed_until: cython.double

    _vetting: cython.bint  # `_vet` is asked before each loan
    _washing: cython.bint  # `_clean` is asked after each
    _tracing: cython.bint  # `_trace` is told of each
    _watched: cython.bint  # `_progressed` is called
    _listening: cython.int

    _requests_num: cython.longlong
    _queued_num: cython.longlong
    _wait: cython.double
    _usage: cython.double
    _wait_buckets: list  # type: ignore[type-arg]
    _usage_buckets: list  # type: ignore[type-arg]
    _leaked: deque[Slot]

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
        """`max_idle`: seconds, infinity for no limit; `max_uses`: loans, -1 for no limit;
        `max_waiting`: 0 for no limit. `check_after`: seconds of idleness after which `_is_alive`
        is asked before lending. `stagger`: seconds between openings while there are connections
        that may come back first. `idle_status`: what `conn.pgconn.transaction_status` is when
        nothing is open."""
        self._min_size = min_size
        self._max_size = max_size
        self._max_connecting = max_connecting
        self._max_idle = max_idle
        self._max_uses = max_uses
        self._max_waiting = max_waiting
        self._check_after = check_after
        self._stagger = stagger
        self._lifo = lifo
        self._idle_status = idle_status
        self._listening = 0
        self._vetting = self._washing = self._tracing = self._watched = False
        self._closing = False
        self._start_empty()

    def _start_empty(self) -> None:
        """Begin without connections, waiters or numbers: when new, and in a forked child. A closed
        pool stays closed."""
        if not cython.compiled:
            self._guard = cython.new_guard()
        self._queue = WaiterQueue()
        self._waiting = 0
        self._shelves = ()
        self._slots = set()
        self._openings = None  # type: ignore[assignment]
        self._turn = 0
        self._idle = self._lent = self._connecting = self._total = self._peak = 0
        self._connect_limit = self._max_connecting
        self._connect_after = self._last_opening = 0.0
        self._refilling = self._retrying = False
        self._squeezed_to = 0
        self._squeezed_until = 0.0
        self._leaked = deque()
        self._wait_buckets = self._usage_buckets = []
        self._reset_numbers()

    def _inheritance(self) -> list[object]:
        """In a forked child: all that refers to the parent's connections, none of which is on loan
        here any more. Closing one would end the parent's session, so the caller keeps this."""
        slot: Slot
        for slot in self._slots:
            slot._retired = True
            slot._holder = 0
        return [self._slots, self._shelves, self._queue, self._openings, self._leaked]

    # What the pool's users call

    def getconn(self, timeout: float | None = None) -> Any:
        """Lend a connection; return it with `putconn`, once.

        timeout: seconds in all, None for the pool's own, 0 for one that is idle now. Raises
        `PoolTimeout`, `PoolDeadlock`, `TooManyRequests`, `PoolClosed`, or what connecting raised.
        Safe for any number of threads.
        """
        started: cython.double = monotonic() if self._vetting else 0.0
        slot: Slot = self._take()
        conn: object
        if slot is not None and self._needs_look(slot):
            slot = self._first_fit(slot)
        if slot is None:
            slot = self._queue_up(timeout)
        conn = self._lend(slot)
        if self._vetting:
            conn = self._first_vetted(slot, conn, timeout, started)
        return conn

    def putconn(self, conn: Any, *, discard: bool = False) -> None:
        """Take back a connection of this pool; `discard` closes it.

        Raises `DoubleRelease` if it is not on loan from here, `TypeError` if it is no connection,
        and nothing changes. Any thread may return what `getconn` lent.
        """
        slot: Slot = self._slot_of(conn)
        if slot._was_dropped:
            # By a finaliser that ran after its place was given away.
            try:
                self._close_conn(conn, "discard")
            finally:
                self._notify("remove", conn, "discard")
                self._report()
            return
        self._claim(slot, conn, 0)
        self._return(slot, conn, discard, None)

    def connection(self, timeout: float | None = None) -> Checkout:
        """A block around one connection: commits at its end, rolls back after an exception, and
        returns it. Arguments and errors as of `getconn`."""
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

    @property
    def min_size(self) -> int:
        """Connections that are kept open."""
        return self._min_size

    @property
    def max_size(self) -> int:
        """Connections that there may be at most."""
        return self._max_size

    # Lending

    @cython.cfunc
    def _take(self) -> Slot:
        """Take an idle connection off its shelf, or None. Waiters present imply that none is."""
        with cython.critical_section(self):
            self._requests_num += 1
            if self._idle == 0 or self._closing:
                return None  # type: ignore[return-value]
            return self._pick()

    @cython.cfunc
    @cython.inline
    def _pick(self) -> Slot:
        """Lend the idle connection whose turn it is; there is one. Caller holds the section."""
        shelf: Shelf
        best: Shelf = None  # type: ignore[assignment]
        count: cython.Py_ssize_t = len(self._shelves)
        _: cython.Py_ssize_t
        at: cython.Py_ssize_t = self._turn
        # Fewest lent; among equals each in turn, so that requests which do not overlap are spread
        # as well.
        for _ in range(count):
            if at >= count:
                at = 0
            shelf = self._shelves[at]
            at += 1
            if shelf._idle and (best is None or shelf._lent < best._lent):
                best = shelf
                self._turn = at
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
        self._lent += 1
        slot._lent = True
        return slot

    @cython.cfunc
    @cython.inline
    def _needs_look(self, slot: Slot) -> cython.bint:
        """Whether it has been idle for long, or since before its node was in trouble."""
        slot._lent_at = monotonic()
        return slot._lent_at >= slot._fresh_until or slot._idle_since <= slot._shelf._suspect_since

    @cython.cfunc
    @cython.inline
    def _is_idle(self, pgconn: Any) -> cython.bint:
        """Whether the connection is in order and in no transaction, which it knows by itself."""
        status: cython.int = pgconn.transaction_status
        return status == self._idle_status

    @cython.cfunc
    def _first_fit(self, slot: Slot) -> Slot:
        """The slot if it may still be lent, else another idle one that may."""
        reason: cython.int
        while slot is not None and self._needs_look(slot):
            fit: cython.bint = False
            cause: object = "lost"
            try:
                reason = self._unfit(slot, slot._lent_at)
                if reason == 0 and slot._lent_at - slot._idle_since >= self._max_idle:
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
            if fit:
                break
            slot = self._take_again()
        return slot

    @cython.cfunc
    def _take_again(self) -> Slot:
        """Another idle connection for the same request."""
        with cython.critical_section(self):
            self._requests_num -= 1
        return self._take()

    @cython.cfunc
    def _first_vetted(
        self, slot: Slot, conn: Any, timeout: object, started: cython.double
    ) -> object:
        """The connection if the user's check passes, else another one that does."""
        failures: cython.Py_ssize_t = 0
        passed: cython.bint
        ours: cython.bint
        loan: cython.longlong
        while True:
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
            left: object = self._pause(timeout, started, failures)
            failures += 1
            slot = self._take_again()
            if slot is not None and self._needs_look(slot):
                slot = self._first_fit(slot)
            if slot is None:
                slot = self._queue_up(left)
            conn = self._lend(slot)

    @cython.cfunc
    def _lend(self, slot: Slot) -> object:
        """Hand the connection itself to the caller, who alone has the slot."""
        conn: object = slot._conn
        slot._conn = None
        slot._holder = get_ident()
        slot._loan += 1
        slot._uses_left -= 1
        try:
            conn._pool = self  # type: ignore[attr-defined]
            if self._tracing:
                self._trace(slot)
            if self._listening & ON_ACQUIRE:
                self._notify("acquire", conn, None)
        except BaseException:
            self._retire(slot, conn, "error")
            raise
        return conn

    # Taking back

    @cython.cfunc
    def _claim(self, slot: Slot, conn: object, loan: cython.longlong) -> object:
        """Take a connection out of its holder's hands, once; an error if this is not its present
        loan. Where the caller has no number, 0: what was lent through a block is returned by the
        thread that took it, if not by the block; another thread means an older loan."""
        mine: cython.bint
        here: cython.ulonglong = get_ident()
        with cython.critical_section(self):
            if loan:
                mine = slot._holder != 0 and slot._loan == loan
            else:
                mine = slot._holder == here or (slot._holder != 0 and not slot._in_block)
            if mine:
                slot._holder = 0
                slot._in_block = False
        if not mine:
            raise self._not_lent(conn)
        return None

    @cython.cfunc
    def _return(self, slot: Slot, conn: Any, discard: cython.bint, error: object) -> object:
        """Take a connection back from its holder, whose block ended with `error`."""
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
            elif self._is_idle(slot._pgconn) and not self._washing:
                fit = True
            else:
                fit = self._clean(conn)
            if self._listening & ON_RELEASE:
                self._notify("release", conn, error)
        finally:
            if fit:
                reason = self._give(slot, conn, 0.0)
            if reason is not None:
                self._retire(slot, conn, reason)
        return None

    @cython.cfunc
    def _slot_of(self, conn: Any) -> Slot:
        """The slot of a connection of this pool; an error for any other."""
        slot: object = getattr(conn, "_ybsmart_slot", None)
        if isinstance(slot, Slot):
            mine: Slot = slot
            if mine._lost is self._leaked:
                return mine
        raise self._not_lent(conn)

    @cython.cfunc
    def _give(self, slot: Slot, conn: object, idle_since: cython.double) -> object:
        """Pass a lent connection on. None if it was; else why it has to be closed.

        `idle_since`: when it was used last, if not now."""
        waiter: Waiter = None  # type: ignore[assignment]
        reason: cython.int
        now: cython.double = monotonic()
        with cython.critical_section(self):
            if slot._lent_at:
                self._usage += now - slot._lent_at
                self._usage_buckets[_bucket(now - slot._lent_at)] += 1
                slot._lent_at = 0.0
            reason = self._unfit(slot, now)
            if reason == 0:
                slot._conn = conn
                if self._waiting:
                    waiter = self._grant(slot)
                else:
                    self._shelve(slot, idle_since or now)
        if reason:
            return REASONS[reason]
        if waiter is not None:
            waiter._wake()  # type: ignore[operator]
        return None

    @cython.cfunc
    def _unfit(self, slot: Slot, now: cython.double) -> cython.int:
        """Why a slot is not to be lent again, as an index into REASONS; 0 if it is. Caller holds
        the section, or the slot alone."""
        if self._closing and self._waiting == 0:
            return _CLOSED
        if now >= slot._retire_at:
            return _LIFETIME
        if slot._uses_left == 0:
            return _USES
        if slot._generation != slot._shelf._generation:
            return _EVICT
        if self._total > self._max_size:
            return _RESIZE
        return 0

    @cython.cfunc
    @cython.inline
    def _shelve(self, slot: Slot, now: cython.double) -> object:
        """Make a lent slot idle. Caller holds the section."""
        shelf: Shelf = slot._shelf
        fresh: cython.double = self._check_after
        if self._max_idle < fresh:
            fresh = self._max_idle
        fresh += now
        if slot._retire_at < fresh:
            fresh = slot._retire_at
        slot._fresh_until = fresh
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
        self._lent -= 1
        return None

    @cython.cfunc
    def _pass(self, slot: Slot) -> object:
        """Pass a lent connection on that the caller was not to have after all."""
        conn: object = slot._conn
        reason = self._give(slot, conn, 0.0)
        if reason is not None:
            self._retire(slot, conn, reason)
        return None

    # The queue

    @cython.cfunc
    def _queue_up(self, timeout: object) -> Slot:
        """Wait, through the hooks, until the waiter is settled."""
        waiter: Waiter = self._new_waiter(timeout)
        slot: Slot
        opening: Opening
        started: cython.double = monotonic()
        try:
            opening = self._enqueue(waiter)
            if opening is not None:
                self._begin(opening)
            self._see_to_retry()
            self._sleep(waiter, timeout)
        except BaseException:
            self._count_wait(monotonic() - started)
            self._abandon(waiter)
            raise
        self._count_wait(monotonic() - started)
        if waiter._state is FAILED:
            raise waiter._outcome  # type: ignore[misc]
        slot = waiter._outcome  # type: ignore[assignment]
        slot._lent_at = monotonic()
        return slot

    @cython.cfunc
    def _count_wait(self, seconds: cython.double) -> object:
        with cython.critical_section(self):
            self._queued_num += 1
            self._wait += seconds
            self._wait_buckets[_bucket(seconds)] += 1
        return None

    @cython.cfunc
    def _enqueue(self, waiter: Waiter) -> Opening:
        """Queue a waiter, or settle it at once. Return what has to be opened on its account."""
        spare: Opening = Opening()
        served: cython.bint = False
        closed: cython.bint
        full: cython.bint
        self._collect_leaked()
        with cython.critical_section(self):
            closed = self._closing
            full = 0 < self._max_waiting <= self._waiting
            if not closed and not full:
                # One may have come back since the caller looked. Then nobody was waiting, and the
                # waiter is the first.
                served = self._idle > 0
                self._queue.append(waiter)
                self._waiting += 1
                if not served:
                    return self._next_opening(spare)
                self._grant(self._pick())
        if served:
            waiter._wake()  # type: ignore[operator]
            return None  # type: ignore[return-value]
        if closed:
            raise self._closed_error()
        raise self._too_many()

    @cython.cfunc
    def _grant(self, slot: Slot) -> Waiter:
        """Hand a lent slot to the first waiter, who is to be woken. Caller holds the section."""
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

    def _waiters(self) -> list[Waiter]:
        """Who waits, in order. For reports."""
        waiters: list[Waiter] = [None] * (self._waiting + 8)  # type: ignore[list-item]
        waiter: Waiter
        i: cython.Py_ssize_t = 0
        with cython.critical_section(self):
            waiter = self._queue.first()
            while waiter is not None and i < len(waiters):
                waiters[i] = waiter
                waiter = waiter._next
                i += 1
        return waiters[:i]

    # Opening

    @cython.cfunc
    def _next_opening(self, spare: Opening) -> Opening:
        """Use `spare` for the first waiter nothing is being opened for, if one may be opened.

        As many are opened at a time as there are waiters, and always for those in front; and as
        many as the minimum still lacks. Caller holds the section.
        """
        now: cython.double
        if not self._lacks():
            return None  # type: ignore[return-value]
        now = monotonic()
        if now < self._may_open_from():
            return None  # type: ignore[return-value]
        if now >= self._squeezed_until:
            self._squeezed_until = 0.0
        self._last_opening = now
        self._connecting += 1
        self._total += 1
        if self._total > self._peak:
            self._peak = self._total
        self._assign(spare)
        spare._next = self._openings
        self._openings = spare
        return spare

    @cython.cfunc
    def _lacks(self) -> cython.bint:
        """Whether something is wanted that is not being opened. Caller holds the section."""
        return (self._connecting < self._connect_limit and self._total < self._max_size) and (
            self._waiting > self._connecting or self._lacks_minimum()
        )

    @cython.cfunc
    def _lacks_minimum(self) -> cython.bint:
        return self._refilling and self._total < self._min_size and not self._closing

    @cython.cfunc
    def _may_open_from(self) -> cython.double:
        """The time before which nothing is opened: after a failure, while the server has too many
        clients, or while what is lent may come back before another would be open. Caller holds
        the section."""
        time: cython.double = self._connect_after
        if self._total >= self._squeezed_to and self._squeezed_until > time:
            time = self._squeezed_until
        if self._connecting and self._idle + self._lent and not self._lacks_minimum():
            time = max(time, self._last_opening + self._stagger)
        return time

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
        opening._owner = None  # type: ignore[assignment]
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
                opening = self._opening_failed(opening, exc, 0.0, True)
            except BaseException as exc:
                # An interrupt is for this thread. Whoever the connection was for still waits.
                self._begin(self._opening_failed(opening, exc, 0.0, False))
                raise
            else:
                break
        return None

    @cython.cfunc
    def _begin_all(self) -> object:
        """Begin to open all that may be opened now."""
        spare: Opening
        opening: Opening
        while True:
            spare = Opening()
            with cython.critical_section(self):
                opening = self._next_opening(spare)
            if opening is None:
                return None
            self._begin(opening)

    def _refill(self, on: bool) -> None:
        """Keep the minimum open from now on, or, until told again, open only what is asked for."""
        self._refilling = on
        self._begin_all()
        self._see_to_retry()

    def _is_refilling(self) -> bool:
        return self._refilling

    def _opened(
        self, opening: Opening, conn: Any, key: str, label: str, retire_at: cython.double
    ) -> Opening | None:
        """Take a new connection, of the node `key`, into the pool: the first waiter gets it.

        Return what has to be opened next.
        """
        spare: Opening = Opening()
        slot: Slot
        following: Opening
        given_up: cython.bint
        try:
            slot = Slot(self, conn, self._shelf(key, label), retire_at)
            conn._pool = None
            conn._ybsmart_slot = slot
        except BaseException as exc:
            self._begin(self._opening_failed(opening, exc, 0.0, True))
            raise
        with cython.critical_section(self):
            given_up = opening._over
            if not given_up:
                self._slots.add(slot)
                self._finish(opening)
                slot._lent = True
                slot._shelf._lent += 1
                self._lent += 1
                # After an outage a few at a time, and each success allows for more.
                self._connect_after = 0.0
                self._connect_limit = min(self._max_connecting, 2 * self._connect_limit)
        if given_up:
            slot._retired = True
            try:
                self._close_conn(conn, "closed")
            finally:
                self._notify("remove", conn, "closed")
                self._report()
            return None
        slot._conn = conn
        self._pass(slot)
        with cython.critical_section(self):
            following = self._next_opening(spare)
        try:
            self._begin_all()
            self._report()
        except BaseException:
            self._begin(following)
            raise
        return following

    def _opening_failed(
        self, opening: Opening, error: BaseException, delay: cython.double, tell: cython.bint
    ) -> Opening | None:
        """Free the place; `tell` the requester, if it still waits. Return what to open next.

        Nothing is opened for `delay` seconds, and then one at a time.
        """
        spare: Opening = Opening()
        owner: Waiter
        following: Opening
        with cython.critical_section(self):
            if opening._over:
                return None
            owner = self._finish(opening)
            self._total -= 1
            if delay > 0.0:
                self._connect_after = monotonic() + delay
                self._connect_limit = 1
            if owner is not None and tell:
                self._queue.fail(owner, error)
                self._waiting -= 1
            following = self._next_opening(spare)
        if owner is not None and tell:
            owner._wake()  # type: ignore[operator]
        try:
            self._report()
        except BaseException:
            self._begin(following)
            raise
        return following

    def _squeeze(self, seconds: cython.double) -> bool:
        """The server has too many clients: for a while, make do with those there are. False: there
        are none."""
        with cython.critical_section(self):
            if self._idle + self._lent == 0:
                return False
            self._squeezed_to = self._idle + self._lent
            self._squeezed_until = monotonic() + seconds
        return True

    def _forgive(self) -> None:
        """Forget earlier failures: what is wanted next is opened at once."""
        with cython.critical_section(self):
            self._connect_after = 0.0

    def _claim_retry(self) -> bool:
        """Become the one who waits to open what may not be opened yet. False: nothing is wanted,
        or somebody else is. Ends with `_wait_to_retry` below zero, or `_retry`."""
        with cython.critical_section(self):
            if self._retrying or not self._lacks():
                return False
            self._retrying = True
        return True

    @cython.cfunc
    def _see_to_retry(self) -> object:
        """What is wanted and may not be opened yet: have somebody wait for the time."""
        if self._claim_retry():
            try:
                self._retry_later()
            except BaseException:
                self._retrying = False
                raise
        return None

    def _wait_to_retry(self) -> float:
        """Seconds until something that is wanted may be opened; below zero: nothing is any more."""
        now: cython.double = monotonic()
        time: cython.double
        with cython.critical_section(self):
            if not self._lacks():
                self._retrying = False
                return -1.0
            time = self._may_open_from()
        return max(time - now, 0.0)

    def _retry(self) -> Opening | None:
        """End the wait to retry; return what may be opened now."""
        spare: Opening = Opening()
        with cython.critical_section(self):
            self._retrying = False
            return self._next_opening(spare)

    # Closing

    @cython.cfunc
    def _retire(self, slot: Slot, conn: object, reason: object) -> object:
        """Close a lent connection for good. It counts until it is closed."""
        with cython.critical_section(self):
            if slot._retired:
                return None
            slot._retired = True
            slot._holder = 0
            slot._conn = None
        try:
            self._close_conn(conn, reason)
        finally:
            try:
                self._removed(slot)
            finally:
                self._notify("remove", conn, reason)
                self._report()
        return None

    @cython.cfunc
    def _removed(self, slot: Slot) -> object:
        """A retired connection is closed: its place is free, for the first waiter."""
        spare: Opening = Opening()
        following: Opening
        slot._watch = None  # ends the cycle through its callback
        with cython.critical_section(self):
            # First, because the set has a section of its own, which may give way to others.
            self._slots.discard(slot)
            self._lent -= 1
            slot._shelf._lent -= 1
            self._total -= 1
            following = self._next_opening(spare)
        self._begin(following)
        self._see_to_retry()
        return None

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
            self._evict(mine._shelf._key)

    def _evict(self, key: str | None) -> None:
        """Close all connections, or those of one node: the idle ones now, the others when they are
        returned."""
        shelf: Shelf
        for shelf in self.shelves():
            if key is None or shelf._key == key:
                with cython.critical_section(self):
                    shelf._generation += 1
        self._sweep()

    def _sweep(self) -> int:
        """Close the idle connections that have been there long enough, the oldest first.

        Return how many.
        """
        closed: cython.Py_ssize_t = 0
        slot: Slot
        reason: cython.int
        self._collect_leaked()
        while True:
            with cython.critical_section(self):
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
        spare: cython.bint = self._total > self._min_size
        for shelf in self._shelves:
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
        for shelf in self.shelves():
            for _ in range(shelf._idle):
                with cython.critical_section(self):
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

    def _idle_conns(self) -> list[Any]:
        """The idle connections, for a look from afar: they may be lent at any moment."""
        conns: list[Any] = [None] * (self._idle + 8)
        shelf: Shelf
        slot: Slot
        i: cython.Py_ssize_t = 0
        with cython.critical_section(self):
            for shelf in self._shelves:
                slot = shelf._top
                while slot is not None and i < len(conns):
                    conns[i] = slot._conn
                    slot = slot._below
                    i += 1
        return conns[:i]

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

    def _is_closing(self) -> bool:
        return self._closing

    def _start_closing(self) -> bool:
        """Refuse newcomers from now on. False: it was closing already."""
        self._collect_leaked()
        with cython.critical_section(self):
            if self._closing:
                return False
            self._closing = True
        return True

    @cython.cfunc
    def _report(self) -> object:
        if self._closing or self._watched:
            self._progressed()
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
            with cython.critical_section(self):
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
            try:
                self._removed(slot)
            finally:
                self._lost_one(slot)
                self._report()
        return None

    @cython.cfunc
    def _shelf(self, key: str, label: str) -> Shelf:
        """The shelf of a node, made when its first connection comes."""
        fresh: Shelf = Shelf(key, label)
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

    # Settings and numbers

    def _set_sizes(self, min_size: cython.Py_ssize_t, max_size: cython.Py_ssize_t) -> None:
        with cython.critical_section(self):
            self._min_size = min_size
            self._max_size = max_size
        self._begin_all()
        self._see_to_retry()

    def _set_flags(
        self,
        vetting: cython.bint,
        washing: cython.bint,
        tracing: cython.bint,
        listening: cython.int,
    ) -> None:
        """Which hooks are called for each loan; none costs anything while it is off."""
        self._vetting = vetting
        self._washing = washing
        self._tracing = tracing
        self._listening = listening

    def _watch_progress(self, on: cython.bint) -> None:
        self._watched = on

    def _reset_numbers(self) -> None:
        wait_buckets = [0] * 32
        usage_buckets = [0] * 32
        with cython.critical_section(self):
            self._requests_num = self._queued_num = 0
            self._peak = self._total
            self._wait = self._usage = 0.0
            self._wait_buckets, wait_buckets = wait_buckets, self._wait_buckets
            self._usage_buckets, usage_buckets = usage_buckets, self._usage_buckets

    def numbers(self) -> dict[str, Any]:
        """What has been counted: requests, times in seconds, and times by power of two of a
        microsecond (bucket n: below 2**n)."""
        with cython.critical_section(self):
            wait_buckets, usage_buckets = self._wait_buckets, self._usage_buckets
        return {
            "peak": self._peak,
            "requests": self._requests_num,
            "queued": self._queued_num,
            "wait": self._wait,
            "usage": self._usage,
            "wait_buckets": list(wait_buckets),
            "usage_buckets": list(usage_buckets),
        }

    def shelves(self) -> tuple[Shelf, ...]:
        """The shelves, one per node that ever had a connection here."""
        with cython.critical_section(self):
            return self._shelves

    def slots(self) -> list[Slot]:
        """The slots of all connections that are open."""
        return list(self._slots)

    def check_invariants(self) -> None:
        """Raise if an invariant is broken. For tests; needs a pool at rest."""
        self._collect_leaked()
        problems = []
        if self._total < 0 or (self._total > self._max_size and self._idle):
            problems.append("0 <= total <= max_size")
        if self._idle + self._lent + self._connecting != self._total:
            problems.append("idle + lent + connecting == total")
        if self._idle != sum(shelf.idle for shelf in self._shelves):
            problems.append("idle == sum of the shelves' idle")
        if self._lent != sum(shelf.lent for shelf in self._shelves):
            problems.append("lent == sum of the shelves' lent")
        if len(self._slots) != self._idle + self._lent:
            problems.append("idle + lent == slots")
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

    def _retry_later(self) -> None:
        """See to it that somebody goes by `_wait_to_retry`, in the caller's stead."""
        raise NotImplementedError

    def _is_alive(self, conn: Any) -> bool:
        """Whether an idle connection still has its server, as far as its socket knows."""
        raise NotImplementedError

    def _passes(self, conn: Any, thorough: bool) -> bool:
        """Whether an idle connection may stay: as `_is_alive`, or with a round trip."""
        raise NotImplementedError

    def _vet(self, conn: Any) -> bool:
        """Run the user's check on a connection about to be lent: whether it passed."""
        raise NotImplementedError

    def _pause(self, timeout: Any, started: float, failures: int) -> Any:
        """After so many failed checks before this one, of a request that began at `started`: sleep
        a while; return the time-out that is left, or raise."""
        raise NotImplementedError

    def _failed_with(self, conn: Any, error: Any) -> None:
        """The block that a connection was lent to has ended with an error."""
        raise NotImplementedError

    def _clean(self, conn: Any) -> bool:
        """Make a returned connection fit for the next user. False: close it instead."""
        raise NotImplementedError

    def _close_conn(self, conn: Any, reason: Any) -> None:
        """Close a connection; errors are the hook's to deal with."""
        raise NotImplementedError

    def _trace(self, slot: Any) -> None:
        """Note where a connection is taken."""
        raise NotImplementedError

    def _untrace(self, slot: Any) -> None:
        """It is returned."""
        raise NotImplementedError

    def _notify(self, event: str, conn: Any, about: Any) -> None:
        """Call the listeners of an event: "acquire", "release" after `about`, an error or None, or
        "remove" for the reason `about`."""
        raise NotImplementedError

    def _progressed(self) -> None:
        """A pool that is closing or waited for has won or lost a connection."""
        raise NotImplementedError

    def _lost_one(self, slot: Any) -> None:
        """A lent connection was dropped instead of returned."""
        raise NotImplementedError

    def _too_many(self) -> Exception:
        """The error for a request that finds the queue full."""
        raise NotImplementedError

    def _not_lent(self, conn: Any) -> Exception:
        """The error for a connection that is not on loan from here."""
        raise NotImplementedError

    def _closed_error(self) -> Exception:
        """The error for a request to a closing pool."""
        raise NotImplementedError


@cython.cfunc
@cython.inline
def _bucket(seconds: cython.double) -> cython.Py_ssize_t:
    """The number of bits that a time has in microseconds, 31 at most."""
    us: cython.longlong = cython.cast(cython.longlong, seconds * 1e6)
    bits: cython.Py_ssize_t = 0
    if not cython.compiled:
        us = int(us)
    while us > 0 and bits < 31:
        us >>= 1
        bits += 1
    return bits
