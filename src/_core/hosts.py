"""The hosts of one cluster as the package uses them: one table, any number of threads.

On top of the parts below, each of which knows only those under it:

    HostTable     hosts.py     the list of hosts, their health; reserves a connection
    HostChoosing  choosing.py  which host is next
    HostCounts    leases.py    counts that are given back once
    Host, Tier    tiers.py     hosts, and their order of load

Decides: which hosts there are, as lists of them come and go; and counts a connection in the same
step as its host is chosen, so that threads that start together spread exactly. Load and health are
separate: a failure never changes a count.

Never: knows what a placement is (tiers arrive ready made), connects, reads a clock while all hosts
are in service, or takes a lock that anybody waits under. What holds inside a critical section is
said in state.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see hosts.pyx
    from ._shim import monotonic
    from .choosing import HostChoosing
    from .leases import Lease, new_lease
    from .tiers import Host, Place, Tier

# So many sets of tiers are kept in order, one for each policy in use. Each of them costs every
# change of a count a little; with more policies than that in one process, the others' tiers are
# searched from end to end.
_KEPT = 8


def is_compiled() -> bool:
    return cython.compiled


@cython.final
@cython.cclass
class HostTable(HostChoosing):
    """The hosts of one cluster. Safe for any number of threads; every method is one step."""

    __slots__ = ("_kept", "_known", "_listed")

    _listed: tuple  # type: ignore[type-arg]
    _known: WeakValueDictionary[str, Host]  # while listed, leased, or in a list still in use
    _kept: list[tuple[Tier, ...]]  # in order

    def __init__(self, seed: int) -> None:
        """`seed`, 1 to 2**64 - 1, starts the lots that decide between equally loaded hosts."""
        HostChoosing.__init__(self, seed)
        self._listed = ()
        self._known = WeakValueDictionary()
        self._kept = []

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
        with self._guard:
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
        i: cython.Py_ssize_t
        j: cython.Py_ssize_t
        for i in range(len(kept)):
            tiers = kept[i]
            for j in range(len(tiers)):
                tier = tiers[j]
                tier._let_go()
        return None

    def arrange(self, tiers: Sequence[Sequence[Host]]) -> tuple[Tier, ...]:
        """Tiers to reserve from, the best first, for as long as the list of hosts stays."""
        arranged = tuple([Tier(tuple(dict.fromkeys(hosts))) for hosts in tiers])
        tier: Tier
        i: cython.Py_ssize_t
        with self._guard:
            if len(self._kept) < _KEPT:
                for i in range(len(arranged)):
                    tier = arranged[i]
                    tier._keep()
                self._kept.append(arranged)
        return arranged

    @cython.cfunc
    def _take_over(self, host: Host | None, key: str, info: object) -> Host:
        """The host of a key, with what is now known of it."""
        if host is None:
            return Host(key, info)
        with host._guard:
            # Swapped, so that what is replaced is let go of outside the section.
            host._info, info = info, host._info
        return host

    def hosts(self) -> tuple[Host, ...]:
        """The hosts that are listed, and those no longer listed that still have connections."""
        self._collect_dropped()
        with self._guard:
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
        loaded, ties at random. When every remaining host is down, the same among those, because a
        connection that may fail is better than an error that need not be. None: all are tried.

        `now` is the time of the monotonic clock, which is read if need be where it is not given.
        """
        # Allocated before the section: an allocation may run the garbage collector.
        lease: Lease = new_lease(self)
        host: Host = None  # type: ignore[assignment]
        if self._dropped:
            self._collect_dropped()
        with self._guard:
            if tried is None and tiers:
                host = self._pick(tiers[0])
            if host is None:
                host = self._search(tiers, tried, now or monotonic())
            if host is not None:
                host._add(1)
                lease._host = host
                lease._active = True
        return lease if host is not None else None

    def mark_down(self, host: Host, until: cython.double, error: str) -> None:
        """Pass the host over until the clock reads `until`. Its count stays what it is."""
        host._down_until = until
        with host._guard:
            host._last_error = error

    def mark_up(self, host: Host) -> None:
        """Take the host into service at once: it has just been seen to answer."""
        host._down_until = 0.0
        with host._guard:
            host._last_error = ""

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


__all__ = ["Host", "HostTable", "Lease", "Tier", "is_compiled"]
