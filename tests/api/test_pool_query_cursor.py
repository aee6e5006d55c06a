"""The cursor that `query` keeps with its connection for the next one: nobody can tell."""

from __future__ import annotations

import gc
import weakref
from datetime import timedelta
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row, scalar_row, tuple_row

import ybsmart
from tests.api.support import the_only
from tests.conftest import GIL
from ybsmart import ConnectionPool

Conn = psycopg.Connection[Any]


def one_of(balanced: str, **options: Any) -> ConnectionPool[ybsmart.Connection[Any]]:
    return ConnectionPool(balanced, max_size=1, **options)


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


@pytest.mark.skipif(
    not GIL, reason="what one thread made and another drops may live on for a while"
)
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
