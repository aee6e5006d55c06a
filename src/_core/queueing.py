"""Requests that find no idle connection: into the queue, and out of it.

Decides: when a request may queue, and what becomes of a connection that was granted to one that
has given up.

Never: sleeps. The shell does, on what it has given the waiter to sleep on.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see pool.pyx
    from ._shim import monotonic, which_process
    from .lending import PoolLending
    from .openings import Opening
    from .slots import Slot
    from .waiters import FAILED, GRANTED, Waiter


@cython.cfunc
@cython.inline
def _is_number(timeout: object) -> cython.bint:
    """Whether it certainly is one: a float or an int, and no subclass."""
    seconds: cython.double
    if type(timeout) is float:
        seconds = timeout
        return seconds == seconds  # which NaN is not
    return type(timeout) is int


@cython.cclass
class PoolQueueing(PoolLending):
    __slots__ = ()

    @cython.cfunc
    def _find(self, timeout: object) -> Slot:
        """A connection for a request: an idle one that is fit, or what the queue brings."""
        if timeout is not None and not _is_number(timeout):
            self._must_be_seconds(timeout)
        if self._process != which_process():  # `_notice_fork`, without a call
            self._forked()
        slot: Slot = self._take()
        now: cython.double
        while slot is not None:
            now = monotonic()
            if (
                now - slot._idle_since < self._fresh_for
                and slot._idle_since > slot._shelf._suspect_since
                and now < slot._retire_at
            ):
                slot._lent_at = now
                return slot
            # Idle for long, or since before its node was in trouble, or too old.
            if self._is_fit(slot, now):
                slot._lent_at = monotonic()  # the look is not part of the loan
                return slot
            self._uncount_request()
            slot = self._take()
        return self._queue_up(timeout)

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
    def _enqueue(self, waiter: Waiter) -> Opening:
        """Queue a waiter, or settle it at once. Return what has to be opened on its account."""
        spare: Opening = Opening()
        served: cython.bint = False
        closed: cython.bint
        full: cython.bint
        self._collect_leaked()
        with self._guard:
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

    def _withdraw(self, waiter: Waiter) -> bool:
        """Leave the queue. False: the wait has been settled already."""
        with self._guard:
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
        with self._guard:
            waiter = self._queue.first()
            if waiter is None:
                return False
            self._queue.fail(waiter, error)
            self._left(waiter)
        waiter._wake()  # type: ignore[operator]
        return True

    def _is_deadlock(self, waiter: Waiter) -> cython.bint:
        """Whether the threads that hold the connections all wait, this waiter's being the last of
        them to do so."""
        slot: Slot
        other: Waiter
        here: cython.ulonglong = waiter._thread
        holds: cython.bint = False
        if self._idle or self._connecting or self._total < self._max_size:
            return False
        slots = list(self._slots)
        for slot in slots:
            if slot._holder == here:
                holds = True
                break
        if not holds:
            return False
        holders = set()
        held: cython.Py_ssize_t = 0
        for slot in slots:
            if slot._lent and not slot._retired:
                holders.add(slot._holder)
                held += 1
        if held < self._max_size or 0 in holders:
            return False  # being closed, or on its way to somebody, or back
        last: cython.ulonglong = 0
        waiting = set()
        for other in self._waiters():
            waiting.add(other._thread)
            if other._thread in holders:
                last = other._thread
        return last == here and holders <= waiting

    def _waiters(self) -> list[Waiter]:
        """Who waits, in order. For reports."""
        waiters: list[Waiter] = []
        waiter: Waiter
        length: cython.Py_ssize_t = 0
        i: cython.Py_ssize_t
        while True:
            waiters = [None] * length  # type: ignore[list-item]  # not within the section
            i = 0
            with self._guard:
                if self._waiting == length:
                    waiter = self._queue.first()
                    while waiter is not None:
                        waiters[i] = waiter
                        waiter = waiter._next
                        i += 1
                    return waiters
                length = self._waiting
