"""`query` in autocommit: when it is switched, and that nobody else meets it, whatever happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import psycopg
import pytest
from psycopg.rows import tuple_row

import ybsmart
from tests.api.support import Queued, the_only
from tests.servers import pid
from ybsmart import ConnectionPool
from ybsmart.testing import LocalCluster

Conn = psycopg.Connection[Any]
IDLE = psycopg.pq.TransactionStatus.IDLE


class Switched(ybsmart.Connection[Any]):
    """Has an `autocommit` of its own, and tells what it is set to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.switches: list[bool] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    @property
    def autocommit(self) -> bool:
        return super().autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self.before()
        self.set_autocommit(value)
        self.switches.append(value)
        self.after()


def one_of(balanced: str, **options: Any) -> ConnectionPool[Switched]:
    return ConnectionPool(balanced, connection_class=Switched, max_size=1, **options)


# When it is switched, and for whom


def test_query_runs_in_autocommit_and_leaves_the_connection_as_it_was(
    pool: ConnectionPool,
) -> None:
    assert pool.query("CREATE TEMP TABLE t (n int)").rows == []
    pool.query("VACUUM")  # not allowed in a transaction

    with pool.connection() as conn:
        assert not conn.autocommit


def test_autocommit_is_switched_when_another_kind_of_borrower_comes(balanced: str) -> None:
    with one_of(balanced) as pool:
        for _ in range(3):
            pool.query("SELECT 1")
        assert the_only(pool).switches == [True]

        for _ in range(2):
            with pool.connection() as conn:
                assert not conn.autocommit
                assert conn.switches == [True, False]
        conn = pool.getconn()
        assert not conn.autocommit
        pool.putconn(conn)
        assert conn.switches == [True, False]

        pool.query("VACUUM")  # not allowed in a transaction
        pool.run_transaction(lambda conn: conn.execute("SELECT 1"))
        assert conn.switches == [True, False, True, False]


def test_what_was_autocommit_before_stays_so_and_is_not_switched(balanced: str) -> None:
    with one_of(balanced) as pool:
        with pool.connection() as conn:
            conn.autocommit = True
        pool.query("SELECT 1")
        with pool.connection() as conn:
            assert conn.autocommit
            assert conn.switches == [True]
            conn.autocommit = False
        pool.query("SELECT 1")
        with pool.connection() as conn:
            assert not conn.autocommit
    with one_of(balanced, kwargs={"autocommit": True}) as pool:
        pool.query("SELECT 1")
        with pool.connection() as conn:
            assert conn.autocommit
            assert conn.switches == []


@pytest.mark.parametrize("autocommit", [False, True])
def test_no_function_of_the_users_meets_the_pools_autocommit(
    balanced: str, autocommit: bool
) -> None:
    seen: list[tuple[str, bool]] = []

    def look(name: str) -> Callable[..., None]:
        return lambda *args: seen.append((name, args[-1].autocommit))

    class Looking(Switched):
        def close(self) -> None:
            look("close")(self)
            super().close()

    class Pool(ConnectionPool[Looking]):
        @staticmethod
        def check_connection(conn: Conn) -> None:
            look("check_connection")(conn)

    options: dict[str, Any] = {"connection_class": Looking, "max_size": 1}
    options["kwargs"] = {"autocommit": autocommit}
    with Pool(balanced, **options) as pool:
        pool.query("SELECT 1")
        pool.check()
        pool.query("SELECT 1")
        for event in ("acquire", "remove"):
            pool.on(event, look(event))
        release = pool.on("release", look("release"))
        pool.query("SELECT 1")
        pool.off("release", release)
        pool.query("SELECT 1")
    with Pool(balanced, check=look("check"), reset=look("reset"), **options) as pool:
        pool.query("SELECT 1")
        pool.query("SELECT 1")

    names = {name for name, _ in seen}
    assert names == {"check_connection", "acquire", "release", "remove", "check", "reset", "close"}
    assert {state for _, state in seen} == {autocommit}


def test_a_waiter_gets_it_without(balanced: str) -> None:
    waiters: list[Queued] = []

    def row_factory(cursor: Any) -> Any:
        if not waiters:
            waiters.append(Queued(pool))
        return tuple_row(cursor)

    with one_of(balanced) as pool:
        pool.query("SELECT 1", row_factory=row_factory)
        conn = waiters[0].result()
        assert not conn.autocommit
        assert conn.switches == [True, False]
        pool.putconn(conn)


def test_leaving_autocommit_takes_no_round_trip(cluster: LocalCluster, balanced: str) -> None:
    with one_of(balanced, check_after=60) as pool:
        pool.query("SELECT 1")
        node = the_only(pool).node
        assert node is not None
        (paused,) = [n for n in cluster.nodes if (n.host, n.port) == (node.host, node.port)]
        cluster.pause(paused)
        try:
            conn = pool.getconn(0)
            assert not conn.autocommit
            pool.putconn(conn)
        finally:
            cluster.resume(paused)


@pytest.mark.parametrize("reset_on_return", ["rollback", "discard", None])
@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("BEGIN", True),
        ("BEGIN; SELECT 1/0", True),
        ("COMMIT", True),
        ("SET application_name TO mine", True),
        ("LISTEN channel", True),
        ("SELECT 1; SELECT 2", True),
        ("SELECT nothing", True),
        ("COPY (SELECT 1) TO STDOUT", False),
        ("SELECT pg_terminate_backend(pg_backend_pid())", False),
    ],
)
def test_whatever_is_executed_the_next_ones_are_not_in_its_transaction(
    balanced: str, statement: str, kept: bool, reset_on_return: str | None
) -> None:
    with one_of(balanced, reset_on_return=reset_on_return) as pool:
        first = pool.query("SELECT pg_backend_pid()").scalar()
        for use in (lambda: pool.query("VACUUM"), lambda: None):
            try:
                pool.query(statement)
            except psycopg.Error:
                pass
            use()
            with pool.connection() as conn:
                assert conn.pgconn.transaction_status == IDLE
                assert not conn.autocommit
                assert (pid(conn) == first) == kept
        assert pool.get_stats()["returns_rolled_back"] == 0
        pool._check_invariants()


def test_a_connection_that_broke_in_autocommit_is_replaced(balanced: str) -> None:
    with one_of(balanced) as pool:
        pool.query("SELECT 1")
        the_only(pool).pgconn.finish()
        assert pool.query("SELECT 1", retry=True).scalar() == 1
        pool._check_invariants()


def test_a_query_that_begins_a_transaction_leaves_nothing_behind(pool: ConnectionPool) -> None:
    pool.query("BEGIN")

    with pool.connection() as conn:
        assert not conn.autocommit
        conn.execute("CREATE TEMP TABLE t (n int)")
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


# Interrupts and failures at the switch


class Interrupt(BaseException):
    """Delivered from outside, as a KeyboardInterrupt is."""


def interrupt() -> None:
    raise Interrupt


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_at_the_switch_leaves_nothing_behind(balanced: str, moment: str) -> None:
    def nothing() -> None:
        pass

    with one_of(balanced) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TEMP TABLE t (n int)")
            setattr(conn, moment, interrupt)
        with pytest.raises(Interrupt):
            pool.query("SELECT 1")
        setattr(conn, moment, nothing)

        # In autocommit, or what is inserted would be rolled back.
        pool.query("INSERT INTO t VALUES (1)")
        with pool.connection() as conn:
            assert not conn.autocommit
            assert conn.execute("SELECT * FROM t").fetchall() == [(1,)]
            conn.rollback()
            setattr(conn, moment, nothing)
        pool.query("SELECT 1")
        setattr(conn, moment, interrupt)
        with pytest.raises(Interrupt):
            pool.getconn()
        assert conn.closed
        with pool.connection() as other:
            assert other is not conn
            assert not other.autocommit
        pool._check_invariants()


def test_a_connection_that_cannot_be_restored_is_closed(
    balanced: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError("as written")

    with one_of(balanced) as pool:
        pool.query("SELECT 1")
        conn = the_only(pool)
        conn.before = fail
        with pytest.raises(psycopg.OperationalError, match="closed"), pool.connection() as got:
            assert got is conn
            conn.execute("SELECT 1")
        assert "could not be restored" in caplog.text
        assert "as written" in caplog.text
        pool.query("SELECT 1")
        pool._check_invariants()


HERE = tuple(os.path.dirname(str(package.__file__)) for package in (ybsmart, psycopg))


class InterruptAt:
    """Raises `Interrupt` when a function of the shell or of psycopg is called or returns for that
    many times: where the interpreter would."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if os.path.dirname(frame.f_code.co_filename) not in HERE:
            return None
        frame.f_trace_lines = False
        if event in ("call", "return"):
            self.left -= 1
            if self.left < 0:
                raise Interrupt
        return self.trace


def test_an_interrupt_anywhere_in_a_query_or_after_it_leaves_nothing_behind(balanced: str) -> None:
    states: list[bool] = []

    def row_factory(cursor: Any) -> Any:
        states.append(cursor.connection.autocommit)
        return tuple_row(cursor)

    def query() -> None:
        pool.query("BEGIN")
        pool.query("SELECT 1", row_factory=row_factory)

    def borrow() -> None:
        pool.putconn(pool.getconn())

    with ConnectionPool(balanced, max_size=1, kwargs={"row_factory": row_factory}) as pool:
        for before, action in ((borrow, query), (query, borrow)):
            interrupted = True
            number = 0
            while interrupted:
                before()
                try:
                    with InterruptAt(number):
                        action()
                    interrupted = False
                except Interrupt:
                    number += 1
                query()
                with pool.connection() as conn:
                    assert not conn.autocommit
                    assert conn.pgconn.transaction_status == IDLE
                pool._check_invariants()
            assert number > 10
    assert all(states)
