"""A pool that closes or ends: who is still served, what is closed when."""

from __future__ import annotations

import pytest

from tests.core.shell import (
    Closed,
    MakePool,
    idle,
)


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
