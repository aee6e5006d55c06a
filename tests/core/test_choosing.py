"""Which host a connection is counted on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.core.tables import NOW, counts, make_table, reserve


def test_the_least_loaded_host_is_chosen(core: Any) -> None:
    table, (a, b, c) = make_table(core, "a", "b", "c")
    leases = [reserve(table, ((a, b),), NOW), reserve(table, ((a, b),), NOW)]

    leases.append(reserve(table, ((a, b, c),), NOW))

    assert leases[-1].host is c
    assert counts(table) == {"a": 1, "b": 1, "c": 1}


def test_connections_reserved_one_after_the_other_spread_evenly(core: Any) -> None:
    table, hosts = make_table(core, "a", "b", "c")

    leases = [reserve(table, (hosts,), NOW) for _ in range(30)]

    assert counts(table) == {"a": 10, "b": 10, "c": 10}
    assert all(lease.active for lease in leases)


def test_a_host_that_is_behind_catches_up(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    leases = [reserve(table, ((a,),), NOW) for _ in range(5)]

    leases += [reserve(table, ((a, b),), NOW) for _ in range(5)]

    assert counts(table) == {"a": 5, "b": 5}


@pytest.fixture(params=["in order", "in any order"])
def arrange(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Arranges tiers that the table keeps in order, or does not keep any more."""

    def arrange(table: Any, *tiers: Any) -> Any:
        arranged = table.arrange(tiers)
        if request.param == "in any order":
            table.update([(host.key, host.info) for host in table.hosts()])
        return arranged

    return arrange


def test_a_tie_is_decided_by_a_fair_lot(core: Any, arrange: Callable[..., Any]) -> None:
    table, hosts = make_table(core, "a", "b", "c")
    tiers = arrange(table, hosts)

    chosen = []
    for _ in range(3000):
        lease = table.reserve(tiers)
        chosen.append(lease.host.key)
        lease.release()

    by_host = Counter(chosen)
    # Chi-square with 2 degrees of freedom; 13.8 is exceeded once in a thousand seeds.
    assert sum((by_host[key] - 1000) ** 2 / 1000 for key in "abc") < 13.8


def test_a_lot_does_not_depend_on_the_one_before(core: Any, arrange: Callable[..., Any]) -> None:
    table, hosts = make_table(core, "a", "b", "c")
    tiers = arrange(table, hosts)

    chosen = []
    for _ in range(3001):
        lease = table.reserve(tiers)
        chosen.append(lease.host.key)
        lease.release()

    pairs = Counter(pairwise(chosen))
    # Chi-square with 8 degrees of freedom; 26.1 is exceeded once in a thousand seeds.
    expected = 3000 / 9
    assert sum((pairs[x, y] - expected) ** 2 / expected for x in "abc" for y in "abc") < 26.1


def test_a_tie_in_a_large_tier_starves_nobody(core: Any, arrange: Callable[..., Any]) -> None:
    keys = [f"host-{number}" for number in range(60)]
    table, hosts = make_table(core, *keys)
    tiers = arrange(table, hosts)

    by_host: Counter[str] = Counter()
    for _ in range(3000):
        lease = table.reserve(tiers)
        by_host[lease.host.key] += 1
        lease.release()

    assert set(by_host) == set(keys)
    assert max(by_host.values()) < 100  # 50 each on average


def test_without_a_time_the_clock_tells_who_is_down(core: Any) -> None:
    table, (a, b) = make_table(core, *"ab")
    tiers = table.arrange([[a, b]])
    table.mark_down(a, time.monotonic() + 1000, "refused")
    table.mark_down(b, time.monotonic(), "refused")

    leases = [table.reserve(tiers) for _ in range(3)]

    assert {lease.host for lease in leases} == {b}


def test_equal_seeds_choose_equally_and_others_do_not(core: Any) -> None:
    def choices(seed: int) -> list[str]:
        table, hosts = make_table(core, "a", "b", "c", seed=seed)
        keys = []
        for _ in range(100):
            lease = reserve(table, (hosts,), NOW)
            keys.append(lease.host.key)
            lease.release()
        return keys

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)


@pytest.mark.parametrize("seed", [1, 2**63, 2**64 - 1])
def test_every_seed_of_64_bits_is_taken(core: Any, seed: int) -> None:
    table, hosts = make_table(core, "a", "b", "c", seed=seed)

    leases = [reserve(table, (hosts,), NOW) for _ in range(3)]

    assert sorted(lease.host.key for lease in leases) == ["a", "b", "c"]


def test_both_builds_choose_the_same_hosts(cores: list[Any]) -> None:
    def choices(core: Any) -> list[str]:
        table, hosts = make_table(core, *"abcdefg")
        leases = [reserve(table, (hosts,), NOW) for _ in range(500)]
        return [lease.host.key for lease in leases]

    assert choices(cores[0]) == choices(cores[-1])


def test_a_better_tier_is_used_up_to_any_load(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")

    leases = [reserve(table, ((a,), (b,)), NOW) for _ in range(9)]

    assert {lease.host.key for lease in leases} == {"a"}


def test_the_next_tier_takes_over_when_all_of_the_first_are_down(core: Any) -> None:
    table, (a, b, c) = make_table(core, "a", "b", "c")
    table.mark_down(a, NOW + 1, "down")
    table.mark_down(b, NOW + 1, "down")

    assert reserve(table, ((a, b), (c,)), NOW).host is c


def test_a_tier_with_one_host_in_service_is_not_left(core: Any) -> None:
    table, (a, b, c) = make_table(core, "a", "b", "c")
    table.mark_down(a, NOW + 1, "down")

    leases = [reserve(table, ((a, b), (c,)), NOW) for _ in range(3)]

    assert {lease.host.key for lease in leases} == {"b"}


def test_an_empty_tier_is_passed_over(core: Any) -> None:
    table, (a,) = make_table(core, "a")

    assert reserve(table, ((), (a,)), NOW).host is a


def test_a_host_that_was_tried_is_not_chosen_again(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    leases = [reserve(table, ((b,),), NOW) for _ in range(3)]

    leases.append(reserve(table, ((a, b),), NOW, {a}))

    assert leases[-1].host is b


def test_a_tier_that_was_tried_gives_way_to_the_next(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")

    assert reserve(table, ((a,), (b,)), NOW, {a}).host is b


def test_nothing_is_reserved_when_all_were_tried(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")

    assert reserve(table, ((a,), (b,)), NOW, {a, b}) is None
    assert counts(table) == {"a": 0, "b": 0}


@pytest.mark.parametrize("tiers", [(), ((),)])
def test_nothing_is_reserved_where_there_is_nothing(core: Any, tiers: Any) -> None:
    table, _ = make_table(core, "a")

    assert reserve(table, tiers, NOW) is None


# Health


def test_a_host_that_is_down_is_passed_over_until_its_time(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    table.mark_down(a, NOW + 5, "refused")

    leases = [reserve(table, ((a, b),), NOW + 4.999) for _ in range(3)]
    assert {lease.host.key for lease in leases} == {"b"}

    assert reserve(table, ((a, b),), NOW + 5).host is a


def test_a_host_that_was_seen_to_answer_is_in_service_at_once(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    table.mark_down(a, NOW + 5, "refused")

    table.mark_up(a)

    assert (a.down_until, a.last_error) == (0.0, "")
    lease = reserve(table, ((b,),), NOW)
    assert lease.host is b
    assert reserve(table, ((a, b),), NOW).host is a


def test_a_host_says_why_and_until_when_it_is_down(core: Any) -> None:
    table, (a,) = make_table(core, "a")

    table.mark_down(a, NOW + 5, "refused")

    assert (a.down_until, a.last_error) == (NOW + 5, "refused")


def test_when_all_are_down_the_first_tier_is_the_last_resort(core: Any) -> None:
    table, (a, b, c) = make_table(core, "a", "b", "c")
    leases = [reserve(table, ((a,),), NOW)]
    for host in (a, b, c):
        table.mark_down(host, NOW + 1, "down")

    leases.append(reserve(table, ((a, b), (c,)), NOW))

    assert leases[-1].host is b


def test_the_last_resort_passes_over_hosts_that_were_tried(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    table.mark_down(a, NOW + 1, "down")
    table.mark_down(b, NOW + 1, "down")

    assert reserve(table, ((a,), (b,)), NOW, {a}).host is b
    assert reserve(table, ((a,), (b,)), NOW, {a, b}) is None


def test_a_host_in_a_worse_tier_is_better_than_one_that_is_down(core: Any) -> None:
    table, (a, b, c) = make_table(core, "a", "b", "c")
    table.mark_down(a, NOW + 1, "down")
    table.mark_down(b, NOW + 1, "down")

    assert reserve(table, ((a,), (b,), (c,)), NOW).host is c


def test_failures_leave_the_counts_alone(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    leases = [reserve(table, ((a,),), NOW) for _ in range(3)]

    table.mark_down(a, NOW + 1, "down")
    assert a.count == len(leases)

    table.mark_up(a)
    assert a.count == len(leases)
