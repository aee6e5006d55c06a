"""Connections that died while they were idle or lent are not lent again, and cost no request."""

from __future__ import annotations

from typing import Any

from tests.core.actors import Actor
from tests.core.shell import (
    Conn,
    MakePool,
)


def test_a_connection_that_was_idle_for_long_is_looked_at(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(check_after=10)
    (conn,) = pool.stock("a")

    clock.now += 9.9
    assert pool.getconn() is conn
    assert pool.looked_at == []
    pool.putconn(conn)

    clock.now += 10
    assert pool.getconn() is conn
    assert pool.looked_at == [conn.number]


def test_the_loan_of_a_connection_that_was_looked_at_has_a_beginning_and_counts(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(check_after=10)
    (conn,) = pool.stock("a")
    clock.now += 11

    def take_time(_: object) -> None:
        clock.now += 2

    pool.scripts["is_alive"] = take_time
    pool.getconn()
    (slot,) = pool._list_slots()
    assert slot.lent_at == clock.now

    clock.now += 5
    before = pool._numbers(True)["usage"]
    pool.putconn(conn)
    assert pool._numbers(False)["usage"] == 5 > before


def test_idleness_begins_at_the_return(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(check_after=10)
    (conn,) = pool.grow("a")
    clock.now += 100

    pool.putconn(conn)
    pool.getconn()

    assert pool.looked_at == []


def test_with_no_patience_every_idle_connection_is_looked_at(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(check_after=0)
    (conn,) = pool.stock("a")

    # The clock stands still, as coarse clocks do for milliseconds.
    assert pool.getconn() is conn

    assert pool.looked_at == [conn.number]


def test_a_connection_handed_over_is_not_looked_at(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(1, check_after=0)
    (conn,) = pool.grow("a")
    request = pool.request()

    pool.putconn(conn)
    clock.now += 1

    assert request.result() is conn
    assert pool.looked_at == []


def test_a_dead_connection_is_closed_and_another_idle_one_is_lent(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(check_after=10)
    alive, dead = pool.stock("a", "a")
    dead.alive = False
    clock.now += 11

    assert pool.getconn() is alive

    assert pool.closed == [dead.number]
    assert pool.looked_at == [dead.number, alive.number]
    assert (pool.idle_count, pool.total_count) == (0, 1)


def test_a_request_that_finds_only_dead_connections_has_one_opened(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(2, check_after=10)
    for conn in pool.stock("a", "a"):
        conn.alive = False
    clock.now += 11

    request = pool.request()
    assert (pool.total_count, pool.connecting_count) == (1, 1)
    fresh = pool.connected()

    assert request.result() is fresh
    assert sorted(pool.closed) == [1, 2]


def test_a_dead_connection_casts_suspicion_on_its_node_alone(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(4, check_after=10)
    dead, sibling, other = pool.grow("a", "a", "b")
    pool.putconn(dead)
    dead.alive = False
    clock.now += 11

    def meanwhile(_: object) -> None:
        pool.putconn(sibling)
        pool.putconn(other)
        clock.now += 1

    pool.scripts["is_alive"] = meanwhile

    assert {pool.getconn(), pool.getconn()} == {sibling, other}
    assert pool.looked_at == [dead.number, sibling.number]


def test_a_suspected_node_has_its_idle_connections_looked_at(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(4)
    a, a2, b = pool.grow("a", "a", "b")
    pool.putconn(a2)
    pool.putconn(b)
    clock.now += 1

    pool._suspect(a)

    held = {pool.getconn(), pool.getconn()}
    assert held == {a2, b}
    assert pool.looked_at == [a2.number]


def test_suspicion_reaches_what_was_returned_at_the_same_moment(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool()
    a, a2 = pool.grow("a", "a")
    pool.putconn(a2)

    pool._suspect(a)  # by a clock that has not moved since
    pool.getconn()

    assert pool.looked_at == [a2.number]


def test_a_suspected_connection_is_looked_at_once(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool()
    a, a2 = pool.grow("a", "a")
    pool.putconn(a2)
    clock.now += 1
    pool._suspect(a)
    clock.now += 1

    pool.putconn(pool.getconn())
    assert pool.getconn() is a2

    assert pool.looked_at == [a2.number]


def test_connections_returned_after_the_suspicion_are_trusted(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool()
    a, a2 = pool.grow("a", "a")
    pool._suspect(a)
    clock.now += 1

    pool.putconn(a2)
    pool.getconn()

    assert pool.looked_at == []


def test_a_connection_from_elsewhere_raises_no_suspicion(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool()
    pool.stock("a")
    clock.now += 1

    pool._suspect(Conn(0))
    pool._suspect(None)
    pool.getconn()

    assert pool.looked_at == []


def test_the_place_of_a_dead_connection_goes_to_the_first_waiter(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(1, check_after=10)
    (dead,) = pool.stock("a")
    dead.alive = False
    clock.now += 11
    waiter: list[Actor] = []
    pool.scripts["is_alive"] = lambda _: waiter.append(pool.request())

    request = pool.request()
    conn = pool.connected()

    assert waiter[0].result() is conn
    assert request.asleep
