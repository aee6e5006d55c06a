"""`HostTable`: which host is next, and the counts."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.actors import Actor

SEED = 20240229
NOW = 100.0


def make_table(core: Any, *keys: str, seed: int = SEED) -> tuple[Any, tuple[Any, ...]]:
    table = core.hosts.HostTable(seed)
    return table, table.update([(key, None) for key in keys])


def reserve(table: Any, tiers: Any, now: float = NOW, tried: set[Any] | None = None) -> Any:
    """Out of tiers that are arranged for this once; all but the first few are not kept in order."""
    return table.reserve(table.arrange(tiers), tried, now)


def counts(table: Any) -> dict[str, int]:
    return {host.key: host.count for host in table.hosts()}


def in_threads(actions: Iterable[Callable[[], object]]) -> None:
    """Run the actions at the same time, and raise what the first of them to fail raised."""
    actions = list(actions)
    start = threading.Barrier(len(actions))
    errors: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        start.wait()
        try:
            action()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# Which host


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


def test_a_thousand_hosts_stay_in_order_of_load(core: Any) -> None:
    table, hosts = make_table(core, *map(str, range(1000)))
    tiers, half = table.arrange((hosts,)), table.arrange((hosts[::2],))
    draw = random.Random(3)
    leases: list[Any] = []

    for step in range(4000):
        if leases and draw.random() < 0.4:
            leases.pop(draw.randrange(len(leases))).release()
        else:
            leases.append(table.reserve(half if draw.random() < 0.2 else tiers))
        if step % 500 == 0:
            table.check()

    for lease in draw.sample(leases, 200):
        lease.release()
        chosen = table.reserve(tiers)
        assert chosen.host.count - 1 <= min(host.count for host in hosts if host != chosen.host)
        leases.append(chosen)
    table.check()


def test_many_policies_are_served_alike(core: Any) -> None:
    """Though not all of their tiers are kept in order."""
    table, hosts = make_table(core, *"abc")
    policies = [table.arrange((hosts,)) for _ in range(30)]

    leases = [table.reserve(tiers) for tiers in policies]

    assert counts(table) == {"a": 10, "b": 10, "c": 10}
    assert all(lease.release() for lease in leases)
    table.check()


def test_a_tier_has_its_hosts_as_they_were_given_and_each_once(core: Any) -> None:
    table, (a, b) = make_table(core, *"ab")
    lease = reserve(table, ((b,),))

    (tier,) = table.arrange([[b, a, b]])

    assert tier.hosts == (b, a)
    assert repr(tier) == "<Tier [<Host b count=1>, <Host a count=0>]>"
    assert table.reserve((tier,)).host is a
    assert lease.active
    table.check()


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


# Leases


def test_a_lease_counts_until_it_is_released(core: Any) -> None:
    table, (a,) = make_table(core, "a")

    lease = reserve(table, ((a,),), NOW)
    assert (lease.host, lease.active, a.count) == (a, True, 1)

    assert lease.release()
    assert (lease.host, lease.active, a.count) == (a, False, 0)


def test_a_second_release_does_nothing(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    lease, other = reserve(table, ((a,),), NOW), reserve(table, ((a,),), NOW)
    lease.release()

    assert not lease.release()
    assert a.count == 1
    assert other.active


def test_a_dropped_lease_is_counted_off_when_the_hosts_are_looked_at(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    lease = reserve(table, ((a,),), NOW)

    del lease

    assert counts(table) == {"a": 0}


def test_a_dropped_lease_is_counted_off_before_the_next_choice(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    leases = [reserve(table, ((a,),), NOW), reserve(table, ((b,),), NOW)]

    del leases[0]

    assert reserve(table, ((a, b),), NOW).host is a


def test_a_lease_in_a_cycle_is_counted_off_when_it_is_collected(core: Any) -> None:
    class Holder:
        pass

    table, (a,) = make_table(core, "a")
    holder: Any = Holder()
    holder.lease, holder.itself = reserve(table, ((a,),), NOW), holder

    del holder
    gc.collect()

    assert counts(table) == {"a": 0}


def test_a_released_lease_is_not_counted_off_again_when_it_is_collected(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    kept, lease = reserve(table, ((a,),), NOW), reserve(table, ((a,),), NOW)
    lease.release()

    del lease

    assert counts(table) == {"a": 1}
    assert kept.active


# The list of hosts


def test_the_fresh_hosts_come_in_the_order_of_the_list(core: Any) -> None:
    table, _ = make_table(core, "a", "b")

    hosts = table.update([("c", 3), ("b", 2), ("a", 1)])

    assert [(host.key, host.info) for host in hosts] == [("c", 3), ("b", 2), ("a", 1)]


def test_a_host_stays_the_same_whatever_is_known_of_it(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    lease = reserve(table, ((a,),), NOW)
    table.mark_down(a, NOW + 1, "down")

    (again,) = table.update([("a", "another address")])

    assert again is a
    assert (a.info, a.count, a.down_until, a.last_error) == ("another address", 1, NOW + 1, "down")
    assert lease.host is a


def test_a_missing_host_keeps_its_record_while_it_has_a_count(core: Any) -> None:
    table, (a, _b) = make_table(core, "a", "b")
    lease = reserve(table, ((a,),), NOW)

    listed = table.update([("b", None)])

    assert [host.key for host in listed] == ["b"]
    assert counts(table) == {"b": 0, "a": 1}
    assert not a.listed
    assert lease.active


def test_a_missing_host_without_a_count_is_forgotten(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")

    table.update([("b", None)])

    assert table.hosts() == (b,)
    assert not a.listed


def test_a_missing_host_is_forgotten_with_its_last_lease(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    leases = [reserve(table, ((a,),), NOW), reserve(table, ((a,),), NOW)]
    table.update([("b", None)])

    leases[0].release()
    assert table.hosts() == (b, a)
    leases[1].release()
    assert table.hosts() == (b,)


def test_a_host_that_nobody_has_any_more_is_a_new_one_when_it_comes_back(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    table.mark_down(a, NOW + 1, "down")
    table.update([])
    gone = weakref.ref(a)

    del a
    (again,) = table.update([("a", None)])

    assert gone() is None
    assert (again.listed, again.down_until, again.count) == (True, 0.0, 0)


def test_a_dropped_lease_does_not_keep_a_missing_host(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    lease = reserve(table, ((a,),), NOW)

    del lease
    table.update([("b", None)])

    assert table.hosts() == (b,)


def test_a_host_that_comes_back_is_listed_with_the_count_it_kept(core: Any) -> None:
    table, (a, b) = make_table(core, "a", "b")
    lease = reserve(table, ((a,),), NOW)
    table.update([("b", None)])

    listed = table.update([("a", None), ("b", None)])

    assert listed == (a, b)
    assert (a.listed, a.count) == (True, 1)
    assert lease.host is a


def test_a_lease_on_a_forgotten_host_can_be_released(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    lease = reserve(table, ((a,),), NOW)
    table.update([])

    assert lease.release()
    assert a.count == 0
    table.check()


def test_a_host_that_a_list_names_twice_keeps_its_count(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    lease = reserve(table, ((a,),), NOW)

    hosts = table.update([("a", 1), ("a", 2)])

    assert hosts == (a,)
    assert counts(table) == {"a": 1}
    assert lease.host is a


def test_a_reservation_from_an_older_list_is_known_to_the_next_list(core: Any) -> None:
    table, tier = make_table(core, "a")
    table.update([("b", None)])  # while somebody still goes by the older list
    lease = reserve(table, (tier,), NOW)

    table.update([("a", None), ("b", None)])

    assert counts(table) == {"a": 1, "b": 0}
    assert lease.active


def test_the_reprs_tell_the_counts(core: Any) -> None:
    table, (a,) = make_table(core, "a")
    lease = reserve(table, ((a,),), NOW)

    assert repr(table) == "<HostTable [<Host a count=1>]>"
    assert repr(lease) == "<Lease on <Host a count=1>>"
    lease.release()
    assert repr(lease) == "<Lease returned by <Host a count=0>>"


@pytest.mark.parametrize("name", ["Host", "Lease", "Tier", "HostTable"])
def test_the_classes_cannot_be_subclassed(core: Any, name: str) -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (getattr(core.hosts, name),), {})


# Threads


def test_threads_that_reserve_at_once_spread_exactly(core: Any, fast_switching: None) -> None:
    table, hosts = make_table(core, "a", "b", "c")
    leases: list[Any] = []

    tiers = table.arrange((hosts,))
    in_threads([lambda: leases.append(table.reserve(tiers))] * 30)
    assert counts(table) == {"a": 10, "b": 10, "c": 10}

    # The same with less of a start, and more to collide.
    in_threads([lambda: leases.extend(table.reserve(tiers) for _ in range(300))] * 8)
    assert counts(table) == {"a": 810, "b": 810, "c": 810}
    table.check()


def test_threads_that_reserve_and_release_count_exactly(core: Any, fast_switching: None) -> None:
    table, hosts = make_table(core, "a", "b", "c")
    tiers = table.arrange((hosts[:2], hosts[2:]))
    table.arrange((hosts,))  # another policy's
    kept: list[Any] = []

    def take() -> None:
        for _ in range(1000):
            table.reserve(tiers).release()
        kept.append(table.reserve(tiers))

    in_threads([take] * 6)

    assert sum(counts(table).values()) == 6
    table.check()
    for lease in kept:
        lease.release()
    assert counts(table) == {"a": 0, "b": 0, "c": 0}


def test_a_lease_that_many_threads_release_at_once_counts_once(
    core: Any, fast_switching: None
) -> None:
    table, (a,) = make_table(core, "a")
    leases = [reserve(table, ((a,),), NOW) for _ in range(500)]
    released: list[bool] = []

    in_threads([lambda: released.extend(lease.release() for lease in leases)] * 8)

    assert released.count(True) == 500
    assert counts(table) == {"a": 0}


def test_nothing_is_miscounted_when_leases_are_dropped_by_a_collector_inside_the_table(
    core: Any, fast_switching: None, eager_gc: None
) -> None:
    class Holder:
        pass

    table, hosts = make_table(core, "a", "b", "c")

    def take() -> None:
        for _ in range(2000):
            holder: Any = Holder()
            holder.lease, holder.itself = reserve(table, (hosts,), NOW), holder

    def look() -> None:
        for _ in range(2000):
            table.hosts()
            table.update([("a", None), ("b", None), ("c", None)])

    in_threads([take, take, look])
    gc.collect()

    assert counts(table) == {"a": 0, "b": 0, "c": 0}


def test_a_list_may_be_taken_over_while_others_look(core: Any, fast_switching: None) -> None:
    table, (a, *_) = make_table(core, *"abc")
    lease = reserve(table, ((a,),), NOW)
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            keys = [host.key for host in table.hosts()]
            assert len(keys) == len(set(keys)), keys
            assert "a" in keys

    def update() -> None:
        try:
            for number in range(2000):
                listed = [f"host-{number}-{i}" for i in range(number % 7)]
                table.update([(key, None) for key in (*listed, *"abc"[number % 2 :])])
        finally:
            over.set()

    in_threads([look, look, update])
    assert lease.active


def test_a_finaliser_may_release_a_lease_wherever_the_collector_runs(
    core: Any, eager_gc: None
) -> None:
    class Holder:
        lease: Any

        def __del__(self) -> None:
            self.lease.release()  # as `Connection.close` does

    table, hosts = make_table(core, *"abcdefgh")

    def take() -> None:
        for _ in range(500):
            holder: Any = Holder()
            holder.lease, holder.itself = reserve(table, (hosts, hosts), NOW, set()), holder

    Actor(take).result()  # which would tell of a deadlock
    gc.collect()

    assert sum(counts(table).values()) == 0


def test_a_release_in_the_middle_of_a_choice_counts_once(core: Any) -> None:
    released: list[bool] = []

    class Equal:
        """Compared with the host because of its hash, at a moment when a finaliser may run too."""

        def __hash__(self) -> int:
            return hash(a)

        def __eq__(self, other: object) -> bool:
            if not released:
                released.extend([lease.release(), lease.release()])
            return False

    table, (a,) = make_table(core, "a")
    lease = reserve(table, ((a,),), NOW)

    other = Actor(lambda: reserve(table, ((a,),), NOW, {Equal()})).result()

    assert released == [True, False]
    assert counts(table) == {"a": 1}
    other.release()
    assert counts(table) == {"a": 0}


# Any sequence of operations, against a dictionary


def all_of(tiers: Any) -> list[Any]:
    return [host for tier in tiers for host in tier.hosts]


class HostMachine(RuleBasedStateMachine):
    """Both builds, and the obvious: a dictionary of counts."""

    def __init__(self, cores: list[Any]) -> None:
        super().__init__()
        self.cores = cores

    @initialize(seed=st.integers(1, 2**64 - 1))
    def begin(self, seed: int) -> None:
        self.tables = [core.hosts.HostTable(seed) for core in self.cores]
        self.hosts: list[dict[str, Any]] = [{} for _ in self.cores]  # all on record, by key
        self.counts: dict[str, int] = {}
        self.info: dict[str, int] = {}
        self.listed: list[str] = []
        self.down: dict[str, float] = {}
        self.now = NOW
        self.leases: list[tuple[str, list[Any]]] = []
        self.arranged: list[tuple[list[list[str]], list[Any]]] = []

    keys = st.sampled_from("abcde")

    @rule(listed=st.lists(keys, unique=True), info=st.integers())
    def update(self, listed: list[str], info: int) -> None:
        for table, hosts in zip(self.tables, self.hosts, strict=True):
            fresh = table.update([(key, info) for key in listed])
            assert [host.key for host in fresh] == listed
            for host in fresh:
                assert hosts.get(host.key, host) is host
                hosts[host.key] = host
        self.info.update((key, info) for key in listed)
        self.listed = listed
        self.forget()

    def forget(self) -> None:
        """Hosts that are not listed and have no count are no longer on record."""
        for key in "abcde":
            if key in self.listed:
                self.counts.setdefault(key, 0)
                self.down.setdefault(key, 0.0)
            elif not self.counts.get(key):
                records: list[dict[str, Any]] = [self.counts, self.down, self.info, *self.hosts]
                for record in records:
                    record.pop(key, None)
        self.arranged = [
            (tiers, arranged)
            for tiers, arranged in self.arranged
            if self.counts.keys() >= set().union(*tiers)
        ]

    @rule(tiers=st.lists(st.sets(keys), max_size=3))
    def arrange(self, tiers: list[set[str]]) -> None:
        """More often than tiers are kept in order; some are used after the next update only."""
        wanted = [sorted(tier.intersection(self.listed)) for tier in tiers]
        self.arranged.append(
            (
                wanted,
                [
                    table.arrange([[hosts[key] for key in tier] for tier in wanted])
                    for table, hosts in zip(self.tables, self.hosts, strict=True)
                ],
            )
        )

    @precondition(lambda self: self.arranged)
    @rule(data=st.data(), tried=st.none() | st.sets(keys))
    def reserve(self, data: st.DataObject, tried: set[str] | None) -> None:
        # By index, because Hypothesis would keep what it samples from, and with it the hosts.
        wanted, arranged = self.arranged[data.draw(st.integers(0, len(self.arranged) - 1))]
        leases = [
            table.reserve(
                tiers,
                None if tried is None else {host for host in all_of(tiers) if host.key in tried},
                self.now,
            )
            for table, tiers in zip(self.tables, arranged, strict=True)
        ]
        left = [[key for key in tier if key not in (tried or ())] for tier in wanted]
        up = [[key for key in tier if self.down[key] <= self.now] for tier in left]
        best: list[str] = next((tier for tier in up + left if tier), [])
        if not best:
            assert leases == [None] * len(leases)
            return
        (chosen,) = {lease.host.key for lease in leases}
        assert chosen in best
        assert self.counts[chosen] == min(self.counts[key] for key in best)
        self.counts[chosen] += 1
        self.leases.append((chosen, leases))

    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        if self.leases:
            which = data.draw(st.integers(0, len(self.leases) - 1))
            key, leases = self.leases.pop(which)
            for lease in leases:
                assert [lease.release() for _ in range(times)] == [True, False][:times]
            self.count_off(key)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.leases:
            which = data.draw(st.integers(0, len(self.leases) - 1))
            key, leases = self.leases.pop(which)
            del leases
            for table in self.tables:
                table.hosts()  # takes notice
            self.count_off(key)

    def count_off(self, key: str) -> None:
        self.counts[key] -= 1
        self.forget()

    @rule(key=keys, seconds=st.integers(-5, 5))
    def mark_down(self, key: str, seconds: int) -> None:
        if key in self.counts:
            self.down[key] = self.now + seconds
            for table, hosts in zip(self.tables, self.hosts, strict=True):
                table.mark_down(hosts[key], self.now + seconds, "down")

    @rule(key=keys)
    def mark_up(self, key: str) -> None:
        if key in self.counts:
            self.down[key] = 0.0
            for table, hosts in zip(self.tables, self.hosts, strict=True):
                table.mark_up(hosts[key])

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def agree(self) -> None:
        for table in getattr(self, "tables", ()):
            assert counts(table) == self.counts
            assert {host.key: host.info for host in table.hosts()} == self.info
            assert {host.key for host in table.hosts() if host.listed} == set(self.listed)
            assert {host.key: host.down_until for host in table.hosts()} == self.down
            table.check()


def test_any_sequence_of_operations_counts_as_a_dictionary_would(cores: list[Any]) -> None:
    run_state_machine_as_test(
        cast(Any, lambda: HostMachine(cores)),
        settings=settings(max_examples=100, stateful_step_count=40),
    )
