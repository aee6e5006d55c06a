"""Stand-ins for the few names of the `cython` module that the core uses.

Decides nothing: it lets the core's sources run uncompiled without importing Cython, which is a
build requirement and never a run-time one (and whose import costs more than all of `ybsmart`).
When a module is compiled, Cython supplies these names itself and this file is not consulted.
"""

from __future__ import annotations

import mmap
import sys
from _thread import allocate_lock, get_ident
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

compiled = False

# The C types that the core annotates with; uncompiled they are ordinary Python objects.
bint = bool
int = int  # noqa: PLW0127 (as an attribute of this module)
Py_ssize_t = longlong = ulonglong = int
double = float


def _unchanged(obj: T) -> T:
    return obj


address = cclass = cfunc = ccall = inline = no_gc = _unchanged


def final(cls: type[T]) -> type[T]:
    """Refuse subclasses, as the compiled class does."""

    def refuse(sub: type[T], **_: Any) -> None:
        raise TypeError(f"type '{cls.__name__}' is not an acceptable base type")

    cls.__init_subclass__ = classmethod(refuse)  # type: ignore[assignment, arg-type]
    return cls


def freelist(_size: int) -> Callable[[T], T]:
    return _unchanged


def cast(_type: Any, obj: Any) -> Any:
    return obj


# Uncompiled, a critical section takes a lock also under the GIL: several bytecodes are not atomic.
# It is the interpreter's lock, also after gevent's monkey patching, because nothing inside a
# section ever waits, so that two greenlets of one thread can never meet in it.
_OF_LOCKS = ("__enter__", "__exit__", "acquire", "locked", "release")


def pymutex() -> Any:
    """Such a lock, with its methods in a class of its own: `with` finds them bound there, and need
    not bind them each time, which takes a third of a section."""
    lock = allocate_lock()
    methods = {name: getattr(lock, name) for name in _OF_LOCKS}
    return type("Guard", (), {"__slots__": (), **methods})()


_WIPE_ON_FORK = 18  # Linux's MADV_WIPEONFORK, which Python has no name for
_NO_ADVICE = -1  # who takes that, as an emulator of Linux may, ignores what it does not know


def _takes(memory: mmap.mmap, advice: int) -> bool:
    """Whether the system does; from 4.14 on, Linux has that of above."""
    try:
        memory.madvise(advice)
    except OSError:
        return False
    return True


def _note_process() -> Callable[[], int]:
    """Make `which_process`, which tells this process from those that it forks, or that forked it.

    A program that is not Python may fork without telling Python. Asking the system each time would
    be the dearest part of a loan, so its answer is kept where a forked child finds zero instead.
    """
    if not sys.platform.startswith("linux"):
        return getpid
    memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if not _takes(memory, _WIPE_ON_FORK) or _takes(memory, _NO_ADVICE):
        return getpid
    noted = memoryview(memory).cast("q")

    def note() -> int:
        noted[0] = getpid()
        return noted[0]

    def which_process() -> int:
        return noted[0] or note()

    return which_process


which_process = _note_process()

__all__ = ["get_ident", "monotonic", "pymutex", "which_process"]
