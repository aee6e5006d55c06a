"""Which idle connection is lent: an even load on the nodes, the one returned last."""

from __future__ import annotations

import pytest

from tests.core.shell import (
    MakePool,
    lent,
)


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
