"""Who is served when, and how a request leaves the queue: in order, once, losing nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.actors import Actor
from tests.core.shell import (
    Interrupt,
    MakePool,
    TimedOut,
    TooMany,
    lent,
)

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


# The limit


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
