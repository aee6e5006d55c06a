"""The compiled form of parking.py, and the lock that only compiled code can have."""

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

cdef extern from "pythread.h":
    const long long PY_TIMEOUT_MAX
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible
    ) nogil


cdef long long _microseconds(double seconds) noexcept:
    """As `PyThread_acquire_lock_timed` wants them: rounded up, not to be back too soon."""
    if seconds <= 0:
        return 0
    if seconds * 1e6 >= PY_TIMEOUT_MAX:
        return PY_TIMEOUT_MAX
    return <long long>ceil(seconds * 1e6)


cdef class ParkingLock:
    """A lock, held from the start, that is released without the GIL.

    Who releases it refers to it for so long: the sleeper may be gone before the release is over.
    """

    cdef PyThread_type_lock _lock

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
        cdef double until = 0
        cdef long long left = -1
        cdef PyLockStatus status
        if timeout != timeout:
            raise ValueError("timeout must be a number of seconds, not NaN")
        status = PyThread_acquire_lock_timed(self._lock, 0, 0)
        if not blocking or timeout == 0:
            return status == PY_LOCK_ACQUIRED
        if timeout > 0:
            until = monotonic() + timeout
            left = _microseconds(timeout)
        while status != PY_LOCK_ACQUIRED:
            with nogil:
                status = PyThread_acquire_lock_timed(self._lock, left, 1)
            if status != PY_LOCK_INTR:
                break
            PyErr_CheckSignals()
            if timeout > 0:
                left = _microseconds(until - monotonic())
        return status == PY_LOCK_ACQUIRED

    def release(self):
        """Wake who sleeps on it, now or later. Once only."""
        with nogil:
            PyThread_release_lock(self._lock)


include "parking.py"
