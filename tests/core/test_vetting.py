"""Looks at connections before they are lent or in between, by the pool's and the user's checks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.shell import Interrupt, MakePool

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
    pool._set_flags(True, False, False, False, False)
    return pool


def test_what_is_lent_passes_the_users_check(make_pool: MakePool) -> None:
    pool = vetting(make_pool(2))
    (conn,) = pool.stock("a")
    pool.vetted.clear()

    assert pool.getconn() is conn
    assert pool.vetted == [conn.number]


def test_what_fails_the_check_is_closed_and_the_next_one_tried(
    make_pool: MakePool, clock: Any
) -> None:
    pool = vetting(make_pool(3))
    good, bad, worse = pool.stock("a", "a", "a")
    bad.alive = worse.alive = False

    assert pool.getconn(7.0) is good
    assert pool.closed == [worse.number, bad.number]
    assert pool.reasons == ["check"] * 2
    assert pool.pauses == [(7.0, clock.now, 0), (7.0, clock.now, 1)]


def test_the_request_has_begun_when_it_joined_the_queue(make_pool: MakePool, clock: Any) -> None:
    """So that its time in there is off its timeout when the check fails."""
    pool = vetting(make_pool(1))
    conn = pool.stock("a")[0]
    begun = clock.now
    assert pool.getconn() is conn
    request = pool.request()
    clock.now += 5
    conn.alive = False

    pool.putconn(conn)
    request.run()
    pool.connected()
    request.result()

    assert [started for _, started, _ in pool.pauses] == [begun]


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

    pool._set_flags(False, False, False, False, False)
    assert pool.is_whole()


def test_a_check_that_returns_the_connection_has_given_it_away(make_pool: MakePool) -> None:
    pool = vetting(make_pool(2))
    (conn,) = pool.stock("a")
    pool.scripts["vet"] = pool.putconn

    assert pool.getconn() is conn  # at the second try
    assert pool.vetted[-2:] == [conn.number] * 2
    pool.putconn(conn)
    assert pool.is_whole()
