"""`HostTable`: the hosts that are listed, whose counts outlive lists, and many threads at once."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest

from tests.core.tables import NOW, counts, make_table, reserve
from tests.support import Threads


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
    Threads([lambda: leases.append(table.reserve(tiers))] * 30).join()
    assert counts(table) == {"a": 10, "b": 10, "c": 10}

    # The same with less of a start, and more to collide.
    Threads([lambda: leases.extend(table.reserve(tiers) for _ in range(300))] * 8).join()
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

    Threads([take] * 6).join()

    assert sum(counts(table).values()) == 6
    table.check()
    for lease in kept:
        lease.release()
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

    Threads([look, look, update]).join()
    assert lease.active
