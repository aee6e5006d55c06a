"""The modes of `load_balance` on primaries 1 to 3 (dc1, dc2, dc3) and read replicas 4 to 6 (dc2,
dc3, dc4): twelve connections each time, where YugabyteDB's documents say they go.
"""

from __future__ import annotations

import time

import psycopg
import pytest

from tests.smart.conftest import NewClient
from tests.smart.scenario import stop
from ybsmart.testing import LocalCluster

KEYS = "cloud.region.dc2:1,cloud.region.dc3:2"
NOWHERE = [0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("true", [2, 2, 2, 2, 2, 2]),
        ("any", [2, 2, 2, 2, 2, 2]),
        ("only-primary", [4, 4, 4, 0, 0, 0]),
        ("only-rr", [0, 0, 0, 4, 4, 4]),
        ("prefer-primary", [4, 4, 4, 0, 0, 0]),
        ("prefer-rr", [0, 0, 0, 4, 4, 4]),
    ],
)
def test_without_keys_a_mode_takes_all_nodes_of_its_type(
    six: LocalCluster, client: NewClient, mode: str, expected: list[int]
) -> None:
    client(six, load_balance=mode).spread(12, expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("any", [0, 6, 0, 6, 0, 0]),
        ("only-primary", [0, 12, 0, 0, 0, 0]),
        ("only-rr", [0, 0, 0, 12, 0, 0]),
        ("prefer-primary", [0, 12, 0, 0, 0, 0]),
        ("prefer-rr", [0, 0, 0, 12, 0, 0]),
    ],
)
def test_with_keys_a_mode_takes_its_type_in_the_first_level(
    six: LocalCluster, client: NewClient, mode: str, expected: list[int]
) -> None:
    client(six, load_balance=mode, topology_keys=KEYS).spread(12, expected)


@pytest.mark.parametrize(
    ("mode", "down", "expected"),
    [
        ("prefer-rr", (4, 5, 6), [4, 4, 4, 0, 0, 0]),
        ("prefer-primary", (1, 2, 3), [0, 0, 0, 4, 4, 4]),
        ("any", (1, 5), [0, 3, 3, 3, 0, 3]),
        ("only-rr", (5,), [0, 0, 0, 6, 0, 6]),
    ],
)
def test_without_keys_and_with_nodes_down(
    six: LocalCluster, client: NewClient, mode: str, down: tuple[int, ...], expected: list[int]
) -> None:
    app = client(six, load_balance=mode)
    app.touch()
    stop(six, *down)

    app.spread(12, expected)


@pytest.mark.parametrize(
    ("mode", "down", "expected"),
    [
        ("any", (2, 4), [0, 0, 6, 0, 6, 0]),
        ("any", (2, 3, 4, 5), [6, 0, 0, 0, 0, 6]),
        ("prefer-rr", (4,), [0, 0, 0, 0, 12, 0]),
        ("only-rr", (4,), [0, 0, 0, 0, 12, 0]),
        # A read replica outside the keys wins over a primary inside them.
        ("prefer-rr", (4, 5), [0, 0, 0, 0, 0, 12]),
        ("only-rr", (4, 5), [0, 0, 0, 0, 0, 12]),
        # The keys are not applied to the other type.
        ("prefer-rr", (4, 5, 6), [4, 4, 4, 0, 0, 0]),
        ("prefer-primary", (2,), [0, 0, 12, 0, 0, 0]),
        ("prefer-primary", (2, 3), [12, 0, 0, 0, 0, 0]),
        ("only-primary", (2, 3), [12, 0, 0, 0, 0, 0]),
        ("prefer-primary", (1, 2, 3), [0, 0, 0, 4, 4, 4]),
    ],
)
def test_with_keys_and_nodes_down(
    six: LocalCluster, client: NewClient, mode: str, down: tuple[int, ...], expected: list[int]
) -> None:
    app = client(six, load_balance=mode, topology_keys=KEYS)
    app.touch()
    stop(six, *down)

    app.spread(12, expected)


@pytest.mark.parametrize(
    ("mode", "down", "back", "expected"),
    [
        ("prefer-rr", (4, 5, 6), 5, [0, 0, 0, 0, 12, 0]),
        ("only-rr", (4, 5), 5, [0, 0, 0, 0, 12, 0]),
        ("prefer-primary", (1, 2, 3), 3, [0, 0, 12, 0, 0, 0]),
        ("any", (2, 4), 4, [0, 0, 0, 12, 0, 0]),
    ],
)
def test_a_node_that_comes_back_in_a_better_level_takes_over(
    six: LocalCluster,
    client: NewClient,
    mode: str,
    down: tuple[int, ...],
    back: int,
    expected: list[int],
) -> None:
    app = client(six, load_balance=mode, topology_keys=KEYS, failed_host_reconnect_delay_secs=0)
    app.touch()
    stop(six, *down)
    app.touch()

    six.start(back - 1)
    app.until(six.nodes[back - 1], "up")

    app.spread(12, expected)


@pytest.mark.parametrize(
    ("mode", "down", "expected"),
    [
        ("any", (), [0, 6, 0, 6, 0, 0]),
        ("any", (2, 4), [0, 0, 6, 0, 6, 0]),
        ("only-rr", (4,), [0, 0, 0, 0, 12, 0]),
        # A preference means "rather than fail", and ignores the flag.
        ("prefer-rr", (4, 5), [0, 0, 0, 0, 0, 12]),
        ("prefer-rr", (4, 5, 6), [4, 4, 4, 0, 0, 0]),
        ("prefer-primary", (2, 3), [12, 0, 0, 0, 0, 0]),
    ],
)
def test_with_keys_only_and_nodes_down(
    six: LocalCluster, client: NewClient, mode: str, down: tuple[int, ...], expected: list[int]
) -> None:
    app = client(six, load_balance=mode, topology_keys=KEYS, fallback_to_topology_keys_only=True)
    app.touch()
    stop(six, *down)

    app.spread(12, expected)


@pytest.mark.parametrize(
    ("mode", "keys", "keys_only", "down", "message"),
    [
        ("only-rr", None, False, (4, 5, 6), "read replicas"),
        ("only-primary", None, False, (1, 2, 3), "primary nodes"),
        ("only-rr", KEYS, False, (4, 5, 6), "read replicas"),
        ("only-rr", KEYS, True, (4, 5), "read replicas"),
        ("only-primary", KEYS, True, (2, 3), "primary nodes"),
        ("any", KEYS, True, (2, 3, 4, 5), "topology_keys"),
    ],
)
def test_with_no_node_left_that_is_allowed_it_fails_at_once_and_never_takes_another(
    six: LocalCluster,
    client: NewClient,
    mode: str,
    keys: str | None,
    keys_only: bool,
    down: tuple[int, ...],
    message: str,
) -> None:
    app = client(six, load_balance=mode, fallback_to_topology_keys_only=keys_only)
    app.touch()
    stop(six, *down)

    before = time.monotonic()
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError, match=message) as caught:
            app.connect(topology_keys=keys)
        for number in down:
            assert six.nodes[number - 1].host in str(caught.value)

    assert time.monotonic() - before < app.params["connect_timeout"]
    app.check(NOWHERE)


def test_modes_of_one_process_count_the_same_connections(
    six: LocalCluster, client: NewClient
) -> None:
    app = client(six)
    app.open(6, load_balance="only-primary")
    app.check([2, 2, 2, 0, 0, 0])

    app.open(6, load_balance="any")

    app.check([2, 2, 2, 2, 2, 2])
