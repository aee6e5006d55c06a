# cython: preliminary_late_includes_cy28=True
"""The pool compiled: all its parts in one module, because Cython reaches C fields only within one.

Has nothing of its own but a clock that tests can stop, and what stands in for
`_shim.which_process`. Uncompiled, the parts are modules that import each other; an included file
must not have a `from __future__` of its own.
"""

from __future__ import annotations

cimport cython
from cpython.pythread cimport PyThread_get_thread_ident as get_ident
from cpython.time cimport monotonic as _python_clock

# Where it is one call, the clock that `time.monotonic` reads, in half of its time.
cdef extern from *:
    """
    #ifdef __linux__
    #include <time.h>
    #define YBSMART_HAS_CLOCK 1
    static double ybsmart_clock(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    }
    #else
    #define YBSMART_HAS_CLOCK 0
    static double ybsmart_clock(void) { return 0.0; }
    #endif
    """
    const bint _HAS_CLOCK "YBSMART_HAS_CLOCK"
    double _linux_clock "ybsmart_clock"() noexcept

cdef double _stopped_at = -1.0


cdef inline double monotonic() noexcept:
    if _stopped_at >= 0.0:
        return _stopped_at
    return _linux_clock() if _HAS_CLOCK else _python_clock()


def _stop_clock(double at):
    """Have the clock stand at this time; go on below zero."""
    global _stopped_at
    _stopped_at = at


# Which process this is, told by the C library: a program that is not Python may fork without
# telling Python (uWSGI does), and asking the system each time would cost too much.
cdef extern from *:
    """
    static volatile long ybsmart_forks = 0;
    #ifdef _WIN32
    static int ybsmart_watch_forks(void) { return 0; }
    #else
    #include <pthread.h>
    static void ybsmart_count_fork(void) { ybsmart_forks++; }
    static int ybsmart_watch_forks(void)
    {
        return pthread_atfork(NULL, NULL, ybsmart_count_fork);
    }
    #endif
    static long ybsmart_which_process(void) { return ybsmart_forks; }
    """
    int watch_forks "ybsmart_watch_forks"()
    long which_process "ybsmart_which_process"()  # how many forks ago the first one began

watch_forks()

include "sections.pxi"
include "waiters.py"
include "slots.py"
include "times.py"
include "hooks.py"
include "state.py"
include "openings.py"
include "closing.py"
include "lending.py"
include "queueing.py"
include "sweeping.py"
include "loans.py"
include "checkout.py"
include "pool.py"
