"""Connections that nobody refers to any more give their places back."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from tests.core.shell import (
    MakePool,
    make_shell,
)


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
