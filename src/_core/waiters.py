"""Waiters, and the queue that they stand in.

Decides: nothing but the order, which is that of arrival. A waiter is settled once: granted, failed
or cancelled.

Never: waits or wakes. Nothing here allocates or runs Python code, so all of it may be called within
the critical section of whoever owns the queue.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import get_ident

WAITING = "waiting"
GRANTED = "granted"
FAILED = "failed"
CANCELLED = "cancelled"


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
    if cython.compiled:  # else the name is not there yet
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
