"""`Lease`: a count is given back once, whoever does it."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests.conftest import GIL
from tests.core.actors import Actor
from tests.core.tables import NOW, counts, make_table, reserve
from tests.support import Threads


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


# Threads, and a collector that runs anywhere


def test_a_lease_that_many_threads_release_at_once_counts_once(
    core: Any, fast_switching: None
) -> None:
    table, (a,) = make_table(core, "a")
    leases = [reserve(table, ((a,),), NOW) for _ in range(500)]
    released: list[bool] = []

    Threads([lambda: released.extend(lease.release() for lease in leases)] * 8).join()

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

    Threads([take, take, look]).join()
    gc.collect()

    assert counts(table) == {"a": 0, "b": 0, "c": 0}


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
    if core.name == "c" and not GIL:
        pytest.skip("compiled, nothing runs in the middle of it")
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
