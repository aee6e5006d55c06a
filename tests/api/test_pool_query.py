"""`query`: what it accepts and returns, and what errors do to the connection."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import ybsmart
from tests.support import until
from ybsmart import ConnectionPool

Conn = psycopg.Connection[Any]

# Statements


@pytest.mark.parametrize("wrong", [None, 1, print, ["SELECT 1"]])
def test_something_that_is_no_query_is_refused_before_anything_is_lent(
    pool: ConnectionPool, wrong: Any
) -> None:
    with pytest.raises(TypeError, match=r"query: .*" + type(wrong).__name__):
        pool.query(wrong)

    assert pool.total_count == 0


# Errors


def test_an_sql_error_keeps_the_connection(pool: ConnectionPool) -> None:
    pid = pool.query("SELECT pg_backend_pid()").scalar()

    with pytest.raises(psycopg.errors.UndefinedTable):
        pool.query("SELECT * FROM nowhere")

    assert pool.query("SELECT pg_backend_pid()").scalar() == pid


def test_an_error_may_cost_the_connection(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, discard_on_query_error=True) as pool:
        first = pool.query("SELECT pg_backend_pid()").scalar()
        with pytest.raises(psycopg.errors.DivisionByZero):
            pool.query("SELECT 1/0")
        assert pool.query("SELECT pg_backend_pid()").scalar() != first


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

        def is_gone() -> bool:
            gc.collect()
            pool._sweep()
            return pool.total_count == 0

        until(is_gone)  # the thread that has opened it may still have it
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
