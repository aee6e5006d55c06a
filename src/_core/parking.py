"""What a thread sleeps on until another one wakes it.

Decides in which order threads that are woken go on, and is no part of the pool: the shell alone
uses it, outside every critical section. It is here because it has to be compiled, see parking.pyx;
uncompiled, and under gevent, a `threading.Lock` does instead.
"""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython


def is_compiled() -> bool:
    return cython.compiled


def held_lock() -> threading.Lock:
    """A new lock that is held, for one thread to wait for with `acquire`, and another to
    `release`, once."""
    # Looked up now, and not when this module was imported: gevent may have replaced it.
    new_lock = threading.Lock
    if cython.compiled and new_lock.__module__ == "_thread":
        return ParkingLock()  # type: ignore[name-defined, no-any-return]  # of parking.pyx
    lock = new_lock()
    lock.acquire()
    return lock
