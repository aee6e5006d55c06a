"""Addresses as texts, and how a node is reached: by its private or its public address, or by one of
the user's own.

Pure data: knows texts and lists of IP addresses. Never resolves a name and never connects.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Protocol

from .named_tuples import LeanNamedTuple


def is_address(host: str) -> bool:
    """Whether a host is an IP address, so that there is nothing to resolve."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def host_port(host: str, port: int | str) -> str:
    """A place as people and URLs write it, and as reports and `evict` know a node."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Addressed(Protocol):
    """A row of `yb_servers()`, with what its names resolve to."""

    @property
    def host(self) -> str: ...
    @property
    def public_ip(self) -> str: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def public_addresses(self) -> tuple[str, ...]: ...


def public_or_private(nodes: Iterable[Addressed], ways_in: Collection[str]) -> bool | None:
    """Whether the cluster is reached by public addresses: True, False, or None for unknown.

    `ways_in`: the names and addresses by which one of its servers has just been reached. The rule
    is that of YugabyteDB's drivers: a host that is known by its private address is private, and
    None (a load balancer in front, for instance) means to try.
    """
    verdict = None
    for node in nodes:
        if node.host in ways_in or not set(node.addresses).isdisjoint(ways_in):
            return False
        if node.public_ip in ways_in or not set(node.public_addresses).isdisjoint(ways_in):
            verdict = True
    return verdict


class AddressMap(LeanNamedTuple):
    """Where to connect to instead of a node's own address: for port mappings and poolers.

    `rules`: (host, port) to (host, port), the first that fits decides. As what to look for, an
    empty port is any, and the host `*` is any; as where to go, an empty one stays what it is.
    """

    rules: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rules)

    def find(self, host: str, port: int) -> tuple[str, str] | None:
        """The host and port to go to; None for the node's own."""
        for (from_host, from_port), (to_host, to_port) in self.rules:
            if from_host in ("*", host) and from_port in ("", str(port)):
                return to_host or host, to_port or str(port)
        return None


_PLACE = r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\[\]:\s]*))(?::(?P<port>\d{1,5}))?"


def parse_address_map(text: str) -> AddressMap:
    """Read `host[:port]=host[:port]`, comma separated. ValueError names the rule at fault."""
    rules = []
    for rule in text.split(","):
        source, equals, target = rule.partition("=")
        if not equals:
            raise ValueError(f"{rule.strip()!r} has no '='")
        from_host, from_port = _place(source)
        to_host, to_port = _place(target)
        if not from_host or to_host == "*" or not (to_host or to_port):
            raise ValueError(f"{rule.strip()!r} does not say which node goes where")
        rules.append(((from_host, from_port), (to_host, to_port)))
    return AddressMap(tuple(rules))


def _place(text: str) -> tuple[str, str]:
    match = re.fullmatch(_PLACE, text.strip())
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise ValueError(f"{text.strip()!r} is no host with a port")
    return match["v6"] or match["host"] or "", match["port"] or ""
