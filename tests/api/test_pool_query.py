"""`query`: what it does to the connections it borrows, and what it returns."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import weakref
from collections.abc import Callable
from datetime import timedelta
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row, scalar_row, tuple_row

import ybsmart
from tests.api.support import Queued
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


class Interrupt(BaseException):
    """Delivered from outside, as a KeyboardInterrupt is."""


def interrupt() -> None:
    raise Interrupt


def one_of(balanced: str, **options: Any) -> ConnectionPool[Switched]:
    return ConnectionPool(balanced, connection_class=Switched, max_size=1, **options)


def the_only(pool: ConnectionPool[Switched]) -> Switched:
    (conn,) = pool._idle_conns()
    assert isinstance(conn, Switched)
    return conn


# Autocommit


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
        for event in ("acquire", "release", "remove"):
            pool.on(event, look(event))
        pool.query("SELECT 1")
        pool.off("release", pool._listeners.of("release")[0])
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


def test_an_error_may_cost_the_connection(balanced: str) -> None:
    with one_of(balanced, discard_on_query_error=True) as pool:
        first = pool.query("SELECT pg_backend_pid()").scalar()
        with pytest.raises(psycopg.errors.DivisionByZero):
            pool.query("SELECT 1/0")
        assert pool.query("SELECT pg_backend_pid()").scalar() != first


def test_a_connection_that_broke_in_autocommit_is_replaced(balanced: str) -> None:
    with one_of(balanced) as pool:
        pool.query("SELECT 1")
        the_only(pool).pgconn.finish()
        assert pool.query("SELECT 1", retry=True).scalar() == 1
        pool._check_invariants()


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


# The cursor that is kept for the next query


def cursors_of(conn: Conn) -> list[Any]:
    found = (o for o in gc.get_objects() if isinstance(o, psycopg.Cursor))
    return [cursor for cursor in found if cursor.connection is conn]


def reachable(start: object) -> list[Any]:
    """Everything that an object refers to, but for code."""
    code = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType)
    found: dict[int, Any] = {id(start): start}
    new = [start]
    while new:
        new = [o for o in gc.get_referents(*new) if id(o) not in found and not isinstance(o, code)]
        found |= {id(o): o for o in new}
    return list(found.values())


def test_nothing_of_a_statement_stays_with_its_connection(balanced: str) -> None:
    with one_of(balanced) as pool:
        assert pool.query("SELECT %s::text || '!'", ["the parameter"]).scalar() == "the parameter!"
        conn = the_only(pool)
        assert len(cursors_of(conn)) == 1
        gc.collect()
        for thing in reachable(conn):
            assert not isinstance(thing, psycopg.pq.PGresult | psycopg.adapt.Transformer)
            assert not isinstance(thing, str | bytes) or "the parameter" not in str(thing)


def test_a_query_that_is_repeated_is_read_by_the_sessions_present_settings(balanced: str) -> None:
    statement = "SELECT timestamptz '2026-01-01 00:00Z', set_config('TimeZone', %s, false)"
    with one_of(balanced) as pool:
        for zone, hours in (("Asia/Tokyo", 9), ("UTC", 0)):
            moment, _ = pool.query(statement, [zone]).one()
            assert moment.utcoffset() == timedelta(hours=hours)


@pytest.mark.parametrize("autocommit", [False, True])
def test_who_borrows_a_connection_does_not_meet_the_cursor_of_the_queries(
    balanced: str, autocommit: bool
) -> None:
    with one_of(balanced, kwargs={"autocommit": autocommit}) as pool:
        pool.query("SELECT 1")
        pool.query("SELECT 1", row_factory=dict_row)
        conn = pool.getconn()
        assert cursors_of(conn) == []
        gc.disable()  # the cursor would refer to it in a circle
        try:
            del conn
            pool._sweep()
            assert pool.get_stats()["removed_leak"] == 1
        finally:
            gc.enable()


@pytest.mark.parametrize("broken", [False, True])
def test_a_connection_that_is_closed_leaves_nothing_to_the_garbage_collector(
    balanced: str, broken: bool
) -> None:
    with one_of(balanced) as pool:
        pool.query("SELECT 1")
        conn = weakref.ref(the_only(pool))
        if broken:
            the_only(pool).pgconn.finish()
        gc.disable()
        try:
            pool.drain()
            assert conn() is None
        finally:
            gc.enable()


def test_types_that_a_borrower_registers_hold_for_queries(balanced: str) -> None:
    class Shouted(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode().upper()

    with one_of(balanced) as pool:
        assert pool.query("SELECT 'a'::text").scalar() == "a"
        with pool.connection() as conn:
            conn.adapters.register_loader("text", Shouted)
        assert pool.query("SELECT 'a'::text").scalar() == "A"


def test_what_a_row_factory_keeps_of_its_cursor_stays_as_it_was(balanced: str) -> None:
    kept: list[Any] = []

    def keeping(cursor: Any) -> Any:
        kept.append(cursor)
        return tuple_row(cursor)

    with one_of(balanced) as pool:
        pool.query("SELECT 1 AS a")
        pool.query("SELECT 1 AS b", row_factory=keeping)
        pool.query("SELECT 1 AS c")
        assert [column.name for column in kept[0].description] == ["b"]
    with one_of(balanced, kwargs={"row_factory": keeping}) as pool:
        pool.query("SELECT 1 AS d")
        pool.query("SELECT 1 AS e", row_factory=dict_row)
        assert pool.query("SELECT 1 AS f").rows == [(1,)]
        names = [column.name for cursor in kept[1:] for column in cursor.description]
        assert names == ["d", "f"]


def test_each_query_has_its_own_row_factory(balanced: str) -> None:
    with one_of(balanced) as pool:
        for _ in range(2):
            assert pool.query("SELECT 1 AS n").rows == [(1,)]
            assert pool.query("SELECT 1 AS n", row_factory=dict_row).rows == [{"n": 1}]
            assert pool.query("SELECT 1 AS n", row_factory=scalar_row).rows == [1]
        with pool.connection() as conn:
            conn.row_factory = dict_row
        assert pool.query("SELECT 1 AS n").rows == [{"n": 1}]


def test_a_psycopg_whose_cursors_cannot_be_made_to_forget_gets_a_new_one_for_each_query(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    class Other(psycopg.Cursor[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(None)
            super().__init__(*args, **kwargs)

        def __setattr__(self, name: str, value: object) -> None:
            if name == "_tx" and value is None:
                raise AttributeError(name)
            super().__setattr__(name, value)

    monkeypatch.setattr("ybsmart.statements._Cursor", Other)
    with one_of(balanced, kwargs={"cursor_factory": Other}) as pool:
        for number in range(3):
            assert pool.query("SELECT %s::int", [number]).scalar() == number
            assert len(made) == number + 1
        assert cursors_of(the_only(pool)) == []


# What is called of the user's


def test_a_connections_own_cursor_is_used(balanced: str) -> None:
    made: list[Any] = []

    class Mine(ybsmart.Connection[Any]):
        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            made.append(kwargs.get("row_factory"))
            return super().cursor(*args, **kwargs)

    with ConnectionPool(balanced, connection_class=Mine) as pool:
        assert pool.query("SELECT 1 AS n").rows == [(1,)]
        assert pool.query("SELECT 1 AS n", row_factory=dict_row).rows == [{"n": 1}]
    assert made == [None, dict_row]


def test_a_cursor_class_of_the_users_says_what_the_result_is(balanced: str) -> None:
    class Mine(psycopg.Cursor[Any]):
        @property
        def description(self) -> Any:
            return ["mine"]

        @property
        def rowcount(self) -> int:
            return 17

        @property
        def statusmessage(self) -> str:
            return "MINE"

    kwargs = {"cursor_factory": Mine, "row_factory": dict_row}
    with ConnectionPool(balanced, kwargs=kwargs) as pool:
        result: Any = pool.query("SELECT 1 AS n")
        assert result.rows == [{"n": 1}]
        assert (result.description, result.rowcount, result.statusmessage) == (["mine"], 17, "MINE")


# Results


def columns(description: Any) -> Any:
    return description and [(tuple(c), c.type_display, repr(c)) for c in description]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS one, 'a'::varchar(7) AS text, 1.5::numeric(4,2) AS \"größe\", NULL",
        "SELECT n, n::text AS text FROM generate_series(1, 100) n",
        "SELECT n, n::text AS text FROM generate_series(1, 101) n",
        "SELECT 1 WHERE false",
        "SELECT",
        "SET application_name TO mine",
        "BEGIN; COMMIT",
        "CREATE TEMP TABLE mine (n int); INSERT INTO mine VALUES (1)",
        "VALUES (1), (2)",
        "",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_result_is_what_psycopg_says(balanced: str, query: Any, encoding: str) -> None:
    kwargs = {"client_encoding": encoding}
    with psycopg.connect(
        balanced.partition("?")[0], autocommit=True, client_encoding=encoding
    ) as conn:
        cursor = conn.execute(query)
        rows = cursor.fetchall() if cursor.description is not None else []
        with ConnectionPool(balanced, kwargs=kwargs, max_size=1) as pool:
            result = pool.query(query)
            pool.query("SET client_encoding TO SQL_ASCII")
        # It outlives its connection.
        for one in (result, copy.copy(result), pickle.loads(pickle.dumps(result))):
            assert one.rows == rows
            assert one.rowcount == cursor.rowcount
            assert one.statusmessage == cursor.statusmessage
            assert columns(one.description) == columns(cursor.description)
            assert one.description is one.description
            assert repr(one) == f"<Result {cursor.statusmessage}: {rows!r}>"


def test_a_description_knows_the_connections_own_types(balanced: str) -> None:
    def configure(conn: Conn) -> None:
        conn.adapters.types.add(psycopg.types.TypeInfo("whole_number", 23, 1007))

    with ConnectionPool(balanced, configure=configure) as pool:
        description = pool.query("SELECT 1").description
    assert description is not None
    assert description[0].type_display == "whole_number"


def test_a_result_does_not_keep_its_connection(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1) as pool:
        results = [pool.query("SELECT 1")]
        conn = pool.getconn()
        del conn
        gc.collect()
        pool._sweep()
        assert pool.total_count == 0
        assert pool.get_stats()["removed_leak"] == 1
        assert columns(results[0].description)


def test_query_returns_all_of_the_result(pool: ConnectionPool) -> None:
    result = pool.query("SELECT n, n * n AS square FROM generate_series(1, %s) n", [3])

    assert result.rows == [(1, 1), (2, 4), (3, 9)]
    assert list(result) == result.rows
    assert len(result) == result.rowcount == 3
    assert result.statusmessage == "SELECT 3"
    assert result.description is not None
    assert [column.name for column in result.description] == ["n", "square"]
    assert pool.query("SELECT 1 AS one", row_factory=dict_row).one() == {"one": 1}
    assert pool.query("SELECT 1 AS one", row_factory=dict_row).scalar() == 1
    with pytest.raises(psycopg.ProgrammingError, match="got 3"):
        result.one()


def test_query_runs_in_autocommit_and_leaves_the_connection_as_it_was(
    pool: ConnectionPool,
) -> None:
    assert pool.query("CREATE TEMP TABLE t (n int)").rows == []
    pool.query("VACUUM")  # not allowed in a transaction

    with pool.connection() as conn:
        assert not conn.autocommit


def test_an_sql_error_keeps_the_connection(pool: ConnectionPool) -> None:
    pid = pool.query("SELECT pg_backend_pid()").scalar()

    with pytest.raises(psycopg.errors.UndefinedTable):
        pool.query("SELECT * FROM nowhere")

    assert pool.query("SELECT pg_backend_pid()").scalar() == pid


@pytest.mark.parametrize("wrong", [None, 1, print, ["SELECT 1"]])
def test_something_that_is_no_query_is_refused_before_anything_is_lent(
    pool: ConnectionPool, wrong: Any
) -> None:
    with pytest.raises(TypeError, match=r"query: .*" + type(wrong).__name__):
        pool.query(wrong)

    assert pool.total_count == 0


def test_a_query_that_begins_a_transaction_leaves_nothing_behind(pool: ConnectionPool) -> None:
    pool.query("BEGIN")

    with pool.connection() as conn:
        assert not conn.autocommit
        conn.execute("CREATE TEMP TABLE t (n int)")
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
