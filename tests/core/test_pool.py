"""`PoolCore`: who gets which connection, what is opened, and that nothing is ever lost."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import cycle, repeat
from typing import Any

import pytest

from tests.core.shell import (
    IN_TRANSACTION,
    NEVER,
    Actor,
    Closed,
    Conn,
    Interrupt,
    NotLent,
    TimedOut,
    make_shell,
)

MakePool = Callable[..., Any]


def lent(pool: Any) -> dict[str, int]:
    return {shelf.key: shelf.lent for shelf in pool._list_shelves()}


def idle(pool: Any) -> dict[str, int]:
    return {shelf.key: shelf.idle for shelf in pool._list_shelves()}


# Lending


def test_a_new_pool_has_nothing_and_asks_for_nothing(make_pool: MakePool) -> None:
    pool = make_pool()

    assert pool._snapshot() == {
        "total": 0,
        "idle": 0,
        "lent": 0,
        "connecting": 0,
        "waiting": 0,
        "closing": False,
        "shelves": {},
    }
    assert not pool.asked


def test_the_first_request_gets_a_new_connection(make_pool: MakePool) -> None:
    pool = make_pool()
    request = pool.request()
    assert request.asleep
    assert (pool.waiting_count, pool.connecting_count, pool.total_count) == (1, 1, 1)

    conn = pool.connected("a")

    assert request.result() is conn
    assert pool._snapshot()["shelves"] == {"a": (0, 1)}
    assert (pool.waiting_count, pool.connecting_count, pool.total_count) == (0, 0, 1)


def test_a_lent_connection_knows_its_pool_and_an_idle_one_does_not(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    assert conn._pool is pool

    pool.putconn(conn)

    assert conn._pool is None


def test_a_returned_connection_is_lent_again(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")
    assert (pool.idle_count, pool.total_count) == (1, 1)

    assert pool.getconn() is conn

    assert (pool.idle_count, pool.total_count) == (0, 1)
    assert not pool.asked


def test_the_connection_returned_last_is_lent_first(make_pool: MakePool) -> None:
    pool = make_pool()
    a, b, c = pool.grow("x", "x", "x")
    for conn in (b, c, a):
        pool.putconn(conn)

    assert [pool.getconn() for _ in range(3)] == [a, c, b]


def test_the_node_with_the_fewest_lent_is_taken(make_pool: MakePool) -> None:
    pool = make_pool(6)
    a, b, _a2, _a3, _b2 = pool.grow("a", "b", "a", "a", "b")
    pool.putconn(b)
    pool.putconn(a)
    assert lent(pool) == {"a": 2, "b": 1}

    assert pool.getconn() is b


def test_a_node_with_nothing_idle_is_passed_over(make_pool: MakePool) -> None:
    pool = make_pool(6)
    pool.grow("a")
    b, _b2, _b3 = pool.grow("b", "b", "b")
    pool.putconn(b)

    assert pool.getconn() is b


def test_equally_loaded_nodes_lend_in_turn(make_pool: MakePool) -> None:
    pool = make_pool(3)
    conns = pool.stock("a", "b", "c")
    order = []

    for _ in range(6):
        conn = pool.getconn()
        order.append(conns.index(conn))
        pool.putconn(conn)

    assert sorted(order[:3]) == [0, 1, 2]
    assert order[3:] == order[:3]


@pytest.mark.parametrize(
    "order", ["abc" * 10, "a" * 10 + "b" * 10 + "c" * 10, "c" * 10 + "ab" * 10]
)
def test_twelve_of_thirty_are_spread_over_three_nodes_however_they_came_back(
    make_pool: MakePool, order: str
) -> None:
    pool = make_pool(30)
    conns = pool.grow(*"abc" * 10)
    for key in order:
        conn = next(conn for conn in conns if conn._ybsmart_slot.shelf.key == key)
        conns.remove(conn)
        pool.putconn(conn)

    held = [pool.getconn() for _ in range(12)]

    assert lent(pool) == {"a": 4, "b": 4, "c": 4}
    assert len({conn.number for conn in held}) == 12


def test_a_slot_tells_its_shelf(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")

    assert conn._ybsmart_slot.shelf is pool._list_shelves()[0]
    assert repr(conn._ybsmart_slot) == "<Slot lent on a>"
    pool.putconn(conn)
    assert repr(conn._ybsmart_slot) == "<Slot idle on a>"
    assert repr(pool._list_shelves()[0]) == "<Shelf a idle=1 lent=0>"
    pool.putconn(pool.getconn(), discard=True)
    assert repr(conn._ybsmart_slot) == "<Slot retired on a>"


# The queue


def test_requests_are_served_in_the_order_of_their_arrival(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    requests = [pool.request() for _ in range(3)]

    for i, request in enumerate(requests):
        pool.putconn(conn)

        assert request.result() is conn
        assert all(later.asleep for later in requests[i + 1 :])


def test_a_newcomer_does_not_overtake_a_request_that_was_served_but_still_sleeps(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first = pool.request()
    pool.putconn(conn)

    newcomer = pool.request()

    assert newcomer.asleep
    assert first.result() is conn


def test_a_returned_connection_is_never_idle_while_somebody_waits(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    pool.request()

    pool.putconn(conn)

    assert (pool.idle_count, pool.waiting_count) == (0, 0)
    assert lent(pool) == {"a": 1}


def test_a_newcomer_does_not_overtake_the_queue_when_a_place_becomes_free(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first = pool.request()

    pool.putconn(conn, discard=True)
    newcomer = pool.request()
    fresh = pool.connected()

    assert first.result() is fresh
    assert newcomer.asleep


def test_a_waiter_takes_a_returned_connection_before_its_own_is_there(
    make_pool: MakePool,
) -> None:
    pool = make_pool(2)
    (conn,) = pool.grow("a")
    request = pool.request()
    assert len(pool.asked) == 1

    pool.putconn(conn)

    assert request.result() is conn


def test_a_waiter_takes_a_new_connection_that_another_asked_for(make_pool: MakePool) -> None:
    pool = make_pool(3)
    first, second = pool.request(), pool.request()
    assert len(pool.asked) == 2

    conn = pool.connected(which=1)  # the opening of the second request

    assert first.result() is conn
    assert second.asleep


def test_one_that_comes_back_between_a_request_s_look_and_its_queueing_is_not_missed(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    pool.scripts["new_waiter"] = lambda _: pool.putconn(conn)

    assert pool.request().result() is conn
    assert (pool.idle_count, pool.waiting_count) == (0, 0)


def test_one_that_comes_back_just_then_goes_to_the_head_of_the_queue(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    others: list[Actor] = []

    def first_another_then_the_connection(_: object) -> None:
        others.append(pool.request())
        pool.putconn(conn)

    pool.scripts["new_waiter"] = first_another_then_the_connection
    request = pool.request()

    assert others[0].result() is conn
    assert request.asleep


def test_the_timeout_is_the_shell_s_to_understand(make_pool: MakePool) -> None:
    pool = make_pool()
    timeouts: list[Any] = []
    pool.scripts["new_waiter"] = timeouts.append

    pool.request(120)
    pool.request()

    assert pool.timeouts == [120, None]
    assert timeouts == [120]


def test_no_waiter_is_made_when_a_connection_is_at_hand(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.stock("a")
    pool.scripts["new_waiter"] = pytest.fail

    pool.getconn()


# Time-outs and interruptions


def test_a_request_whose_time_is_up_leaves_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()

    with pytest.raises(TimedOut):
        request.time_is_up().result()

    assert pool.waiting_count == 0
    pool.putconn(conn)
    assert pool.idle_count == 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_those_who_stay_keep_their_order(make_pool: MakePool, which: int) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    requests = [pool.request() for _ in range(3)]
    with pytest.raises(TimedOut):
        requests.pop(which).time_is_up().result()

    for request in requests:
        pool.putconn(conn)
        assert request.result() is conn


def test_a_request_that_is_served_just_after_its_time_takes_the_connection(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request(stops=("sleep", "withdraw"))
    request.time_is_up().step()
    assert request.at == "withdraw"

    pool.putconn(conn)

    assert request.result() is conn
    assert lent(pool) == {"a": 1}


def test_a_request_that_fails_just_after_its_time_has_the_error(make_pool: MakePool) -> None:
    pool = make_pool(1)
    request = pool.request(stops=("sleep", "withdraw"))
    request.time_is_up().step()
    error = OSError()

    pool.failed(error)

    with pytest.raises(OSError) as caught:
        request.result()
    assert caught.value is error


def test_a_withdrawal_happens_once(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.request()
    (waiter,) = pool.waiters

    assert pool._withdraw(waiter)
    assert not pool._withdraw(waiter)

    assert pool.waiting_count == 0


def test_an_interrupted_request_leaves_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first, second = pool.request(), pool.request()

    with pytest.raises(Interrupt):
        first.interrupt(Interrupt()).result()

    pool.putconn(conn)
    assert second.result() is conn


def test_a_connection_granted_to_an_interrupted_request_goes_to_the_next(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first, second = pool.request(), pool.request()
    pool.putconn(conn)

    with pytest.raises(Interrupt):
        first.interrupt(Interrupt()).result()

    assert second.result() is conn


def test_a_connection_granted_to_an_interrupted_request_is_idle_when_nobody_waits(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.putconn(conn)

    with pytest.raises(Interrupt):
        request.interrupt(Interrupt()).result()

    assert pool.getconn() is conn


def test_a_connection_granted_to_an_interrupted_request_is_closed_by_a_closing_pool(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.putconn(conn)
    pool.close()

    with pytest.raises(Interrupt):
        request.interrupt(Interrupt()).result()

    assert pool.closed == [conn.number]
    assert pool.total_count == 0


# Openings


def test_as_many_are_opened_as_there_are_waiters(make_pool: MakePool) -> None:
    pool = make_pool(9, max_connecting=9)

    for count in range(1, 5):
        pool.request()

        assert len(pool.asked) == pool.connecting_count == count


def test_no_more_are_opened_at_a_time_than_allowed(make_pool: MakePool) -> None:
    pool = make_pool(9, max_connecting=2)
    for _ in range(5):
        pool.request()

    for _ in range(3):
        assert len(pool.asked) == pool.connecting_count == 2
        pool.connected()

    assert len(pool.asked) == 2  # for the two that still wait


def test_what_was_being_opened_before_a_fork_is_not_the_childs(make_pool: MakePool) -> None:
    pool = make_pool(9, max_connecting=9)
    waiting = [pool.request(), pool.request()]
    pgconns, kept = pool.pool._inheritance(RuntimeError("forked"))
    pool.pool._start_empty()

    conn = pool.connected()
    pool.failed(OSError())

    assert (pgconns, len(kept)) == ([], 5)
    assert pool.closed == [conn.number]
    for request in waiting:  # a greenlet, which survives
        with pytest.raises(RuntimeError, match="forked"):
            request.time_is_up().result()
    assert (pool.total_count, pool.connecting_count, pool.waiting_count) == (0, 0, 0)


def test_openings_and_connections_together_keep_to_the_size(make_pool: MakePool) -> None:
    pool = make_pool(3)
    held = pool.grow("a")
    for _ in range(5):
        pool.request()

    assert (len(pool.asked), pool.total_count) == (2, 3)
    held.append(pool.connected())
    held.append(pool.connected())

    assert (len(pool.asked), pool.total_count, pool.waiting_count) == (0, 3, 3)


def test_a_place_that_becomes_free_too_early_is_used_when_it_is_time(make_pool: MakePool) -> None:
    pool = make_pool(3, stagger=NEVER)
    held = pool.grow("a", "a")
    pool.request()
    assert len(pool.asked) == 1
    pool.request()
    assert pool.retries == 0  # there is no place

    pool.putconn(held.pop(), discard=True)

    # Nothing is opened now, so somebody has to see to it later.
    assert len(pool.asked) == 1
    assert pool.retries == 1


def test_nothing_is_opened_for_a_waiter_that_a_left_over_opening_will_serve(
    make_pool: MakePool,
) -> None:
    pool = make_pool(3)
    (conn,) = pool.grow("a")
    first = pool.request()
    pool.putconn(conn)
    assert first.result() is conn
    assert len(pool.asked) == 1

    pool.request()
    assert len(pool.asked) == 1

    pool.request()
    assert len(pool.asked) == 2


def test_a_failed_opening_is_its_requester_s_error(make_pool: MakePool) -> None:
    pool = make_pool(3)
    first, second, third = (pool.request() for _ in range(3))
    error = OSError()

    pool.failed(error, which=1)

    with pytest.raises(OSError) as caught:
        second.result()
    assert caught.value is error
    assert first.asleep
    assert third.asleep


def test_a_failed_opening_frees_its_place(make_pool: MakePool) -> None:
    pool = make_pool(1)
    request = pool.request()

    pool.failed(OSError())

    with pytest.raises(OSError):
        request.result()
    assert pool.total_count == 0
    assert pool.is_whole()


def test_a_failed_opening_is_followed_by_one_for_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(1)
    first, second = pool.request(), pool.request()
    assert len(pool.asked) == 1

    pool.failed(OSError())
    assert len(pool.asked) == 1
    conn = pool.connected()

    with pytest.raises(OSError):
        first.result()
    assert second.result() is conn


def test_each_of_many_requests_hears_of_its_own_failed_opening(make_pool: MakePool) -> None:
    pool = make_pool(2, max_connecting=1)
    requests = [pool.request() for _ in range(5)]
    errors = [OSError(number) for number in range(5)]

    for error in errors:
        pool.failed(error)

    for request, error in zip(requests, errors, strict=True):
        with pytest.raises(OSError) as caught:
            request.result()
        assert caught.value is error
    assert pool.total_count == 0


def test_a_requester_that_a_return_serves_passes_its_opening_on(make_pool: MakePool) -> None:
    pool = make_pool(2)
    (conn,) = pool.grow("a")
    first, second = pool.request(), pool.request()
    (opening,) = pool.asked
    assert opening.owner is pool.waiters[-2]

    pool.putconn(conn)
    assert opening.owner is pool.waiters[-1]
    pool.failed(OSError())

    assert first.result() is conn
    with pytest.raises(OSError):
        second.result()


def test_a_requester_whose_time_is_up_passes_its_opening_on(make_pool: MakePool) -> None:
    pool = make_pool(1)
    first, second = pool.request(), pool.request()
    first.time_is_up().run()

    pool.failed(OSError())

    with pytest.raises(OSError):
        second.result()


def test_an_opening_is_passed_on_to_a_waiter_without_one(make_pool: MakePool) -> None:
    pool = make_pool(2)
    first, second, third = (pool.request() for _ in range(3))
    first.time_is_up().run()

    pool.failed(OSError(), which=0)

    with pytest.raises(OSError):
        third.result()
    assert second.asleep


def test_an_opening_without_a_requester_fails_in_silence(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.request().time_is_up().run()
    assert pool.asked[0].owner is None

    pool.failed(OSError())

    assert pool.is_whole()


def test_an_opening_without_a_requester_that_fails_is_repeated_for_a_newcomer(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    pool.request().time_is_up().run()
    newcomer = pool.request()
    assert len(pool.asked) == 1

    pool.failed(OSError())
    conn = pool.connected()

    assert newcomer.result() is conn


def test_a_connection_whose_requester_left_goes_to_the_next_waiter(make_pool: MakePool) -> None:
    pool = make_pool(1)
    first, second = pool.request(), pool.request()
    first.interrupt(Interrupt()).run()

    conn = pool.connected()

    assert second.result() is conn


def test_a_connection_that_nobody_waits_for_any_more_is_idle(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.request().time_is_up().run()

    conn = pool.connected()

    assert (pool.idle_count, conn._pool) == (1, None)
    assert pool.getconn() is conn


def test_a_connection_of_an_opening_that_was_given_up_is_closed(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def given_up(opening: Any) -> None:
        pool.asked.append(opening)  # it goes on nevertheless
        raise Interrupt

    pool.scripts["open"] = given_up
    with pytest.raises(Interrupt):
        pool.request().result()
    # The interrupt is for the requester; for all that was known, it still waited.
    assert pool.total_count == 1

    conn = pool.connected()

    assert pool.closed == [conn.number]
    assert pool.total_count == 1
    with pytest.raises(NotLent):
        pool.putconn(conn)


def test_an_opening_that_was_given_up_fails_in_silence(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def given_up(opening: Any) -> None:
        pool.asked.append(opening)
        raise Interrupt

    pool.scripts["open"] = given_up
    with pytest.raises(Interrupt):
        pool.request().result()

    pool.failed(OSError())
    pool.connected()  # the one that followed it

    assert pool.is_whole()


def test_an_opening_ends_once(make_pool: MakePool) -> None:
    pool = make_pool(2)
    request = pool.request()
    opening = pool.asked[0]
    conn = pool.connected()
    pool.asked.append(opening)

    pool.failed(OSError())

    assert request.result() is conn
    assert (pool.total_count, pool.connecting_count) == (1, 0)


@pytest.mark.parametrize("missing", ["pgconn", "_pool", "_ybsmart_slot"])
def test_a_connection_that_cannot_be_taken_in_does_not_occupy_a_place(
    make_pool: MakePool, missing: str
) -> None:
    class Rigid(Conn):
        rigid = False

        def __getattribute__(self, name: str) -> Any:
            if name == missing == "pgconn" and self.rigid:
                raise AttributeError(name)
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: object) -> None:
            if name == missing and self.rigid:
                raise AttributeError(name)
            super().__setattr__(name, value)

    pool = make_pool(1)
    pool.request()
    opening, conn = pool.asked.pop(), Rigid(1)
    conn.rigid = True

    with pytest.raises(AttributeError):
        pool._opened(opening, conn, "a", "a", 1e18)

    # Whatever became of the request: there is a place, or an opening that takes it.
    assert pool.total_count == len(pool.asked)


# Returning


def test_a_connection_in_a_transaction_is_cleaned(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    conn.pgconn.transaction_status = IN_TRANSACTION
    cleaned: list[Conn] = []
    pool.scripts["clean"] = cleaned.append

    pool.putconn(conn)

    assert cleaned == [conn]
    assert pool.getconn() is conn


def test_a_clean_connection_is_not_cleaned(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    pool.scripts["clean"] = pytest.fail

    pool.putconn(conn)

    assert pool.idle_count == 1


def test_a_connection_that_cannot_be_cleaned_is_closed(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    conn.pgconn.transaction_status, conn.cleanable = IN_TRANSACTION, False

    pool.putconn(conn)

    assert pool.closed == [conn.number]
    assert (pool.idle_count, pool.total_count) == (0, 0)


def test_a_discarded_connection_is_closed_without_cleaning(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    conn.pgconn.transaction_status = IN_TRANSACTION
    pool.scripts["clean"] = pytest.fail

    pool.putconn(conn, discard=True)

    assert pool.closed == [conn.number]
    assert conn._pool is None
    assert pool.total_count == 0


def test_a_connection_counts_until_it_is_closed(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    counts: list[tuple[int, int]] = []
    pool.scripts["close_conn"] = lambda _: counts.append(
        (pool.total_count, pool._snapshot()["lent"])
    )

    pool.putconn(conn, discard=True)

    assert counts == [(1, 1)]
    assert pool.total_count == 0


def test_no_connection_is_opened_before_the_one_it_replaces_is_closed(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    asked: list[int] = []
    pool.scripts["close_conn"] = lambda _: asked.append(len(pool.asked))

    pool.putconn(conn, discard=True)

    assert asked == [0]
    assert len(pool.asked) == 1
    assert request.asleep


@pytest.mark.parametrize("what", ["foreign", "twice", "discarded", "of another pool", "nothing"])
def test_what_is_not_on_loan_is_refused_and_changes_nothing(make_pool: MakePool, what: str) -> None:
    pool = make_pool()
    pool.grow("a")
    conn: Any = None
    if what == "foreign":
        conn = Conn(0)
    elif what == "twice":
        (conn,) = pool.stock("a")
    elif what == "discarded":
        (conn,) = pool.grow("a")
        pool.putconn(conn, discard=True)
    elif what == "of another pool":
        (conn,) = make_pool().grow("a")
    before, owner = pool._snapshot(), getattr(conn, "_pool", None)

    for discard in (False, True):
        with pytest.raises(NotLent):
            pool.putconn(conn, discard=discard)

    assert pool._snapshot() == before
    assert getattr(conn, "_pool", None) is owner
    assert not pool.closed[1:]


def test_an_idle_connection_that_is_being_closed_is_not_on_loan(make_pool: MakePool) -> None:
    pool = make_pool(check_after=0)
    (conn,) = pool.stock("a")
    conn.alive = False
    refused: list[BaseException] = []

    def return_it(_: object) -> None:
        with pytest.raises(NotLent) as caught:
            pool.putconn(conn)
        refused.append(caught.value)

    pool.scripts["close_conn"] = return_it
    pool.request()

    assert len(refused) == 1
    assert pool.closed == [conn.number]


@pytest.mark.parametrize("discard", [False, True])
def test_a_connection_returned_again_while_it_is_being_cleaned_is_refused(
    make_pool: MakePool, discard: bool
) -> None:
    pool = make_pool(2)
    (conn,) = pool.grow("a")
    conn.pgconn.transaction_status = IN_TRANSACTION
    refused: list[bool] = []

    def again(_: object) -> None:
        try:
            pool.putconn(conn, discard=discard)
        except NotLent:
            refused.append(True)

    pool.scripts["clean"] = again
    try:
        pool.putconn(conn)
    except NotLent:
        refused.append(True)

    assert refused == [True]  # one of the two
    pool.check()
    assert pool.is_whole()


# `with pool.connection()`


def test_a_block_returns_its_connection(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")

    with pool.connection() as got:
        assert got is conn
        assert pool.idle_count == 0

    assert pool.idle_count == 1
    assert conn.exits == []


def test_a_block_settles_a_transaction_as_the_connection_s_own_block_does(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")

    with pool.connection():
        conn.pgconn.transaction_status = IN_TRANSACTION

    assert conn.exits == [(None, None, None)]
    assert pool.idle_count == 1


def test_a_block_passes_its_error_to_the_connection_and_on(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")
    error = ValueError()

    with pytest.raises(ValueError) as caught, pool.connection():
        conn.pgconn.transaction_status = IN_TRANSACTION
        raise error

    assert caught.value is error
    ((exc_type, exc, _),) = conn.exits
    assert (exc_type, exc) == (ValueError, error)
    assert pool.idle_count == 1


def test_a_block_whose_transaction_cannot_be_settled_returns_the_connection(
    make_pool: MakePool,
) -> None:
    class Broken(Conn):
        def __exit__(self, *_: object) -> None:
            raise OSError

    pool = make_pool()
    pool.new_conn = lambda: Broken(1)
    pool.nodes = repeat("a")

    with pytest.raises(OSError), pool.connection() as conn:
        conn.pgconn.transaction_status = IN_TRANSACTION
        conn.cleanable = False

    assert pool.closed == [1]
    assert pool.total_count == 0


def test_a_block_that_settles_nothing_leaves_cleaning_to_the_pool(
    core: Any, make_pool: MakePool
) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")

    with core.pool.Checkout(pool, None, False):
        conn.pgconn.transaction_status = IN_TRANSACTION

    assert conn.exits == []
    assert pool.idle_count == 1


def test_a_block_passes_its_timeout_on(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.nodes = repeat("a")

    with pool.connection(1.5), pool.connection():
        pass

    assert pool.timeouts == [1.5, None]


def test_a_block_cannot_be_entered_twice(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.nodes = repeat("a")

    with pool.connection() as conn:
        pass
    block = pool.connection()
    with block:
        with pytest.raises(RuntimeError, match="entered already"):
            block.__enter__()
        assert pool.total_count == 1

    assert pool.getconn() is conn


def test_a_block_that_is_dropped_frees_its_place(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.nodes = repeat("a")

    pool.connection().__enter__()

    assert pool.is_whole()


# Connections that died


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


# Connections that are dropped


def test_a_dropped_connection_frees_its_place(make_pool: MakePool) -> None:
    pool = make_pool(1)

    pool.grow("a")
    request = pool.request()

    conn = pool.connected()
    assert request.result() is conn


@pytest.mark.parametrize("way", ["alone", "in a cycle"])
def test_a_dropped_connection_is_counted_off(make_pool: MakePool, way: str) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    if way == "in a cycle":
        conn.cursor = {"connection": conn}

    del conn
    gc.collect()

    pool.check()
    assert pool._snapshot()["lent"] == 0
    assert pool.is_whole()


def test_a_connection_dropped_in_the_traceback_of_an_error_is_counted_off(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)

    def use() -> None:
        conn = pool.grow("a")[0]
        try:
            raise ValueError(conn)
        except ValueError as exc:
            kept = exc  # the error refers to this frame, and this frame to the error
        assert kept

    use()
    gc.collect()

    assert pool.is_whole()


def test_a_connection_that_is_returned_and_dropped_is_counted_off_once(
    make_pool: MakePool,
) -> None:
    pool = make_pool(2)
    conn, other = pool.grow("a", "a")

    pool.putconn(conn, discard=True)
    del conn
    gc.collect()
    pool.check()

    assert pool._snapshot()["lent"] == 1
    pool.putconn(other)
    assert pool.is_whole()


@pytest.mark.parametrize("event", ["request", "return"])
def test_the_place_of_a_dropped_connection_goes_to_the_first_waiter_at_the_next(
    make_pool: MakePool, event: str
) -> None:
    pool = make_pool(2)
    conn, dropped = pool.grow("a", "a")
    first, second = pool.request(), pool.request()
    assert not pool.asked

    del dropped
    if event == "request":
        pool.request()
    else:
        pool.putconn(conn)
        assert first.result() is conn

    assert pool.asked
    fresh = pool.connected()
    assert (first if event == "request" else second).result() is fresh


@pytest.mark.parametrize("way", ["close", "end"])
def test_a_connection_dropped_before_the_end_does_not_delay_it(
    make_pool: MakePool, way: str
) -> None:
    pool = make_pool(2)
    dropped, idle_one = pool.grow("a", "a")
    pool.putconn(idle_one)

    del dropped
    getattr(pool, way)()

    assert pool.total_count == 0


def test_a_connection_dropped_during_the_end_is_told_as_progress(make_pool: MakePool) -> None:
    pool = make_pool(2)
    dropped, conn = pool.grow("a", "a")
    pool.end()

    del dropped
    pool.putconn(conn)

    assert pool.progress == 2
    assert pool.total_count == 0


def test_a_pool_that_is_dropped_is_collected_with_its_connections(core: Any) -> None:
    pool = make_shell(core)(3)
    pool.stock("a", "b")
    conn = pool.getconn()
    gone = weakref.ref(pool)
    conns = [weakref.ref(conn)]

    del pool, conn
    gc.collect()

    assert gone() is None
    assert conns[0]() is None


# Closing


def test_a_closing_pool_refuses_newcomers(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    pool.close()

    with pytest.raises(Closed):
        pool.getconn()

    assert pool._is_closing()
    assert pool._snapshot()["closing"]
    pool.putconn(conn)


def test_closing_begins_once(make_pool: MakePool) -> None:
    pool = make_pool()

    assert pool._start_closing()
    assert not pool._start_closing()


def test_closing_fails_whoever_waits(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    requests = [pool.request() for _ in range(3)]

    pool.close()

    for request in requests:
        with pytest.raises(Closed):
            request.result()
    pool.putconn(conn)


def test_waiters_are_failed_in_the_order_of_their_arrival(make_pool: MakePool) -> None:
    pool = make_pool(1)
    requests = [pool.request() for _ in range(2)]
    errors = [OSError(1), OSError(2)]

    assert pool._fail_first(errors[0])
    assert pool._fail_first(errors[1])
    assert not pool._fail_first(OSError(3))

    for request, error in zip(requests, errors, strict=True):
        with pytest.raises(OSError) as caught:
            request.result()
        assert caught.value is error


def test_closing_closes_what_is_idle(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.stock("a", "b", "b")

    pool.close()

    assert sorted(pool.closed) == [1, 2, 3]
    assert pool.total_count == 0
    assert idle(pool) == {"a": 0, "b": 0}


def test_idle_connections_are_kept_while_the_pool_is_open(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.stock("a")

    assert not pool._retire_idle()

    assert pool.idle_count == 1


def test_a_closing_pool_closes_what_is_returned(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    pool.close()
    assert pool.total_count == 1

    pool.putconn(conn)

    assert pool.closed == [conn.number]
    assert pool.total_count == 0


def test_a_closing_pool_closes_what_has_been_opened_late(make_pool: MakePool) -> None:
    pool = make_pool()
    request = pool.request()
    pool.close()
    assert pool.connecting_count == 1

    conn = pool.connected()

    assert pool.closed == [conn.number]
    assert (pool.total_count, pool.asked) == (0, [])
    with pytest.raises(Closed):
        request.result()


def test_a_closed_pool_opens_nothing_after_a_failed_opening(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.request()
    pool.close()

    pool.failed(OSError())

    assert (pool.total_count, pool.asked) == (0, [])


def test_an_ending_pool_serves_those_who_wait(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first, second = pool.request(), pool.request()
    pool.end()

    pool.putconn(conn)
    assert first.result() is conn
    pool.putconn(conn)
    assert second.result() is conn
    assert pool.closed == []
    pool.putconn(conn)

    assert pool.closed == [conn.number]
    assert pool.total_count == 0


def test_an_ending_pool_opens_for_those_who_wait(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.end()

    pool.putconn(conn, discard=True)
    fresh = pool.connected()

    assert request.result() is fresh
    pool.putconn(fresh)
    assert pool.total_count == 0


def test_an_ending_pool_tries_again_for_those_who_wait(make_pool: MakePool) -> None:
    pool = make_pool(1)
    first, second = pool.request(), pool.request()
    pool.end()

    pool.failed(OSError())
    conn = pool.connected()

    with pytest.raises(OSError):
        first.result()
    assert second.result() is conn
    pool.putconn(conn)
    assert pool.total_count == 0


def test_progress_is_told_when_a_connection_is_closed(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    pool.end()
    totals: list[int] = []
    pool.scripts["closing_progressed"] = lambda: totals.append(pool.total_count)

    pool.putconn(conn)

    assert totals == [0]


def test_progress_is_told_when_an_opening_fails(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.request()
    pool.end()
    totals: list[int] = []
    pool.scripts["closing_progressed"] = lambda: totals.append(pool.total_count)

    pool.failed(OSError())

    assert totals == [0]


def test_an_open_pool_tells_of_no_progress(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.grow("a")
    pool.putconn(conn, discard=True)
    pool.request()
    pool.failed(OSError())

    assert pool.progress == 0


# Hooks that raise


def raises(error: BaseException) -> Callable[..., None]:
    def script(*_: object) -> None:
        raise error

    return script


@pytest.fixture(params=[RuntimeError, Interrupt])
def error(request: pytest.FixtureRequest) -> BaseException:
    # Each time a new one, because a raised error keeps the frames it came through.
    kind: type[BaseException] = request.param
    return kind("hook")


@pytest.mark.parametrize("hook", ["new_waiter", "sleeping", "open"])
def test_a_hook_that_raises_in_a_request_loses_nothing(
    make_pool: MakePool, hook: str, error: BaseException
) -> None:
    pool = make_pool(2)
    pool.scripts[hook] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.request().result()

    assert caught.value is error
    assert pool.waiting_count == 0
    while pool.asked:
        pool.connected()
    assert pool.is_whole()


@pytest.mark.parametrize("hook", ["is_alive", "close_conn"])
def test_a_hook_that_raises_over_a_dead_connection_loses_nothing(
    make_pool: MakePool, clock: Any, hook: str, error: BaseException
) -> None:
    pool = make_pool(2, check_after=10)
    alive, dead = pool.stock("a", "a")
    dead.alive = False
    clock.now += 11
    pool.scripts[hook] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.getconn()

    assert caught.value is error
    assert pool.closed == [dead.number]
    assert pool.getconn() is alive
    pool.putconn(alive)
    assert pool.is_whole()


@pytest.mark.parametrize("hook", ["clean", "close_conn"])
def test_a_hook_that_raises_in_a_return_loses_nothing(
    make_pool: MakePool, hook: str, error: BaseException
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    conn.pgconn.transaction_status, conn.cleanable = IN_TRANSACTION, False
    request = pool.request()
    pool.scripts[hook] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.putconn(conn)

    assert caught.value is error
    assert pool.closed == [conn.number]
    fresh = pool.connected()
    assert request.result() is fresh
    pool.putconn(fresh)
    assert pool.is_whole()


def test_a_report_of_a_dropped_connection_that_raises_in_a_return_loses_nothing(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(2)
    dropped, conn = pool.grow("a", "a")
    pool.scripts["lost_one"] = raises(error)

    del dropped
    with pytest.raises(type(error)):
        pool.putconn(conn)
    del conn
    gc.collect()

    assert pool.is_whole()


def test_a_transaction_status_that_cannot_be_read_closes_the_connection(
    make_pool: MakePool, error: BaseException
) -> None:
    class Pgconn:
        @property
        def transaction_status(self) -> int:
            raise error

    class Unreadable(Conn):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            self.pgconn = Pgconn()  # type: ignore[assignment]

    pool = make_pool(1)
    pool.new_conn = lambda: Unreadable(1)
    (conn,) = (pool.request(), pool.connected())[1:]
    pool.actors[0].result()

    with pytest.raises(type(error)):
        pool.putconn(conn)

    assert pool.closed == [1]
    assert pool.total_count == 0


def test_a_connection_that_cannot_be_marked_as_lent_is_closed(
    make_pool: MakePool, error: BaseException
) -> None:
    class Rigid(Conn):
        rigid = False

        def __setattr__(self, name: str, value: object) -> None:
            if name == "_pool" and value is not None and self.rigid:
                raise error
            super().__setattr__(name, value)

    pool = make_pool(1)
    pool.new_conn = lambda: Rigid(1)
    pool.nodes = repeat("a")
    conn = pool.getconn()
    pool.nodes = None
    pool.putconn(conn)
    conn.rigid = True

    with pytest.raises(type(error)):
        pool.getconn()

    assert pool.closed == [1]
    assert pool.total_count == 0
    error.__traceback__ = None
    del conn  # which is no loss any more
    gc.collect()
    pool.check()
    assert pool.total_count == 0


def test_an_opening_that_cannot_be_started_is_tried_for_the_next_waiter(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    first, second = pool.request(), pool.request()
    error = RuntimeError("can't start new thread")
    pool.scripts["open"] = raises(error)

    pool.putconn(conn, discard=True)  # no concern of this caller

    with pytest.raises(RuntimeError) as caught:
        first.result()
    assert caught.value is error
    fresh = pool.connected()
    assert second.result() is fresh


def test_when_no_opening_can_be_started_every_waiter_hears_of_it(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    requests = [pool.request() for _ in range(3)]

    def cannot(_: object) -> None:
        pool.scripts["open"] = cannot
        raise RuntimeError("can't start new thread")

    pool.scripts["open"] = cannot
    pool.putconn(conn, discard=True)
    pool.scripts.clear()

    for request in requests:
        with pytest.raises(RuntimeError):
            request.result()
    assert pool.is_whole()


def test_an_interrupt_is_for_the_thread_that_it_came_to_and_nobody_else(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.scripts["open"] = raises(Interrupt())

    with pytest.raises(Interrupt):
        pool.putconn(conn, discard=True)

    assert request.asleep
    fresh = pool.connected()  # it is opened for as before
    assert request.result() is fresh


def test_a_report_of_a_closed_connection_that_raises_loses_nothing(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool.end()
    pool.scripts["closing_progressed"] = raises(error)

    with pytest.raises(type(error)) as caught:
        pool.putconn(conn, discard=True)

    assert caught.value is error
    fresh = pool.connected()
    assert request.result() is fresh


def test_a_report_of_a_failed_opening_that_raises_loses_nothing(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(1)
    pool.request()
    pool.request()  # for which another is to be opened
    pool.end()
    pool.scripts["closing_progressed"] = raises(error)

    with pytest.raises(type(error)):
        pool.failed(OSError())

    # Nobody waits for an opening that nobody was told to begin.
    assert pool.connecting_count == len(pool.asked)


def test_an_idle_connection_whose_closing_raises_is_closed_all_the_same(
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool()
    pool.stock("a", "a")
    pool._start_closing()
    pool.scripts["close_conn"] = raises(error)

    with pytest.raises(type(error)):
        pool._retire_idle()

    assert pool.total_count == 1
    assert pool._retire_idle()
    assert not pool._retire_idle()
    assert pool.total_count == 0


# Hooks that come back


@pytest.mark.parametrize("hook", ["clean", "close_conn", "new_waiter", "is_alive"])
def test_a_hook_may_borrow_and_return_a_connection(
    make_pool: MakePool, clock: Any, hook: str
) -> None:
    pool = make_pool(4, check_after=10)
    conn, other, spare = pool.grow("a", "a", "b")
    conn.pgconn.transaction_status, conn.cleanable = IN_TRANSACTION, False

    def use(*_: object) -> None:
        pool.putconn(spare)
        assert pool.getconn() is spare

    pool.scripts[hook] = use
    if hook == "is_alive":
        pool.putconn(other)
        clock.now += 11
        pool.putconn(pool.getconn())
    elif hook == "new_waiter":
        pool.putconn(pool.grow("a")[0])
    else:
        pool.putconn(conn)

    assert hook not in pool.scripts
    pool.check()


def test_the_hook_that_opens_may_serve_the_requester(make_pool: MakePool) -> None:
    pool = make_pool(2)
    (conn,) = pool.grow("a")
    pool.scripts["open"] = lambda _: pool.putconn(conn)

    assert pool.request().result() is conn

    pool.connected()
    assert pool.idle_count == 1


def test_a_finaliser_may_return_a_connection_wherever_the_collector_runs(
    make_pool: MakePool, eager_gc: None
) -> None:
    held: dict[int, Conn] = {}

    class Holder:
        number: int

        def __del__(self) -> None:
            pool.putconn(held.pop(self.number))

    pool = make_pool(4)
    pool.nodes = cycle("ab")

    def use() -> None:
        for number in range(500):
            holder: Any = Holder()
            holder.number, holder.itself = number, holder
            held[number] = pool.getconn()
            del holder
            while len(held) == 4:
                gc.collect()

    pool.actor(use).result()  # which would tell of a deadlock
    gc.collect()

    assert pool.is_whole()


def test_a_finaliser_may_return_a_connection_that_nobody_else_has(make_pool: MakePool) -> None:
    class Holder:
        conn: Conn

        def __del__(self) -> None:
            pool.putconn(self.conn)

    pool = make_pool(2)
    pool.nodes = repeat("a")
    holder: Any = Holder()
    holder.conn, holder.itself = pool.getconn(), holder

    # The collector has told the pool of the drop before it runs the finaliser.
    del holder
    gc.collect()

    conns = [pool.getconn(), pool.getconn()]
    assert conns[0] is not conns[1]
    assert lent(pool) == {"a": 2}
    pool.check()

    # It is noticed again when it is dropped.
    del conns
    gc.collect()
    pool.check()
    assert pool.total_count == 0


# Invariants


def test_the_reports_are_of_the_same_numbers(make_pool: MakePool) -> None:
    pool = make_pool(3)
    held = pool.grow("a", "b")
    pool.request()

    assert pool._snapshot() == {
        "total": 3,
        "idle": 0,
        "lent": 2,
        "connecting": 1,
        "waiting": 1,
        "closing": False,
        "shelves": {"a": (0, 1), "b": (0, 1)},
    }
    assert (pool.total_count, pool.idle_count) == (3, 0)
    assert (pool.connecting_count, pool.waiting_count) == (1, 1)
    assert len(held) == 2


def test_a_core_without_a_shell_has_no_hooks(core: Any) -> None:
    pool = core.pool.PoolCore(0, 1, 1, 1.0, -1, 0, 1.0, 0.0, True, 0)

    waiter = core.pool.Waiter(lambda: None)
    for hook, args in {
        "_new_waiter": (None,),
        "_sleep": (waiter, None),
        "_open": (None,),
        "_retry_later": (),
        "_is_alive": (None,),
        "_passes": (None, False),
        "_vet": (None,),
        "_pause": (None, 0.0, 0),
        "_failed_with": (None, None),
        "_clean": (None,),
        "_close_conn": (None, None),
        "_trace": (None,),
        "_untrace": (None,),
        "_notify": ("remove", None, None),
        "_progressed": (),
        "_lost_one": (None,),
        "_too_many": (),
        "_not_lent": (None,),
        "_closed_error": (),
    }.items():
        with pytest.raises(NotImplementedError):
            getattr(pool, hook)(*args)
