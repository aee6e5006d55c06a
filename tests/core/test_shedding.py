"""A connection leaves a node so that another is opened elsewhere; nobody's is taken away."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from tests.core.shell import MakePool


def test_the_one_that_has_been_idle_the_longest_is_closed_and_another_opened(
    make_pool: MakePool,
) -> None:
    pool = make_pool(4)
    a1, _, b1 = pool.stock("a", "a", "b")

    pool._shed("a")

    assert pool.closed == [a1.number]
    assert len(pool.asked) == 1
    assert pool.total_count == 3
    pool.connected("c")
    assert pool._snapshot()["shelves"] == {"a": (1, 0), "b": (1, 0), "c": (1, 0)}
    assert b1.number in pool.open


def test_lent_ones_are_left_alone_and_the_first_to_come_back_is_closed(
    make_pool: MakePool,
) -> None:
    pool = make_pool(3)
    first, second, other = pool.grow("a", "a", "b")

    pool._shed("a")
    assert pool.closed == []

    pool.putconn(other)
    pool.putconn(second)
    pool.putconn(first)
    assert pool.closed == [second.number]
    pool.connected("b")
    assert pool._snapshot()["shelves"] == {"a": (1, 0), "b": (2, 0)}


def test_one_is_opened_in_all_for_a_waiter_and_in_the_stead_of_what_was_closed(
    make_pool: MakePool,
) -> None:
    pool = make_pool(2)
    conn, _ = pool.grow("a", "a")
    request = pool.request()

    pool._shed("a")
    pool.putconn(conn)

    assert len(pool.asked) == 1
    fresh = pool.connected("b")
    assert request.result() is fresh
    assert not pool.asked


@pytest.mark.parametrize("key", [None, "b"])
def test_the_next_decision_takes_the_place_of_the_last(
    make_pool: MakePool, key: str | None
) -> None:
    pool = make_pool(2)
    conn, _ = pool.grow("a", "b")
    pool._shed("a")

    pool._shed(key)

    pool.putconn(conn)
    assert pool.closed == []


def test_a_closing_pool_and_a_smaller_one_replace_nothing(make_pool: MakePool) -> None:
    pool = make_pool(3)
    conns = pool.grow("a", "a", "a")
    pool._shed("a")
    pool._set_sizes(0, 2)
    pool.putconn(conns[0])
    assert (pool.total_count, pool.asked) == (2, [])

    pool.close()
    pool._shed("a")
    assert not pool.asked


def test_a_pool_that_ends_serves_its_queue_with_what_it_has(make_pool: MakePool) -> None:
    pool = make_pool(1)
    (conn,) = pool.grow("a")
    request = pool.request()
    pool._shed("a")

    pool._start_closing()
    pool.putconn(conn)

    assert request.result() is conn
    assert not pool.asked


def test_a_replacement_that_fails_frees_its_place(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.stock("a", "a")

    pool._shed("a")
    pool.failed(RuntimeError("down"))

    assert (pool.total_count, pool.idle_count, pool.asked) == (1, 1, [])
    assert pool.is_whole()


def test_what_is_closed_for_its_node_tells_why(make_pool: MakePool) -> None:
    reasons: list[str] = []
    pool = make_pool(3)
    close = pool._close_conn

    def noted(conn: Any, reason: str) -> None:
        reasons.append(reason)
        close(conn, reason)

    pool._close_conn = noted
    conns = pool.grow("a", "b", "c")

    pool._evict("a", "drain")
    pool._evict("b", "evict")
    pool.putconn(conns[0])

    assert reasons == ["drain"]


def test_shedding_in_turn_loses_nothing(make_pool: MakePool) -> None:
    pool = make_pool(6)
    conns = pool.grow("a", "a", "a", "b", "b", "b")
    keys = cycle("ab")
    for conn in conns:
        pool._shed(next(keys))
        pool.putconn(conn)
        while pool.asked:
            pool.connected("c")
    pool._shed(None)
    assert pool.total_count == 6
    assert pool.is_whole()
