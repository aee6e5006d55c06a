"""Hosts, and their order within tiers: who carries how many connections.

Decides: where a host stands among those of its tier, the least loaded first. One connection more or
less moves it to the other end of its equals, which a binary search finds, so that it costs little
among a thousand hosts too.

Never: chooses among them, or knows the table, whose critical section guards counts and order.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import cython
else:
    from ybsmart._core import _shim as cython


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
    _guard: cython.pymutex  # of _info and _last_error; the rest belongs to the table
    _key: str
    _info: object
    _last_error: str
    _count: cython.Py_ssize_t
    _down_until: cython.double
    _listed: cython.bint
    if cython.compiled:  # else the name is not there yet
        _place: Place  # the first of a chain: one in each tier that has it and is kept in order

    def __init__(self, key: str, info: Any) -> None:
        if not cython.compiled:
            self._guard = cython.pymutex()
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
        with self._guard:
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
        with self._guard:
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
    if cython.compiled:  # else the name is not there yet
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
            new = first_with(order, count + 1, old + 1, len(order)) - 1
        else:
            new = first_with(order, count, 0, old)
        if new != old:
            other = cython.cast(Place, order[new])
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
def first_with(
    order: list[Place], count: cython.Py_ssize_t, low: cython.Py_ssize_t, high: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """The first index with that count or more, from `low` on; `high` if there is none below it."""
    place: Place
    middle: cython.Py_ssize_t
    while low < high:
        middle = (low + high) >> 1
        place = cython.cast(Place, order[middle])  # unchecked: this is the innermost loop
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

    @cython.cfunc
    def _let_go(self) -> object:
        """Follow the counts no longer. Caller holds the table's section, and the tier."""
        order: list[Place] = self._order
        place: Place
        i: cython.Py_ssize_t
        self._kept = False
        for i in range(len(order)):
            place = order[i]
            # In no cycle any more: a host goes with the last that refers to it.
            place._host._place = place._next = None  # type: ignore[assignment]
            place._order = None  # type: ignore[assignment]
        return None

    def __repr__(self) -> str:
        return f"<Tier {list(self._hosts)!r}>"


def _load(host: Host) -> int:
    return host.count
