"""Checks the arguments of `LocalCluster`: returns the value, or raises ValueError."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from . import yb_servers
from .places import LOOPBACK

DEFAULT_PLACEMENTS = (
    "aws.us-west.us-west-2a",
    "aws.us-west.us-west-2a",
    "aws.us-west.us-west-2b",
)
MAX_NODES = 100
_NODE_TYPES = ("primary", "read_replica")


def check_placements(placements: Sequence[str] | int) -> list[str]:
    if isinstance(placements, int) and not isinstance(placements, bool):
        check_whole("placements", placements, 1, MAX_NODES)
        return [DEFAULT_PLACEMENTS[i % len(DEFAULT_PLACEMENTS)] for i in range(placements)]
    if not isinstance(placements, Sequence) or isinstance(placements, (str, bytes)):
        raise ValueError(
            f'placements must be a number or a sequence of "cloud.region.zone", not {placements!r}'
        )
    if not 1 <= len(placements) <= MAX_NODES:
        raise ValueError(f"placements must be 1 to {MAX_NODES}, not {len(placements)}")
    return [check_placement("placements", placement) for placement in placements]


def check_placement(name: str, value: object) -> str:
    if not isinstance(value, str) or len(parts := value.split(".")) != 3 or not all(parts):
        raise ValueError(f'{name} must be of the form "cloud.region.zone", not {value!r}')
    return value


def check_node_type(value: str) -> str:
    if value not in _NODE_TYPES:
        raise ValueError(f"node_type must be one of {', '.join(_NODE_TYPES)}, not {value!r}")
    return value


def check_text(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{name} must be a string, not {value!r}")
    return value


def check_whole(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def check_columns(value: object) -> int:
    return check_whole("columns", value, 8, len(yb_servers.COLUMNS))


def check_loopback(value: str, number: int) -> str:
    try:
        first = ipaddress.IPv4Address(value) if isinstance(value, str) else None
        if first is not None and first in LOOPBACK:
            last = first + number - 1
            if LOOPBACK.network_address < first and last < LOOPBACK.broadcast_address:
                return value
    except ValueError:
        pass
    raise ValueError(
        f"first_address must be in {LOOPBACK}, with room for {number} nodes, not {value!r}"
    )
