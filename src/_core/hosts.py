# cython: boundscheck=False, wraparound=False
"""Hosts of one cluster, how many connections each carries, and which one the next goes to.

Decides: the host for the next connection (the least loaded of the best tier that has one in
service; ties by lot), and counts it there in the same step, so that threads that start together
spread exactly. Load and health are separate: a failure never changes a count.

Tiers are kept in order of load: one connection more or less moves a host to the other end of its
equals, which a binary search finds. So choosing among a thousand hosts takes hardly longer than
among three.

Never: knows what a placement is (tiers arrive ready made), connects, reads a clock while all hosts
are in service, draws from the system's random source, or takes a lock that anybody waits under.

A count belongs to a `Lease`, which gives it back once. Its finaliser only queues the host, because
the garbage collector may run it inside any critical section, this table's own included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import cython

    from ._shim import monotonic
else:
    from ybsmart._core import _shim as cython

    if cython.compiled:
        from cython.cimports.cpython.time import monotonic
    else:
        from ybsmart._core._shim import monotonic


# So many sets of tiers are kept in order, one for each policy in use. Each of them costs every
# change of a count a little; with more policies than that in one process, the others' tiers are
# searched from end to end.
_KEPT = 8


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
        "_place",
    )

    __weakref__: object
    _guard: object  # of _info and _last_error; the rest belongs to the table
    _key: str
    _info: object
    _last_error: str
    _count: cython.Py_ssize_t
    _down_until: cython.double
    _listed: cython.bint
    _place: Place  # the first of a chain: one in each tier that has it and is kept in order

    def __init__(self, key: str, info: Any) -> None:
        if not cython.compiled:
            self._guard = cython.new_guard()
        self._key = key
        self._info = info
        self._count = 0
        self._down_until = 0.0
        self._last_error = ""
        self._listed = True
        self._place = None  # type: ignore[assignment]

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

    @cython.cfunc
    def _add(self, change: cython.Py_ssize_t) -> object:
        """Count one connection more or less. Caller holds the table's section."""
        place: Place = self._place
        while place is not None:
            place._make_way(change)
            place = place._next
        self._count += change
        return None


@cython.final
@cython.cclass
class Place:
    """Where a host stands in a tier. Belongs to the table."""

    __slots__ = ("_host", "_index", "_next", "_order")

    _host: Host
    _index: cython.Py_ssize_t
    _order: list[Place]  # the tier's, with this place at `_index`, while it is kept in order
    _next: Place  # of the same host, in another tier

    def __init__(self, host: Host) -> None:
        self._host = host
        self._index = 0
        self._order = None  # type: ignore[assignment]
        self._next = None  # type: ignore[assignment]

    @cython.cfunc
    def _make_way(self, change: cython.Py_ssize_t) -> object:
        """Go to that end of the equally loaded where one more, or one less, is still in order."""
        order: list[Place] = self._order
        count: cython.Py_ssize_t = self._host._count
        old: cython.Py_ssize_t = self._index
        new: cython.Py_ssize_t
        other: Place
        if change > 0:
            new = _first_with(order, count + 1, old + 1, len(order)) - 1
        else:
            new = _first_with(order, count, 0, old)
        if new != old:
            other = order[new]
            order[new] = self
            self._index = new
            order[old] = other
            other._index = old
        return None

    @cython.cfunc
    def _is_linked(self) -> cython.bint:
        """Whether its host knows of it."""
        place: Place = self._host._place
        while place is not None and place is not self:
            place = place._next
        return place is self


@cython.cfunc
def _first_with(
    order: list[Place], count: cython.Py_ssize_t, low: cython.Py_ssize_t, high: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """The first index with that count or more, from `low` on; `high` if there is none below it."""
    place: Place
    middle: cython.Py_ssize_t
    while low < high:
        middle = (low + high) >> 1
        place = order[middle]
        if place._host._count < count:
            low = middle + 1
        else:
            high = middle
    return low


@cython.final
@cython.cclass
class Tier:
    """Hosts among which nothing but load and health decides. Made by `HostTable.arrange`."""

    __slots__ = ("_hosts", "_kept", "_order")

    _hosts: tuple  # type: ignore[type-arg]
    _order: list[Place]  # one for each host
    _kept: cython.bint  # in order: the least loaded first

    def __init__(self, hosts: tuple[Host, ...]) -> None:
        self._hosts = hosts
        self._order = [Place(host) for host in sorted(hosts, key=_load)]
        self._kept = False

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Its hosts, as they were given."""
        return self._hosts

    @cython.cfunc
    def _keep(self) -> object:
        """Be in order, and follow the counts from now on. Caller holds the table's section."""
        order: list[Place] = self._order
        place: Place
        other: Place
        i: cython.Py_ssize_t
        number: cython.Py_ssize_t
        # Insertion, which is quick because they are sorted but for what has changed meanwhile.
        for number in range(len(order)):
            place = order[number]
            i = number
            while i > 0:
                other = order[i - 1]
                if other._host._count <= place._host._count:
                    break
                order[i] = other
                other._index = i
                i -= 1
            order[i] = place
            place._index = i
            place._order = order
            place._next = place._host._place
            place._host._place = place
        self._kept = True
        return None

    def __repr__(self) -> str:
        return f"<Tier {list(self._hosts)!r}>"


def _load(host: Host) -> int:
    return host.count


@cython.final
@cython.no_gc  # neither the table nor a host refers to a lease
@cython.freelist(64)
@cython.cclass
class Lease:
    """One counted connection on one host. Released once, whoever asks and however often."""

    __slots__ = ("_active", "_host", "_once", "_table")

    _table: HostTable
    _host: Host
    _active: cython.bint
    _once: object  # uncompiled, whoever takes the one thing in it releases the lease

    # Made by `_new_lease` alone.

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
def _new_lease(table: HostTable) -> Lease:
    """A lease on nothing."""
    lease: Lease = Lease.__new__(Lease)
    lease._table = table
    lease._active = False
    if not cython.compiled:
        lease._once = [None]
    return lease


@cython.final
@cython.cclass
class HostTable:
    """The hosts of one cluster. Safe for any number of threads; every method is one step."""

    __slots__ = ("_dropped", "_guard", "_kept", "_known", "_listed", "_random")

    _guard: object
    _listed: tuple  # type: ignore[type-arg]
    _known: WeakValueDictionary[str, Host]  # while listed, leased, or in a list still in use
    _kept: list[tuple[Tier, ...]]  # in order
    _dropped: list[Host]  # left by finalisers
    _random: cython.ulonglong

    def __init__(self, seed: int) -> None:
        """`seed`, 1 to 2**64 - 1, starts the lots that decide between equally loaded hosts."""
        if not cython.compiled:
            self._guard = cython.new_guard()
        self._listed = ()
        self._known = WeakValueDictionary()
        self._kept = []
        self._dropped = []
        self._random = seed

    def update(self, listed: list[tuple[str, Any]]) -> tuple[Host, ...]:
        """Take over a fresh list of (key, info); return its hosts, in its order.

        A host that is missing from it keeps its record, no longer listed, while it has a count or
        somebody still chooses from a list that has it. What was arranged before serves on, but is
        not kept in order any more: arrange the new hosts. Callers update one at a time (the
        shell's refresh is single flight).
        """
        hosts: dict[str, Host] = {}
        host: Host
        for key, info in listed:
            hosts[key] = self._take_over(self._known.get(key), key, info)
        fresh = tuple(hosts.values())
        for host in self._alive():
            host._listed = host._key in hosts
        self._known.update(hosts)
        nothing: list[tuple[Tier, ...]] = []
        with cython.critical_section(self):
            before = self._listed
            self._listed = fresh
            kept, self._kept = self._kept, nothing
            self._let_go(kept)
        # Outside: a host that goes with one of these is taken out of `_known` by Python code.
        del before, kept
        return fresh

    @cython.cfunc
    def _let_go(self, kept: list[tuple[Tier, ...]]) -> object:
        """Follow the counts no longer. Caller holds the section, and the tiers."""
        tiers: tuple  # type: ignore[type-arg]
        tier: Tier
        place: Place
        for tiers in kept:
            for tier in tiers:
                tier._kept = False
                for place in tier._order:
                    # In no cycle any more: a host goes with the last that refers to it.
                    place._host._place = place._next = None  # type: ignore[assignment]
                    place._order = None  # type: ignore[assignment]
        return None

    def arrange(self, tiers: Sequence[Sequence[Host]]) -> tuple[Tier, ...]:
        """Tiers to reserve from, the best first, for as long as the list of hosts stays."""
        arranged = tuple([Tier(tuple(dict.fromkeys(hosts))) for hosts in tiers])
        tier: Tier
        with cython.critical_section(self):
            if len(self._kept) < _KEPT:
                for tier in arranged:
                    tier._keep()
                self._kept.append(arranged)
        return arranged

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
        tiers: tuple,  # type: ignore[type-arg]
        tried: set[Host] | None = None,
        now: cython.double = 0.0,
    ) -> Lease | None:
        """Count one more connection on the best host and return its lease.

        The best: of the first tier with a host that is in service and not in `tried`, the least
        loaded, ties by lot. When every remaining host is down, the same among those, because a
        connection that may fail is better than an error that need not be. None: all are tried.

        `now` is the time of the monotonic clock, which is read if need be where it is not given.
        """
        # Allocated before the section: an allocation may run the garbage collector.
        lease: Lease = _new_lease(self)
        host: Host = None  # type: ignore[assignment]
        if self._dropped:
            self._collect_dropped()
        with cython.critical_section(self):
            if tried is None and tiers:
                host = self._pick(tiers[0])
            if host is None:
                host = self._search(tiers, tried, now or monotonic())
            if host is not None:
                host._add(1)
                lease._host = host
                lease._active = True
        return lease if host is not None else None

    @cython.cfunc
    def _pick(self, tier: Tier) -> Host:
        """One of the least loaded of a tier, if that is quickly told. Caller holds the section."""
        order: list[Place] = tier._order
        number: cython.Py_ssize_t = len(order)
        place: Place
        equals: cython.ulonglong
        if not tier._kept or number == 0:
            return None  # type: ignore[return-value]
        place = order[0]
        equals = _first_with(order, place._host._count + 1, 1, number)
        if equals > 1:
            place = order[cython.cast(cython.Py_ssize_t, self._draw() % equals)]
        return None if place._host._down_until else place._host  # type: ignore[return-value]

    @cython.cfunc
    def _search(self, tiers: tuple, tried: object, now: cython.double) -> Host:  # type: ignore[type-arg]
        """The best host, all things considered. Caller holds the section."""
        tier: Tier
        host: Host
        last_resort: cython.bint
        for last_resort in (False, True):
            for tier in tiers:
                host = self._search_tier(tier, tried, now, last_resort)
                if host is not None:
                    return host
        return None  # type: ignore[return-value]

    @cython.cfunc
    def _search_tier(
        self, tier: Tier, tried: object, now: cython.double, last_resort: cython.bint
    ) -> Host:
        place: Place
        host: Host
        best: Host = None  # type: ignore[assignment]
        fewest: cython.Py_ssize_t = 0
        equals: cython.ulonglong = 0
        for place in tier._order:
            host = place._host
            if best is not None and host._count > fewest:
                if tier._kept:
                    break  # all that follow have more as well
                continue
            if host._down_until > now and not last_resort:
                continue
            if tried is not None and host in tried:  # type: ignore[operator]
                continue
            if best is None or host._count < fewest:
                best, fewest, equals = host, host._count, 1
            else:
                # The k-th of k equals replaces the choice with probability 1/k, so that each of
                # them is equally likely in one pass.
                equals += 1
                if self._draw() % equals == 0:
                    best = host
        return best

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
        dropped: list[Host] = self._dropped
        host: Host
        while dropped:
            try:
                host = dropped.pop()
            except IndexError:  # another thread took the last one
                break
            with cython.critical_section(self):
                host._add(-1)
        return None

    def check(self) -> None:
        """Raise if an invariant is broken. For tests; needs a table at rest."""
        for host in self.hosts():
            if host.count < 0:
                raise RuntimeError(f"bug: {host!r} counts below zero")
        tier: Tier
        place: Place
        for tiers in self._kept:
            for tier in tiers:
                least = 0
                for i, place in enumerate(tier._order):
                    if place._index != i or not place._is_linked():
                        raise RuntimeError(f"bug: {place._host!r} does not know its place, {i}")
                    if place._host._count < least:
                        raise RuntimeError(f"bug: {tier!r} is not in order of load")
                    least = place._host._count

    def __repr__(self) -> str:
        return f"<HostTable {list(self.hosts())!r}>"
