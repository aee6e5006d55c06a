"""Tiers: the documented orders of selection, as data."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ybsmart.placement import Policy, parse_topology_keys


@dataclass(frozen=True)
class Node:
    cloud: str
    region: str
    zone: str
    node_type: str = "primary"


# Primaries in dc1, dc2, dc3; read replicas in dc2, dc3, dc4: YugabyteDB's own test set-up.
SIX = [Node("c", "r", f"dc{n}") for n in (1, 2, 3)] + [
    Node("c", "r", f"dc{n}", "read_replica") for n in (2, 3, 4)
]
KEYS = "c.r.dc2:1,c.r.dc3:2"


def tiers(mode: str, keys: str = "", keys_only: bool = False) -> list[list[int]]:
    policy = Policy(mode, parse_topology_keys(keys) if keys else (), keys_only)
    return [[i + 1 for i in tier] for tier in policy.tiers(SIX)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("any", [[1, 2, 3, 4, 5, 6]]),
        ("only-primary", [[1, 2, 3]]),
        ("only-rr", [[4, 5, 6]]),
        ("prefer-primary", [[1, 2, 3], [4, 5, 6]]),
        ("prefer-rr", [[4, 5, 6], [1, 2, 3]]),
    ],
)
def test_order_without_topology_keys(mode: str, expected: list[list[int]]) -> None:
    assert tiers(mode) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("any", [[2, 4], [3, 5], [1, 6]]),
        ("only-primary", [[2], [3], [1]]),
        ("only-rr", [[4], [5], [6]]),
        ("prefer-primary", [[2], [3], [1], [4, 5, 6]]),
        ("prefer-rr", [[4], [5], [6], [1, 2, 3]]),
    ],
)
def test_order_with_topology_keys(mode: str, expected: list[list[int]]) -> None:
    assert tiers(mode, KEYS) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("any", [[2, 4], [3, 5]]),
        ("only-rr", [[4], [5]]),
        # A preference ignores the flag.
        ("prefer-rr", [[4], [5], [6], [1, 2, 3]]),
    ],
)
def test_order_with_topology_keys_only(mode: str, expected: list[list[int]]) -> None:
    assert tiers(mode, KEYS, keys_only=True) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("c.r.*:1,c.r.dc2:2", [[1, 2, 3, 4, 5, 6]]),  # the better priority wins
        ("c.r.dc2:3", [[2, 4], [1, 3, 5, 6]]),  # no level 1
        ("c.r.dc1:1,c.r.dc3:7", [[1], [3, 5], [2, 4, 6]]),  # a gap
        ("c.r.dc1,c.r.dc1,c.r.dc1:2", [[1], [2, 3, 4, 5, 6]]),  # no double weight
        ("x.y.z", [[1, 2, 3, 4, 5, 6]]),
        ("C.R.DC2", [[2, 4], [1, 3, 5, 6]]),  # without regard to case
        (" c.r.dc1 , c.r.dc3:2 ", [[1], [3, 5], [2, 4, 6]]),
    ],
)
def test_priorities_make_the_tiers(keys: str, expected: list[list[int]]) -> None:
    assert tiers("any", keys) == expected


def test_a_flag_without_keys_restricts_nothing() -> None:
    assert tiers("any", keys_only=True) == [[1, 2, 3, 4, 5, 6]]
