"""Which addresses and ports the nodes of a cluster listen on."""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
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
    thread-safe.
    """

    def __init__(self, first_address: str, port: int | None) -> None:
        """port: that one or none; None for any."""
        self.port = port
        self._first_address = first_address
        self._used: set[Place] = set()

    def use(self, places: Sequence[Place]) -> None:
        """Servers have been started there: no later node will be."""
        self._used.update(places)

    def first(self, number: int) -> list[Place]:
        """So many free places. OSError if the given port is taken."""
        first = ipaddress.IPv4Address(self._first_address)
        hosts = [str(first + i) for i in range(number)]
        try:
            if self.port is not None:
                for host in hosts:
                    if not _is_free(host, self.port):
                        raise OSError(
                            errno.EADDRINUSE,
                            f"port {self.port} is taken on {host}; None picks a free one",
                        )
                return [(host, self.port) for host in hosts]
            port = _first_port(lambda port: all(_is_free(host, port) for host in hosts))
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
                if _is_free(str(address), port):
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
            if place not in taken and place not in self._used and _is_free(host, port):
                return place
        raise OSError(errno.EADDRINUSE, f"no free port on {host} from {start} on")


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
