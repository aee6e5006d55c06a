"""What is opened for whom, and who hears of it when it fails."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.shell import (
    NEVER,
    Conn,
    Interrupt,
    MakePool,
    NotLent,
)


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
