"""Hosts of one cluster, how many connections each carries, and which one the next goes to.

Decides: the host for the next connection (the least loaded of the best tier that has one in
service; ties by lot), and counts it there in the same step, so that threads that start together
spread exactly. Load and health are separate: a failure never changes a count.

Never: knows what a placement is (tiers arrive ready made), connects, reads a clock, draws from the
system's random source, or takes a lock that anybody waits under.

A count belongs to a `Lease`, which gives it back once. Its finaliser only queues the host, because
the garbage collector may run it inside any critical section, this table's own included.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython


def is_compiled() -> bool:
    return cython.compiled


@cython.final
@cython.cclass
class Host:
    """One node as the table sees it: a key, what the shell knows of it, its count, its health."""

    __slots__ = (
        "__weakref__",
        "_count",
        "_down_until",
        "_guard",
        "_info",
        "_key",
        "_last_error",
        "_listed",
    )

    __weakref__: object
    _guard: object  # of _info and _last_error; the numbers belong to the table
    _key: str
    _info: object
    _last_error: str
    _count: cython.Py_ssize_t
    _down_until: cython.double
    _listed: cython.bint

    def __init__(self, key: str, info: Any) -> None:
        if not cython.compiled:
            self._guard = cython.new_guard()
        self._key = key
        self._info = info
        self._count = 0
        self._down_until = 0.0
        self._last_error = ""
        self._listed = True

    @property
    def key(self) -> str:
        """Identity within the cluster; outlives changes of address."""
        return self._key

    @property
    def info(self) -> Any:
        """What the shell stored: address, placement, node type."""
        with cython.critical_section(self):
            return self._info

    @property
    def count(self) -> int:
        """Connections counted here, open or being opened."""
        return self._count

    @property
    def listed(self) -> bool:
        """False once the cluster no longer lists the node; it stays here while it has a count."""
        return self._listed

    @property
    def down_until(self) -> float:
        """The clock's time until which the host is passed over; 0.0 when it is in service."""
        return self._down_until

    @property
    def last_error(self) -> str:
        """What failed last; empty after a success."""
        with cython.critical_section(self):
            return self._last_error

    def __repr__(self) -> str:
        return f"<Host {self._key} count={self._count}>"


@cython.final
@cython.cclass
class Lease:
    """One counted connection on one host. Released once, whoever asks and however often."""

    __slots__ = ("_active", "_host", "_once", "_table")

    _table: HostTable
    _host: Host
    _active: cython.bint
    _once: object  # uncompiled, whoever takes the one thing in it releases the lease

    def __init__(self, table: HostTable) -> None:
        """An empty lease; only `HostTable.reserve` fills it."""
        self._table = table
        self._host = None  # type: ignore[assignment]
        self._active = False
        if not cython.compiled:
            self._once = [None]

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
            if self._table._guard.locked():  # type: ignore[attr-defined]
                # Uncompiled, the garbage collector may have run the finaliser that calls this
                # inside a section of this very thread.
                self._active = False
                self._table._dropped.append(self._host)
                return True
        with cython.critical_section(self._table):
            if not self._active:
                return False
            self._active = False
            self._host._count -= 1
        return True

    def __del__(self) -> None:
        # No other reference is left, so nobody else can be releasing it.
        if self._active:
            self._active = False
            self._table._dropped.append(self._host)

    def __repr__(self) -> str:
        return f"<Lease {'on' if self._active else 'returned by'} {self._host!r}>"


@cython.final
@cython.cclass
class HostTable:
    """The hosts of one cluster. Safe for any number of threads; every method is one step."""

    __slots__ = ("_dropped", "_guard", "_known", "_listed", "_random")

    _guard: object
    _listed: tuple  # type: ignore[type-arg]
    _known: WeakValueDictionary[str, Host]  # while listed, leased, or in a list still in use
    _dropped: deque[Host]  # left by finalisers
    _random: cython.ulonglong

    def __init__(self, seed: int) -> None:
        """`seed`, 1 to 2**64 - 1, starts the lots that decide between equally loaded hosts."""
        if not cython.compiled:
            self._guard = cython.new_guard()
        self._listed = ()
        self._known = WeakValueDictionary()
        self._dropped = deque()
        self._random = seed

    def update(self, listed: list[tuple[str, Any]]) -> tuple[Host, ...]:
        """Take over a fresh list of (key, info); return its hosts, in its order.

        A host that is missing from it keeps its record, no longer listed, while it has a count or
        somebody still chooses from a list that has it. Callers update one at a time (the shell's
        refresh is single flight).
        """
        hosts: dict[str, Host] = {}
        host: Host
        for key, info in listed:
            hosts[key] = self._take_over(self._known.get(key), key, info)
        fresh = tuple(hosts.values())
        for host in self._alive():
            host._listed = host._key in hosts
        self._known.update(hosts)
        with cython.critical_section(self):
            before = self._listed
            self._listed = fresh
        del before  # outside: a host that goes with it is taken out of `_known` by Python code
        return fresh

    @cython.cfunc
    def _take_over(self, host: Host | None, key: str, info: object) -> Host:
        """The host of a key, with what is now known of it."""
        if host is None:
            return Host(key, info)
        with cython.critical_section(host):
            # Swapped, so that what is replaced is let go of outside the section.
            host._info, info = info, host._info
        return host

    def hosts(self) -> tuple[Host, ...]:
        """The hosts that are listed, and those no longer listed that still have connections."""
        self._collect_dropped()
        with cython.critical_section(self):
            listed = self._listed
        # By identity, because a list that is being taken over at this moment changes the flags.
        seen = set(listed)
        gone = [host for host in self._alive() if host.count and host not in seen]
        return (*listed, *gone)

    @cython.cfunc
    def _alive(self) -> list:  # type: ignore[type-arg]
        """All hosts that anybody has to do with."""
        # In one step, which iterating over the values would not be: another thread may add some.
        return [host for ref in self._known.valuerefs() if (host := ref()) is not None]

    def reserve(
        self,
        tiers: tuple[tuple[Host, ...], ...],
        now: cython.double,
        tried: set[Host] | None = None,
    ) -> Lease | None:
        """Count one more connection on the best host and return its lease.

        The best: of the first tier with a host that is in service and not in `tried`, the least
        loaded, ties by lot. When every remaining host is down, the same among those, because a
        connection that may fail is better than an error that need not be. None: all are tried.
        """
        # Allocated before the section: an allocation may run the garbage collector.
        lease: Lease = Lease(self)
        self._collect_dropped()
        with cython.critical_section(self):
            host = self._pick(tiers, now, tried, False)
            if host is None:
                host = self._pick(tiers, now, tried, True)
            if host is not None:
                host._count += 1
                lease._host = host
                lease._active = True
        return lease if host is not None else None

    @cython.cfunc
    def _pick(
        self,
        tiers: tuple,  # type: ignore[type-arg]
        now: cython.double,
        tried: object,
        last_resort: cython.bint,
    ) -> Host:
        """The least loaded host of the first tier that has any. Caller holds the section."""
        tier: tuple  # type: ignore[type-arg]
        host: Host
        best: Host
        fewest: cython.Py_ssize_t
        equals: cython.ulonglong
        for tier in tiers:
            best = None  # type: ignore[assignment]
            fewest = 0
            equals = 0
            for host in tier:
                if host._down_until > now and not last_resort:
                    continue
                if tried is not None and host in tried:  # type: ignore[operator]
                    continue
                if best is None or host._count < fewest:
                    best, fewest, equals = host, host._count, 1
                elif host._count == fewest:
                    # The k-th of k equals replaces the choice with probability 1/k, so that each
                    # of them is equally likely in one pass.
                    equals += 1
                    if self._draw() % equals == 0:
                        best = host
            if best is not None:
                return best
        return None  # type: ignore[return-value]

    @cython.cfunc
    @cython.inline
    def _draw(self) -> cython.ulonglong:
        """The next of Marsaglia's xorshift64 sequence. Caller holds the section."""
        x: cython.ulonglong = self._random
        x ^= x << 13
        if not cython.compiled:
            x &= 0xFFFFFFFFFFFFFFFF  # what a C integer does by itself
        x ^= x >> 7
        x ^= x << 17
        if not cython.compiled:
            x &= 0xFFFFFFFFFFFFFFFF
        self._random = x
        return x >> 11

    def mark_down(self, host: Host, until: cython.double, error: str) -> None:
        """Pass the host over until the clock reads `until`. Its count stays what it is."""
        host._down_until = until
        with cython.critical_section(host):
            host._last_error = error

    def mark_up(self, host: Host) -> None:
        """Take the host into service at once: it has just been seen to answer."""
        host._down_until = 0.0
        with cython.critical_section(host):
            host._last_error = ""

    @cython.cfunc
    def _collect_dropped(self) -> object:
        """Count off the leases that were collected instead of released."""
        dropped = self._dropped
        while dropped:
            try:
                host: Host = dropped.popleft()
            except IndexError:  # another thread took the last one
                break
            with cython.critical_section(self):
                host._count -= 1
        return None

    def check(self) -> None:
        """Raise if an invariant is broken. For tests; needs a table at rest."""
        for host in self.hosts():
            if host.count < 0:
                raise RuntimeError(f"bug: {host!r} counts below zero")

    def __repr__(self) -> str:
        return f"<HostTable {list(self.hosts())!r}>"
