"""The state of a pool that all its layers share: counts, sizes, switches, statistics.

Decides nothing. What guards it, all the other layers' attributes, those of shelves and slots, and
the queue, is the pool's critical section; "caller holds the section" marks what relies on it.
Inside one, nothing allocates what the garbage collector tracks, runs Python code or lets go of the
last reference to anything, because each of these may run a finaliser that comes back here. (What
is tracked uncompiled: an iterator over a tuple or a list, and the arguments of `min` or `int`.)

Times are seconds of the monotonic clock.
"""

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import which_process
    from .hooks import Hooks
    from .slots import Shelf, Slot
    from .times import Times
    from .waiters import FAILED, Waiter, WaiterQueue


@cython.cclass
class PoolState(Hooks):
    __slots__ = (
        "_cleaning",
        "_closing",
        "_connecting",
        "_guard",
        "_idle",
        "_idle_status",
        "_leaked",
        "_max_idle",
        "_max_size",
        "_max_uses",
        "_max_waiting",
        "_min_size",
        "_notifies_acquire",
        "_notifies_release",
        "_peak",
        "_process",
        "_queue",
        "_requests_num",
        "_shelves",
        "_slots",
        "_total",
        "_tracing",
        "_uses",
        "_vetting",
        "_waiting",
        "_waits",
        "_watched",
    )

    _guard: cython.pymutex
    _process: cython.longlong  # the one that the connections belong to
    _queue: WaiterQueue
    _waiting: cython.Py_ssize_t  # the queue's length, as an integer that the fast path can read
    _shelves: tuple  # type: ignore[type-arg]
    _slots: set[Slot]  # all that are open

    _idle: cython.Py_ssize_t
    _connecting: cython.Py_ssize_t
    _total: cython.Py_ssize_t  # idle, lent, connecting, and closing until closed
    _peak: cython.Py_ssize_t  # the most that `_total` has been
    _closing: cython.bint

    _min_size: cython.Py_ssize_t
    _max_size: cython.Py_ssize_t
    _max_uses: cython.Py_ssize_t
    _max_waiting: cython.Py_ssize_t
    _max_idle: cython.double
    _idle_status: cython.int

    _vetting: cython.bint  # `_vet` is asked before each loan
    _cleaning: cython.bint  # `_clean` is asked after each
    _tracing: cython.bint  # `_trace` is told of each
    _watched: cython.bint  # `_progressed` is called
    _notifies_acquire: cython.bint  # `_notify` is called at each
    _notifies_release: cython.bint

    _requests_num: cython.longlong
    _waits: Times  # of requests in the queue
    _uses: Times  # of connections, by whom they were lent to
    _leaked: deque[Slot]

    def _start_empty(self) -> None:
        """Begin without connections, waiters or numbers: when new, and in a forked child. A closed
        pool stays closed. Each layer sets what is its own."""
        if not cython.compiled:
            self._guard = cython.pymutex()
        else:
            # A thread of the parent may have had it.
            renew(cython.address(self._guard))  # type: ignore[name-defined]
        self._queue = WaiterQueue()
        self._waiting = 0
        self._shelves = ()
        self._slots = set()
        self._idle = self._connecting = self._total = self._peak = 0
        self._leaked = deque()
        self._requests_num = 0
        self._waits = Times()
        self._uses = Times()

    def _inheritance(self, error: BaseException) -> tuple[list[Any], list[object]]:
        """In a forked child: the parent's connections, none of which is on loan here any more, as
        libpq has them; and all that refers to them. Closing one would end the parent's session,
        so the caller keeps both.

        error: for who waited, should it survive a fork, as greenlets do.
        """
        slot: Slot
        waiter: Waiter = self._queue.first()
        pgconns = []
        for slot in self._slots:
            slot._retired = True
            slot._holder = 0
            if slot._pgconn is not None:  # being closed
                pgconns.append(slot._pgconn)
        while waiter is not None:
            waiter._in_queue = False
            waiter._state = FAILED
            waiter._outcome = error
            waiter = waiter._next
        return pgconns, [self._slots, self._shelves, self._queue, self._leaked]

    @cython.cfunc
    @cython.inline
    def _notice_fork(self) -> object:
        """Begin anew in a forked child, should nobody have said that it is one: to be called
        before anything here is believed or changed."""
        if self._process != which_process():
            self._forked()
        return None

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

    def _is_closing(self) -> bool:
        return self._closing

    @cython.cfunc
    def _report(self) -> object:
        if self._closing or self._watched:
            self._progressed()
        return None

    def _set_flags(
        self,
        vetting: cython.bint,
        cleaning: cython.bint,
        tracing: cython.bint,
        notifies_acquire: cython.bint,
        notifies_release: cython.bint,
    ) -> None:
        """Which hooks are called for each loan; none costs anything while it is off."""
        self._vetting = vetting
        self._cleaning = cleaning
        self._tracing = tracing
        self._notifies_acquire = notifies_acquire
        self._notifies_release = notifies_release

    def _watch_progress(self, on: cython.bint) -> None:
        self._watched = on

    @cython.cfunc
    def _count_wait(self, seconds: cython.double) -> object:
        with self._guard:
            self._waits._add(seconds)
        return None

    def _numbers(self, reset: cython.bint) -> dict[str, Any]:
        """What has been counted: requests, times in seconds, and times by power of two of a
        microsecond (bucket n: below 2**n). `reset`: count from zero now, with nothing between."""
        self._notice_fork()
        waits: Times = Times()
        uses: Times = Times()
        with self._guard:
            peak: cython.Py_ssize_t = self._peak
            requests: cython.longlong = self._requests_num
            if reset:
                waits, self._waits = self._waits, waits
                uses, self._uses = self._uses, uses
                self._requests_num = 0
                self._peak = self._total
            else:
                waits._copy(self._waits)
                uses._copy(self._uses)
        return {
            "peak": peak,
            "requests": requests,
            "queued": waits.number,
            "wait": waits.total,
            "usage": uses.total,
            "wait_buckets": waits.buckets,
            "usage_buckets": uses.buckets,
        }

    def _list_shelves(self) -> tuple[Shelf, ...]:
        """The shelves, one per node that ever had a connection here."""
        self._notice_fork()
        with self._guard:
            return self._shelves

    def _list_slots(self) -> list[Slot]:
        """The slots of all connections that are open."""
        self._notice_fork()
        return list(self._slots)

    def _snapshot(self) -> dict[str, Any]:
        """The numbers, for tests and messages; those of the shelves are exact only of a pool at
        rest."""
        with self._guard:
            total: cython.Py_ssize_t = self._total
            idle: cython.Py_ssize_t = self._idle
            connecting: cython.Py_ssize_t = self._connecting
            waiting: cython.Py_ssize_t = self._waiting
            closing: cython.bint = self._closing
            shelves = self._shelves
        return {
            "total": total,
            "idle": idle,
            "lent": total - idle - connecting,
            "connecting": connecting,
            "waiting": waiting,
            "closing": closing,
            "shelves": {shelf.key: (shelf.idle, shelf.lent) for shelf in shelves},
        }
