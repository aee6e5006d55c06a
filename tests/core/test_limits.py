"""Limits of the pool: how many connections there are, for how long, how often they are lent, how
many may wait; what a failed connect puts off. Nothing here waits: the clock is the test's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest

from tests.core.shell import IN_TRANSACTION, Conn, Interrupt, NotLent, TooMany

MakePool = Callable[..., Any]


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


# Waiters


def test_so_many_may_wait_and_no_more(make_pool: MakePool) -> None:
    pool = make_pool(1, max_waiting=2)
    (conn,) = pool.grow("a")
    waiting = [pool.request(), pool.request()]

    with pytest.raises(TooMany):
        pool.request().result()

    assert pool.waiting_count == 2
    pool.putconn(conn)
    assert waiting[0].result() is conn
    assert pool.request().asleep  # there is room again


def test_a_request_that_is_served_at_once_does_not_wait(make_pool: MakePool) -> None:
    pool = make_pool(1, max_waiting=1)
    (conn,) = pool.stock("a")

    assert pool.request().result() is conn


# After failures


def test_after_a_failure_with_a_delay_nothing_is_opened_for_so_long(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(5)
    pool.request()
    pool.failed(OSError(), delay=10)
    requests = [pool.request() for _ in range(4)]
    assert pool.asked == []
    assert pool._wait_to_retry() == 10

    clock.now += 9.9
    pool.retry()
    assert pool.asked == []
    clock.now += 0.1
    pool.retry()

    # One first; each success allows for more.
    assert len(pool.asked) == 1
    conns = [pool.connected()]
    assert len(pool.asked) == 2
    conns += [pool.connected(), pool.connected(), pool.connected()]
    assert [request.result() for request in requests] == conns


def test_a_returned_connection_serves_the_queue_during_an_outage(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(2)
    (conn,) = pool.grow("a")
    failing = pool.request()
    pool.failed(OSError("down"), delay=1000)
    with pytest.raises(OSError, match="down"):
        failing.result()
    request = pool.request()

    pool.putconn(conn)

    assert request.result() is conn
    assert pool._wait_to_retry() < 0  # nothing is wanted any more


def test_forgiving_opens_at_once(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(1)
    pool.request()
    pool.failed(OSError(), delay=1000)
    request = pool.request()

    pool._forgive()
    pool.retry()

    assert pool.connected() is request.result()


def test_one_at_a_time_waits_for_what_may_not_be_opened_yet(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(1)
    pool.request()
    pool.failed(OSError(), delay=1000)
    pool.scripts["open"] = pytest.fail
    pool._retry_later = lambda: None  # somebody is waiting from now on
    pool.request()

    assert not pool._claim_retry()
    assert pool._wait_to_retry() == 1000


# While a server has too many clients


def test_a_squeezed_pool_makes_do_with_what_it_has(make_pool: MakePool, clock: Any) -> None:
    pool = make_pool(5)
    held = pool.grow("a", "a")
    request = pool.request()
    assert pool._squeeze(5)
    pool._opening_failed(pool.asked.pop(), OSError(), 0.0, False)

    assert request.asleep
    assert pool.asked == []
    pool.putconn(held.pop())
    held.append(request.result())
    # One may be replaced, as its place at the server is free.
    waiting = pool.request()
    pool.putconn(held.pop(), discard=True)
    held.append(pool.connected())
    assert waiting.result() is held[-1]

    waiting = pool.request()
    assert pool.asked == []
    clock.now += 5
    pool.retry()
    assert pool.connected() is waiting.result()


def test_an_empty_pool_cannot_be_squeezed(make_pool: MakePool) -> None:
    pool = make_pool(5)
    pool.request()

    assert not pool._squeeze(5)


# Between two openings


def test_while_nothing_comes_back_openings_follow_each_other_soon(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(9, stagger=1.0, max_connecting=3)
    held = pool.grow("a")
    for _ in range(6):
        pool.request()
    assert len(pool.asked) == len(held) == 1

    for opened in (2, 3, 3):
        clock.now += 1
        pool.retry()
        assert len(pool.asked) == opened


def test_while_connections_come_back_the_next_opening_waits_but_not_for_long(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(9, stagger=1.0)
    (conn,) = pool.grow("a")
    requests = [pool.request() for _ in range(20)]

    for turn in range(9):
        pool.retry()
        assert len(pool.asked) == 1
        clock.now += 0.5
        pool.putconn(conn)
        assert requests[turn].result() is conn
    clock.now += 0.5  # five times as long as between two at least
    pool.retry()

    assert len(pool.asked) == 2


def test_a_pool_of_which_nothing_is_there_yet_waits_for_nothing(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(9, stagger=1.0)

    for _ in range(3):
        pool.request()

    assert len(pool.asked) == 3


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


# Inspection


@pytest.mark.parametrize("lifo", [True, False])
@pytest.mark.parametrize("thorough", [True, False])
def test_an_inspection_closes_what_fails_and_leaves_order_and_idleness(
    make_pool: MakePool, clock: Any, lifo: bool, thorough: bool
) -> None:
    pool = make_pool(4, lifo=lifo, max_idle=10)
    conns = pool.grow("a", "a", "a", "a")
    for conn in conns:
        pool.putconn(conn)
        clock.now += 1
    conns[2].alive = False

    pool._inspect(thorough)

    assert sorted(pool.looked_at) == [1, 2, 3, 4]
    assert pool.reasons == ["check" if thorough else "lost"]
    clock.now += 6  # since the first was returned it is ten
    assert pool._sweep() == 1
    assert pool.closed == [conns[2].number, conns[0].number]
    for conn in conns:
        conn.alive = True
    left = [pool.getconn(), pool.getconn()]
    assert left == ([conns[3], conns[1]] if lifo else [conns[1], conns[3]])


def test_a_request_during_an_inspection_is_served(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.stock("a", "a")
    lent: list[Any] = []
    pool.scripts["passes"] = lambda _: lent.append(pool.getconn())

    pool._inspect(True)

    assert len(lent) == 1
    pool.putconn(lent[0])
    assert pool.is_whole()


def test_a_look_that_raises_closes_what_was_looked_at(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.stock("a", "a")

    def interrupt(_: object) -> None:
        raise Interrupt

    pool.scripts["passes"] = interrupt
    with pytest.raises(Interrupt):
        pool._inspect(True)

    assert pool.reasons == ["check"]
    assert pool.is_whole()


# Vetting


def vetting(pool: Any) -> Any:
    pool._set_flags(True, False, False, 0)
    return pool


def test_what_is_lent_passes_the_users_check(make_pool: MakePool) -> None:
    pool = vetting(make_pool(2))
    (conn,) = pool.stock("a")
    pool.vetted.clear()

    assert pool.getconn() is conn
    assert pool.vetted == [conn.number]


def test_what_fails_the_check_is_closed_and_the_next_one_tried(make_pool: MakePool) -> None:
    pool = vetting(make_pool(3))
    good, bad, worse = pool.stock("a", "a", "a")
    bad.alive = worse.alive = False

    assert pool.getconn(7.0) is good
    assert pool.closed == [worse.number, bad.number]
    assert pool.reasons == ["check"] * 2
    assert pool.pauses == [(7.0, 0), (7.0, 1)]


def test_a_request_whose_connections_all_fail_gets_a_new_one(make_pool: MakePool) -> None:
    pool = vetting(make_pool(1))
    (bad,) = pool.stock("a")
    bad.alive = False

    request = pool.request()

    assert pool.reasons == ["check"]
    assert pool.connected() is request.result()


def test_however_many_it_tries_it_is_one_request(make_pool: MakePool) -> None:
    pool = vetting(make_pool(3))
    for conn in pool.stock("a", "a", "a")[:2]:
        conn.alive = False
    pool._numbers(True)

    pool.getconn()

    assert pool._numbers(False)["requests"] == 1


@pytest.mark.parametrize("hook", ["vet", "pause"])
def test_a_check_that_raises_loses_nothing(make_pool: MakePool, hook: str) -> None:
    pool = vetting(make_pool(2))
    (conn, *_) = pool.stock("a", "a")
    for other in (conn, *_):
        other.alive = False

    def interrupt(*_: object) -> None:
        raise Interrupt

    pool.scripts[hook] = interrupt
    with pytest.raises(Interrupt):
        pool.getconn()

    pool._set_flags(False, False, False, 0)
    assert pool.is_whole()


def test_a_check_that_returns_the_connection_has_given_it_away(make_pool: MakePool) -> None:
    pool = vetting(make_pool(2))
    (conn,) = pool.stock("a")
    pool.scripts["vet"] = pool.putconn

    assert pool.getconn() is conn  # at the second try
    assert pool.vetted[-2:] == [conn.number] * 2
    pool.putconn(conn)
    assert pool.is_whole()


# Whose it is


def test_a_listener_that_is_told_of_a_loan_has_nothing_to_return(make_pool: MakePool) -> None:
    pool = make_pool(2)
    (conn,) = pool.stock("a")
    refused: list[str] = []

    def give_away(event: str, conn: Any, about: object) -> None:
        with pytest.raises(NotLent):
            pool.putconn(conn)
        refused.append(event)

    pool._notify = give_away
    pool._set_flags(False, False, False, pool.core.pool.ON_ACQUIRE)

    assert pool.getconn() is conn
    assert refused == ["acquire"]
    assert pool.idle_count == 0


@pytest.mark.parametrize("discard", [False, True])
def test_what_a_block_was_lent_only_the_block_returns(make_pool: MakePool, discard: bool) -> None:
    pool = make_pool(1)
    (stale,) = pool.stock("a")

    with pool.connection() as conn:
        assert conn is stale
        before = pool._snapshot()
        with pytest.raises(NotLent):
            pool.putconn(stale, discard=discard)
        assert pool._snapshot() == before

    assert pool.is_whole()


# Numbers


def test_numbers_that_are_reset_begin_at_zero_and_the_peak_at_what_there_is(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(3)
    conns = pool.grow("a", "a")
    clock.now += 2
    for conn in conns:
        pool.putconn(conn)
    pool.putconn(pool.getconn(), discard=True)

    first = pool._numbers(True)
    second = pool._numbers(False)

    assert (first["requests"], first["queued"], first["peak"]) == (3, 2, 2)
    assert first["usage"] == 4.0
    assert sum(first["usage_buckets"]) == 3
    assert (second["requests"], second["queued"], second["peak"]) == (0, 0, 1)
    assert (second["usage"], sum(second["usage_buckets"])) == (0.0, 0)


# Forked children


def test_a_forked_child_starts_empty_and_owns_nothing_of_its_parents(make_pool: MakePool) -> None:
    pool = make_pool(3, min_size=1)
    lent, idle = pool.grow("a", "b")
    pool.putconn(idle)
    block = pool.connection()
    in_block = block.__enter__()

    inheritance = pool._inheritance(RuntimeError())
    pool._start_empty()
    pool.open.clear()
    assert len(inheritance[0]) == 2
    assert pool._snapshot() == {
        **dict.fromkeys(("total", "idle", "lent", "connecting", "waiting"), 0),
        "closing": False,
        "shelves": {},
    }

    for conn in (lent, idle):
        with pytest.raises(NotLent):
            pool.putconn(conn)
    in_block.pgconn.transaction_status = IN_TRANSACTION
    with pytest.raises(NotLent):
        block.__exit__(None, None, None)
    assert in_block.exits == []  # neither committed nor rolled back
    assert pool.closed == []
    pool.nodes = repeat("c")
    assert pool.getconn() not in (lent, idle)
    pool.nodes = None


def test_a_closing_pool_is_closing_in_the_child_too(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.close()

    pool._start_empty()

    assert pool._is_closing()
