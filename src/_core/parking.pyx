"""The compiled form of parking.py, and the lock that only compiled code can have.

A thread that is woken needs the GIL at once. Several woken right after each other fall asleep again
on the GIL, to get it in no certain order and at the cost of another context switch. So one is woken
at a time, and wakes the next as soon as it has the GIL. Where some thread computes and the GIL is
slow to come, others have to be in line for it too: after `_patience`, the next release wakes all.

If the next one is woken on the same processor, the kernel may run it at once, in the stead of the
one that has the GIL. Then it lets that one finish its turn, if turns have been short of late.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PY_LOCK_ACQUIRED,
    PY_LOCK_INTR,
    PyLockStatus,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from cpython.time cimport monotonic
from libc.math cimport ceil

import os

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define YBSMART_HAS_GIL 0
    #else
    #define YBSMART_HAS_GIL 1
    #endif
    """
    const bint HAS_GIL "YBSMART_HAS_GIL"

cdef extern from *:
    """
    #ifdef __linux__
    #include <sched.h>
    static int ybsmart_processor(void) { return sched_getcpu(); }
    static void ybsmart_yield(void) { sched_yield(); }
    #else
    static int ybsmart_processor(void) { return -1; }
    static void ybsmart_yield(void) {}
    #endif
    static volatile int ybsmart_turn_processor = -1;
    """
    int this_processor "ybsmart_processor"() nogil  # below zero: nobody knows
    void let_others_run "ybsmart_yield"() nogil
    int _turn_processor "ybsmart_turn_processor"  # where one has its turn, if that is short; also used without the GIL

cdef extern from "pythread.h":
    const long long PY_TIMEOUT_MAX
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible
    ) nogil


# Guarded by the GIL; not used where there is none.
cdef ParkingLock _waking = None  # its sleeper has been woken, and has not had the GIL since
cdef double _waking_since = 0
cdef ParkingLock _first = None  # those released meanwhile, linked
cdef ParkingLock _last = None
cdef double _patience = 0.0001  # seconds

# A turn is from when the one that was woken has the GIL until some thread goes to sleep.
cdef double _turn_since = 0
cdef double _SHORT_TURN = 0.00002  # seconds


cdef long long _microseconds(double seconds) noexcept:
    """As `PyThread_acquire_lock_timed` wants them: rounded up, not to be back too soon."""
    if seconds <= 0:
        return 0
    if seconds * 1e6 >= PY_TIMEOUT_MAX:
        return PY_TIMEOUT_MAX
    return <long long>ceil(seconds * 1e6)


@cython.final
@cython.no_gc
cdef class ParkingLock:
    """A lock, held from the start, for one thread to sleep on."""

    cdef PyThread_type_lock _lock
    cdef ParkingLock _next
    cdef bint _released
    cdef bint _asleep  # its sleeper will take the GIL before it does anything else

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock is NULL:
            raise MemoryError
        PyThread_acquire_lock(self._lock, WAIT_LOCK)

    def __dealloc__(self):
        if self._lock is not NULL:
            # Not everywhere may a lock that is held be freed. Nobody sleeps on it any more, except
            # in the process that this one was forked from.
            PyThread_acquire_lock(self._lock, NOWAIT_LOCK)
            PyThread_release_lock(self._lock)
            PyThread_free_lock(self._lock)

    def acquire(self, bint blocking=True, double timeout=-1):
        """Sleep until it is released, for `timeout` seconds at most, below zero for ever. Return
        whether it was. A signal handler runs meanwhile, and what it raises ends the sleep."""
        global _turn_processor, _turn_since
        cdef double now
        cdef double until = 0
        cdef long long left = -1
        cdef bint turns_are_short
        cdef PyLockStatus status
        if timeout != timeout:
            raise ValueError("timeout must be a number of seconds, not NaN")
        status = PyThread_acquire_lock_timed(self._lock, 0, 0)
        if not blocking or timeout == 0:
            return status == PY_LOCK_ACQUIRED
        now = monotonic()
        turns_are_short = HAS_GIL and now - _turn_since < _SHORT_TURN
        if timeout > 0:
            until = now + timeout
            left = _microseconds(timeout)
        while status != PY_LOCK_ACQUIRED:
            self._asleep = True
            with nogil:
                if HAS_GIL:
                    _turn_processor = -1
                status = PyThread_acquire_lock_timed(self._lock, left, 1)
                if HAS_GIL and _turn_processor >= 0 and _turn_processor == this_processor():
                    let_others_run()
            self._asleep = False
            if HAS_GIL and _waking is self:
                _turn_since = monotonic()
                _turn_processor = this_processor() if turns_are_short else -1
                _wake_next()
            if status != PY_LOCK_INTR:
                break
            PyErr_CheckSignals()
            if timeout > 0:
                left = _microseconds(until - monotonic())
        return status == PY_LOCK_ACQUIRED

    def release(self):
        """Wake who sleeps on it, now or later. Once only."""
        global _waking, _waking_since, _first, _last
        cdef double now
        if self._released:
            raise RuntimeError("release unlocked lock")
        self._released = True
        if not HAS_GIL or not self._asleep:
            PyThread_release_lock(self._lock)
            return
        now = monotonic()
        if _waking is not None and now - _waking_since < _patience:
            if _first is None:
                _first = self
            else:
                _last._next = self
            _last = self
            return
        while _first is not None:
            PyThread_release_lock(_take_first()._lock)
        _waking = self
        _waking_since = now
        PyThread_release_lock(self._lock)


cdef ParkingLock _take_first():
    """The one that was released first of those that have not been woken."""
    global _first, _last
    cdef ParkingLock lock = _first
    _first = lock._next
    lock._next = None
    if _first is None:
        _last = None
    return lock


cdef void _wake_next() noexcept:
    """Who was woken has the GIL: wake the next one."""
    global _waking, _waking_since
    cdef ParkingLock lock
    _waking = None
    while _first is not None and _waking is None:
        lock = _take_first()
        if lock._asleep:  # else it has timed out, or runs a signal handler
            _waking = lock
            _waking_since = monotonic()
        PyThread_release_lock(lock._lock)


def _forget():
    """In a forked child: who was being woken is not in this process."""
    global _waking, _turn_processor
    _waking = None
    _turn_processor = -1


def _set_patience(double seconds):
    """For tests. Return what it was."""
    global _patience
    before = _patience
    _patience = seconds
    return before


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

include "parking.py"
