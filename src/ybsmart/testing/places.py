"""Which addresses and ports the nodes of a cluster listen on.

A place is the cluster's own from when it is found until the cluster is closed, whether a server
listens there or not: a node that is down must not find somebody else's in its place when it comes
back. Clusters of other processes see that by a name that is bound, on Linux.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
import sys
from collections.abc import Callable, Sequence

LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")
DEFAULT_PORT = 5433
# Below the ports that systems give to outgoing connections: one of those could be taken when a
# node comes back, and whoever keeps trying a dead one could end up connected to itself.
_PORTS = range(10240, 32000)

Place = tuple[str, int]  # host and port


class Places:
    """Finds them: one address after the other, with the same port where that is free.

    Where the system has one loopback address only, each node has a port of its own instead. Not
    thread-safe. `release` must be called at the end.
    """

    def __init__(self, first_address: str, port: int | None) -> None:
        """port: that one or none; None for any."""
        self.port = port
        self._first_address = first_address
        self._used: set[Place] = set()
        self._claims: dict[Place, int] = {}

    def use(self, places: Sequence[Place]) -> None:
        """Servers have been started there: no later node will be."""
        self._used.update(places)

    def release(self) -> None:
        """Leave all places to others."""
        for place in [*self._claims]:
            self._give_up(place)

    def _take(self, host: str, port: int) -> bool:
        """Make the place this cluster's own if it is nobody's. OSError as `_is_free`."""
        place = (host, port)
        if place in self._claims:
            return _is_free(*place)
        claim = _claim(place)
        if claim is None:
            return False
        self._claims[place] = claim
        try:
            free = _is_free(*place)
        except OSError:
            self._give_up(place)
            raise
        if not free:
            self._give_up(place)
        return free

    def _take_all(self, places: Sequence[Place]) -> bool:
        taken: list[Place] = []
        for place in places:
            if not self._take(*place):
                for other in taken:
                    self._give_up(other)
                return False
            taken.append(place)
        return True

    def _give_up(self, place: Place) -> None:
        _abandon(self._claims.pop(place))

    def first(self, number: int) -> list[Place]:
        """So many free places. OSError if the given port is taken."""
        first = ipaddress.IPv4Address(self._first_address)
        hosts = [str(first + i) for i in range(number)]
        try:
            if self.port is not None:
                for host in hosts:
                    if not self._take(host, self.port):
                        raise OSError(
                            errno.EADDRINUSE,
                            f"port {self.port} is taken on {host}; None picks a free one",
                        )
                return [(host, self.port) for host in hosts]
            port = _first_port(lambda port: self._take_all([(host, port) for host in hosts]))
            return [(host, port) for host in hosts]
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        places: list[Place] = []
        for _ in range(number):
            places.append(self._by_port(places))
        return places

    def next(self, port: int) -> Place:
        """One more, with this port if possible: never where one of this cluster has been."""
        address = max(ipaddress.IPv4Address(host) for host, _ in self._used) + 1
        try:
            while address in LOOPBACK:
                if self._take(str(address), port):
                    return str(address), port
                address += 1
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        return self._by_port(())

    def _by_port(self, taken: Sequence[Place]) -> Place:
        host = self._first_address
        start = self.port or DEFAULT_PORT
        for port in range(start, 65536):
            place = (host, port)
            if place not in taken and place not in self._used and self._take(host, port):
                return place
        raise OSError(errno.EADDRINUSE, f"no free port on {host} from {start} on")


_open_claims: set[int] = set()  # of all clusters of this process


def _claim(place: Place) -> int | None:
    """A socket whose name says that the place is taken; None if it is. It ends with the process.

    Not a file, which somebody would have to remove; not a socket bound to the place itself, which
    would not keep servers from listening there, since they set SO_REUSEADDR.
    """
    if sys.platform != "linux":  # has no such names
        return -1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(f"\0ybsmart.testing {place[0]}:{place[1]}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        claim = holder.detach()
    _open_claims.add(claim)
    return claim


def _abandon(claim: int) -> None:
    if claim in _open_claims:  # and not a forked child's, nor one of a system without
        _open_claims.remove(claim)
        os.close(claim)


def _abandon_all() -> None:
    """In a forked child: the places are its parent's, and are free when that gives them up."""
    for claim in [*_open_claims]:
        _abandon(claim)


os.register_at_fork(after_in_child=_abandon_all)


def _is_free(host: str, port: int) -> bool:
    """OSError when it is not a question of being free: no such address, a port not allowed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server does, so that closed connections of an earlier one do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _first_port(free: Callable[[int], bool]) -> int:
    if free(DEFAULT_PORT):
        return DEFAULT_PORT
    for port in random.sample(_PORTS, 200):
        if free(port):
            return port
    raise OSError(errno.EADDRINUSE, f"no free port found from {_PORTS.start} to {_PORTS.stop}")
