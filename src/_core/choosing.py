"""Which host the next connection goes to.

Decides: the least loaded of the best tier that has one in service; ties at random.

Never: counts, or draws from the system's random source.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython

if not cython.compiled:  # else all are in one module, see hosts.pyx
    from .leases import HostCounts
    from .tiers import Host, Place, Tier, first_with


@cython.cclass
class HostChoosing(HostCounts):
    __slots__ = ("_random",)

    _random: cython.ulonglong

    def __init__(self, seed: int) -> None:
        HostCounts.__init__(self)
        self._random = seed

    @cython.cfunc
    def _pick(self, tier: Tier) -> Host:
        """One of the least loaded of a tier, if that is quickly told. Caller holds the section."""
        order: list[Place] = tier._order
        number: cython.Py_ssize_t = len(order)
        place: Place
        equals: cython.ulonglong
        drawn: cython.Py_ssize_t
        if not tier._kept or number == 0:
            return None  # type: ignore[return-value]
        place = cython.cast(Place, order[0])
        equals = first_with(order, place._host._count + 1, 1, number)
        if equals > 1:
            # 32 of the 53 bits, scaled: no division.
            drawn = cython.cast(cython.Py_ssize_t, (self._draw() >> 21) * equals >> 32)
            place = cython.cast(Place, order[drawn])
        return None if place._host._down_until else place._host  # type: ignore[return-value]

    @cython.cfunc
    def _search(self, tiers: tuple, tried: object, now: cython.double) -> Host:  # type: ignore[type-arg]
        """The best host, all things considered. Caller holds the section."""
        tier: Tier
        host: Host
        i: cython.Py_ssize_t
        number: cython.Py_ssize_t = len(tiers)
        for i in range(2 * number):  # the second time round, those that are down as well
            tier = tiers[i % number]
            host = self._search_tier(tier, tried, now, i >= number)
            if host is not None:
                return host
        return None  # type: ignore[return-value]

    @cython.cfunc
    def _search_tier(
        self, tier: Tier, tried: object, now: cython.double, last_resort: cython.bint
    ) -> Host:
        order: list[Place] = tier._order
        place: Place
        i: cython.Py_ssize_t
        host: Host
        best: Host = None  # type: ignore[assignment]
        fewest: cython.Py_ssize_t = 0
        equals: cython.ulonglong = 0
        for i in range(len(order)):
            place = order[i]
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
