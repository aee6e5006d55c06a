"""Leases: a count belongs to one, and is given back once.

Decides: who gives a count back, when several try. The finaliser of a lease only leaves a note of
its host, because the garbage collector may run it inside any critical section, the table's own
included.

Never: chooses a host, or knows whether it is in service: no failure changes a count.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see hosts.pyx
    from .tiers import Host


@cython.cclass
class HostCounts:
    """What a lease needs of the table that it counts in."""

    __slots__ = ("_dropped", "_guard")

    _guard: cython.pymutex
    _dropped: list[Host]  # left by finalisers

    def __init__(self) -> None:
        if not cython.compiled:
            self._guard = cython.pymutex()
        self._dropped = []

    @cython.cfunc
    def _collect_dropped(self) -> object:
        """Count off the leases that were collected instead of released."""
        dropped: list[Host] = self._dropped
        host: Host
        while dropped:
            try:
                host = dropped.pop()
            except IndexError:  # another thread took the last one
                break
            with self._guard:
                host._add(-1)
        return None


@cython.final
@cython.no_gc  # neither the table nor a host refers to a lease
@cython.freelist(64)
@cython.cclass
class Lease:
    """One counted connection on one host. Released once, whoever asks and however often."""

    __slots__ = ("_active", "_host", "_once", "_table")

    _table: HostCounts
    _host: Host
    _active: cython.bint
    _once: object  # uncompiled, whoever takes the one thing in it releases the lease

    # Made by `new_lease` alone.

    @property
    def host(self) -> Host:
        return self._host

    @property
    def active(self) -> bool:
        """Whether the connection still counts."""
        return self._active

    def release(self) -> bool:
        """Give the count back. True the first time, False and without effect ever after."""
        if not cython.compiled:
            if not self._active or not self._once:
                return False
            try:
                self._once.pop()  # type: ignore[attr-defined]
            except IndexError:  # another thread was quicker
                return False
            if self._table._guard.locked():
                # Uncompiled, the garbage collector may have run the finaliser that calls this
                # inside a section of this very thread.
                self._active = False
                self._table._dropped.append(self._host)
                return True
        with self._table._guard:
            if not self._active:
                return False
            self._active = False
            self._host._add(-1)
        return True

    def __dealloc__(self) -> None:
        # No other reference is left, so nobody else can be releasing it.
        if self._active:
            self._active = False
            self._table._dropped.append(self._host)

    def __repr__(self) -> str:
        return f"<Lease {'on' if self._active else 'returned by'} {self._host!r}>"


if not cython.compiled:
    Lease.__del__ = Lease.__dealloc__  # type: ignore[attr-defined]


@cython.cfunc
@cython.inline
def new_lease(table: HostCounts) -> Lease:
    """A lease on nothing."""
    lease: Lease = Lease.__new__(Lease)
    lease._table = table
    lease._active = False
    if not cython.compiled:
        lease._once = [None]
    return lease
