"""What is kept and for how long: the minimum, idleness, lifetime, uses, eviction."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.shell import (
    Conn,
    Interrupt,
    MakePool,
)

# The minimum


def test_the_minimum_is_filled_only_when_told(make_pool: MakePool) -> None:
    pool = make_pool(5, min_size=2)
    assert pool.asked == []

    pool._refill(True)
    assert pool.connecting_count == 2
    pool.connected()
    pool.connected()

    assert (pool.idle_count, pool.total_count, pool.asked) == (2, 2, [])


def test_the_minimum_is_filled_as_fast_as_connects_are_allowed(make_pool: MakePool) -> None:
    pool = make_pool(5, min_size=5, max_connecting=2)

    pool._refill(True)

    for left in (2, 2, 2, 2, 1):
        assert len(pool.asked) == left
        pool.connected()
    assert pool.idle_count == 5


def test_the_minimum_is_refilled_whatever_closed_a_connection(make_pool: MakePool) -> None:
    pool = make_pool(3, min_size=2)
    pool._refill(True)
    conns = [pool.connected(), pool.connected()]

    pool.putconn(pool.getconn(), discard=True)
    assert pool.connecting_count == 1
    conns.append(pool.connected())
    pool._evict(None, "evict")
    assert pool.connecting_count == 2
    pool.connected()
    pool.connected()

    assert (pool.idle_count, pool.total_count) == (2, 2)


def test_the_minimum_is_not_refilled_any_more_once_told_or_closing(make_pool: MakePool) -> None:
    pool = make_pool(3, min_size=1)
    pool._refill(True)
    pool.connected()
    pool._refill(False)
    pool.putconn(pool.getconn(), discard=True)
    assert pool.asked == []

    pool._refill(True)
    pool.connected()
    pool.close()

    assert (pool.asked, pool.total_count) == ([], 0)


def test_refilling_goes_on_while_others_wait(make_pool: MakePool) -> None:
    pool = make_pool(4, min_size=2, max_connecting=4)
    requests = [pool.request(), pool.request(), pool.request()]
    pool._refill(True)

    # Those for the waiters count for the minimum.
    assert pool.connecting_count == 3
    conns = [pool.connected() for _ in range(3)]

    assert [request.result() for request in requests] == conns
    assert pool.asked == []


@pytest.mark.parametrize(("sizes", "closed"), [((0, 1), 2), ((0, 3), 0), ((3, 4), 0)])
def test_a_smaller_maximum_closes_what_is_idle(
    make_pool: MakePool, sizes: tuple[int, int], closed: int
) -> None:
    pool = make_pool(3)
    pool.stock("a", "b", "a")

    pool._set_sizes(*sizes)
    pool._sweep()

    assert pool.reasons == ["resize"] * closed
    assert (pool.min_size, pool.max_size) == sizes


def test_a_larger_maximum_serves_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(1)
    held = pool.grow("a")
    request = pool.request()
    assert pool.asked == []

    pool._set_sizes(0, 2)

    assert pool.connected() is request.result()
    assert len(held) == 1


# Idleness


def test_what_has_been_idle_for_too_long_is_closed_the_oldest_first(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(3, max_idle=10)
    first, second, third = pool.grow("a", "a", "b")
    for conn in (second, third, first):
        pool.putconn(conn)
        clock.now += 4

    assert pool._sweep() == 1  # 12, 8 and 4 seconds
    clock.now += 6
    assert pool._sweep() == 2

    assert pool.closed == [second.number, third.number, first.number]
    assert pool.reasons == ["idle"] * 3


def test_the_minimum_stays_however_long_it_is_idle(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(3, min_size=2, max_idle=10)
    pool.stock("a", "a", "a")
    clock.now += 11

    assert pool._sweep() == 1
    pool.getconn()  # it is looked at, and lent

    assert pool.reasons == ["idle"]
    assert len(pool.looked_at) == 1


def test_what_has_been_idle_for_too_long_is_not_lent_though_nobody_sweeps(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(2, max_idle=10)
    (old,) = pool.stock("a")
    clock.now += 10

    request = pool.request()

    assert (pool.closed, pool.reasons) == ([old.number], ["idle"])
    assert pool.connected() is request.result()


@pytest.mark.parametrize(("lifo", "left"), [(True, 1), (False, 1)])
def test_a_request_now_and_then_keeps_one_and_no_more(
    make_pool: MakePool, clock: Any, lifo: bool, left: int
) -> None:
    pool = make_pool(3, max_idle=10, lifo=lifo)
    pool.stock("a", "a", "a")

    for _ in range(8):
        clock.now += 4
        if pool.idle_count:
            pool.putconn(pool.getconn())
        pool._sweep()

    # Last in, first out: the others are idle. First in, first out: all are in use.
    assert pool.total_count == (left if lifo else 2)


# Lifetime


def test_a_connection_beyond_its_lifetime_is_not_lent(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(1)
    pool.lifetime = clock.now + 100
    pool.stock("a")
    clock.now += 99.9
    pool.putconn(pool.getconn())
    clock.now += 0.1

    request = pool.request()
    assert pool.reasons == ["lifetime"]

    pool.lifetime = 1e18
    assert pool.connected() is request.result()


def test_a_connection_beyond_its_lifetime_is_closed_when_returned_or_swept(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(2, min_size=2)
    pool.lifetime = clock.now + 100
    held, idle = pool.grow("a", "b")
    pool.putconn(idle)
    clock.now += 100

    pool._sweep()
    assert pool.closed == [idle.number]
    pool.putconn(held)

    assert pool.closed == [idle.number, held.number]
    assert pool.reasons == ["lifetime"] * 2


# Uses


def test_a_connection_is_lent_so_often(make_pool: MakePool) -> None:
    pool = make_pool(1, max_uses=3)
    (conn,) = pool.grow("a")

    pool.putconn(conn)
    pool.putconn(pool.getconn())
    assert pool.getconn() is conn
    pool.putconn(conn)

    assert (pool.closed, pool.reasons, pool.total_count) == ([conn.number], ["uses"], 0)


def test_a_waiter_gets_no_connection_that_is_used_up(make_pool: MakePool) -> None:
    pool = make_pool(1, max_uses=1)
    (conn,) = pool.grow("a")
    request = pool.request()

    pool.putconn(conn)

    assert request.asleep
    assert pool.connected() is request.result()


def test_a_grant_that_nobody_takes_is_no_use(make_pool: MakePool) -> None:
    pool = make_pool(1, max_uses=2)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.putconn(conn)
    with pytest.raises(Interrupt):
        request.interrupt(Interrupt()).result()

    assert pool.getconn() is conn
    pool.putconn(conn)

    assert pool.reasons == ["uses"]


# Eviction


@pytest.mark.parametrize("reason", ["evict", "drain"])
def test_what_is_evicted_is_closed_at_once_or_when_it_is_returned(
    make_pool: MakePool, reason: str
) -> None:
    pool = make_pool(3)
    held, idle, elsewhere = pool.grow("a", "a", "b")
    pool.putconn(idle)
    pool.putconn(elsewhere)

    pool._evict("a", reason)
    assert pool.closed == [idle.number]
    pool.putconn(held)

    assert pool.closed == [idle.number, held.number]
    assert pool.reasons == [reason] * 2
    assert pool.getconn() is elsewhere


def test_each_node_has_its_own_reason_and_the_last_one_holds(make_pool: MakePool) -> None:
    pool = make_pool(3)
    held = pool.grow("a", "b", "c")
    pool._evict(None, "drain")
    pool._evict("b", "evict")

    for conn in held:
        pool.putconn(conn)

    assert pool.reasons == ["drain", "evict", "drain"]


def test_connections_opened_after_an_eviction_stay(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.stock("a")
    pool._evict(None, "evict")
    pool.stock("a")
    pool._sweep()

    assert len(pool.closed) == 1
    assert pool.idle_count == 1


def test_the_siblings_of_a_connection_are_those_of_its_node(make_pool: MakePool) -> None:
    pool = make_pool(4)
    teller, sibling, other, idle = pool.grow("a", "a", "b", "a")
    pool.putconn(idle)

    pool._evict_siblings(teller)
    for conn in (teller, sibling, other):
        pool.putconn(conn)

    assert pool.closed == [idle.number, teller.number, sibling.number]
    pool._evict_siblings(Conn(99))  # nobody's: nothing happens
    assert pool.idle_count == 1
