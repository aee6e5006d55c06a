"""When the next connection may be opened: after failures, at a full server, one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.shell import (
    MakePool,
)

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
