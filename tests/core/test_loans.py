"""Returning: what becomes of a connection, and whose it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.shell import (
    IN_TRANSACTION,
    Conn,
    MakePool,
    NotLent,
)

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
    pool._set_flags(False, False, False, True, False)

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
