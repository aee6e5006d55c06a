"""`run_transaction` on real conflicts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import psycopg
import pytest

from tests.support import in_threads
from ybsmart import ConnectionPool
from ybsmart.testing import LocalCluster

SERIALIZABLE = psycopg.IsolationLevel.SERIALIZABLE


@pytest.fixture
def accounts(cluster: LocalCluster) -> Iterator[ConnectionPool]:
    """A pool on one node, with a table of two accounts of 100 each."""
    with ConnectionPool(cluster.conninfo(cluster.nodes[0]), max_size=8, timeout=20) as pool:
        pool.query("CREATE TABLE accounts (id int PRIMARY KEY, balance int)")
        pool.query("INSERT INTO accounts VALUES (1, 100), (2, 100)")
        try:
            yield pool
        finally:
            pool.query("DROP TABLE accounts")


def total(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT sum(balance) FROM accounts").fetchone()
    assert row is not None
    return int(row[0])


def test_two_that_conflict_are_both_through_in_the_end(accounts: ConnectionPool) -> None:
    both_have_read = threading.Barrier(2)
    runs: list[int] = []

    def add_the_total(target: int) -> int:
        first = True

        def fn(conn: psycopg.Connection[Any]) -> int:
            nonlocal first
            runs.append(target)
            before = total(conn)
            if first:
                first = False
                both_have_read.wait(10)
            conn.execute("INSERT INTO accounts VALUES (%s, %s)", [target, before])
            return before

        return accounts.run_transaction(fn, isolation_level=SERIALIZABLE)

    results: list[int] = []
    targets = iter((3, 4))
    assert in_threads(2, lambda: results.append(add_the_total(next(targets)))) == []
    # As if one had run after the other.
    assert sorted(results) == [200, 400]
    assert len(runs) == 3
    accounts._check_invariants()


def test_a_deadlock_is_repeated_too(accounts: ConnectionPool) -> None:
    both_hold_one = threading.Barrier(2)
    runs: list[object] = []

    def transfer(source: int, target: int) -> None:
        first = True

        def fn(conn: psycopg.Connection[Any]) -> None:
            nonlocal first
            runs.append(None)
            conn.execute("SET LOCAL deadlock_timeout = '10ms'")
            conn.execute("UPDATE accounts SET balance = balance - 1 WHERE id = %s", [source])
            if first:
                first = False
                both_hold_one.wait(10)
            conn.execute("UPDATE accounts SET balance = balance + 1 WHERE id = %s", [target])

        accounts.run_transaction(fn)

    pairs = iter(((1, 2), (2, 1)))
    assert in_threads(2, lambda: transfer(*next(pairs))) == []
    assert len(runs) == 3
    assert accounts.query("SELECT balance FROM accounts").rows == [(100,), (100,)]


def raising(sqlstate: str) -> Any:
    calls: list[object] = []

    def fn(conn: psycopg.Connection[Any]) -> None:
        calls.append(conn)
        conn.execute(f"DO $$ BEGIN RAISE SQLSTATE '{sqlstate}'; END $$")

    return fn, calls


def test_the_last_error_is_raised_when_the_retries_are_used_up(pool: ConnectionPool) -> None:
    fn, calls = raising("40001")
    with pytest.raises(psycopg.errors.SerializationFailure):
        pool.run_transaction(fn, max_retries=2)
    assert len(calls) == 3


@pytest.mark.parametrize("sqlstate", ["40002", "23505", "57014", "P0001"])
def test_any_other_error_is_raised_at_once(pool: ConnectionPool, sqlstate: str) -> None:
    fn, calls = raising(sqlstate)
    with pytest.raises(psycopg.Error) as caught:
        pool.run_transaction(fn)
    assert caught.value.sqlstate == sqlstate
    assert len(calls) == 1
    assert pool.idle_count == 1


def test_an_error_at_the_commit_is_repeated_as_well(accounts: ConnectionPool) -> None:
    runs = 0

    def fn(conn: psycopg.Connection[Any]) -> int:
        nonlocal runs
        runs += 1
        before = total(conn)
        conn.execute("UPDATE accounts SET balance = %s WHERE id = 1", [before + runs])
        if runs == 1:

            def other(conn: psycopg.Connection[Any]) -> None:
                conn.execute("UPDATE accounts SET balance = %s WHERE id = 2", [total(conn)])

            accounts.run_transaction(other, isolation_level=SERIALIZABLE)
        return runs

    assert accounts.run_transaction(fn, isolation_level=SERIALIZABLE) == 2


def test_the_connection_is_as_it_was_afterwards(pool: ConnectionPool) -> None:
    def fn(conn: psycopg.Connection[Any]) -> Any:
        assert (conn.isolation_level, conn.read_only, conn.deferrable) == (SERIALIZABLE, True, True)
        return conn.execute("SHOW transaction_isolation").fetchone()

    got = pool.run_transaction(fn, isolation_level=SERIALIZABLE, read_only=True, deferrable=True)
    assert got == ("serializable",)
    with pool.connection() as conn:
        assert (conn.isolation_level, conn.read_only, conn.deferrable) == (None, None, None)


def test_rollback_leaves_the_transaction_without_an_error(accounts: ConnectionPool) -> None:
    def fn(conn: psycopg.Connection[Any]) -> int:
        conn.execute("DELETE FROM accounts")
        raise psycopg.Rollback

    assert accounts.run_transaction(fn) is None
    with accounts.connection() as conn:
        assert total(conn) == 200


def test_what_is_no_function_is_refused(pool: ConnectionPool) -> None:
    with pytest.raises(TypeError, match="fn"):
        pool.run_transaction("SELECT 1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_retries"):
        pool.run_transaction(print, max_retries=-1)
    assert pool.total_count == 0


def test_after_an_interrupt_nobody_else_gets_the_characteristics_of_a_transaction(
    accounts: ConnectionPool,
) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        # At the end of the transaction, before the server is told.
        if frame.f_code.co_name == "_exec_command":
            raise Interrupt

    def fn(conn: psycopg.Connection[Any]) -> None:
        total(conn)
        sys.settrace(interrupt)

    accounts.resize(0, 1)
    try:
        with pytest.raises(Interrupt):
            accounts.run_transaction(fn, isolation_level=SERIALIZABLE, read_only=True)
    finally:
        sys.settrace(None)
    with accounts.connection() as conn:
        assert (conn.isolation_level, conn.read_only) == (None, None)
