"""What type-checkers make of pools in code of our users. Checked, never executed.

A `type: ignore` here stands for an error that users must get: mypy reports those that are not
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import DictRow, TupleRow, class_row, dict_row, tuple_row
from typing_extensions import assert_type

import ybsmart
from ybsmart import ConnectionPool


@dataclass
class Account:
    name: str


class Tagged(ybsmart.Connection[DictRow]):
    tag = ""


def the_class_of_connections() -> None:
    assert_type(ConnectionPool(), ConnectionPool[ybsmart.Connection[TupleRow]])
    assert_type(ConnectionPool("", max_size=3), ConnectionPool)
    assert_type(ConnectionPool(connection_class=Tagged), ConnectionPool[Tagged])
    dicts = ConnectionPool(
        connection_class=ybsmart.Connection[DictRow], kwargs={"row_factory": dict_row}
    )
    assert_type(dicts, ConnectionPool[ybsmart.Connection[DictRow]])
    plain = ConnectionPool(connection_class=psycopg.Connection[TupleRow])
    assert_type(plain, ConnectionPool[psycopg.Connection[TupleRow]])
    ConnectionPool(connection_class=psycopg.AsyncConnection)  # type: ignore[type-var]


def lending(pool: ConnectionPool, own: ConnectionPool[Tagged]) -> None:
    assert_type(pool.connection(), AbstractContextManager[ybsmart.Connection[TupleRow]])
    with pool.connection(timeout=1.5) as conn:
        assert_type(conn, ybsmart.Connection[TupleRow])
        assert_type(conn.node, ybsmart.NodeInfo | None)
    assert_type(own.getconn(), Tagged)
    with own.connection() as tagged:
        assert_type(tagged, Tagged)
        assert_type(tagged.execute("SELECT 1").fetchone(), DictRow | None)
        own.putconn(tagged, discard=True)
    assert_type(own.connection_class, type[Tagged])
    with own as same:
        assert_type(same, ConnectionPool[Tagged])


def querying(pool: ConnectionPool, own: ConnectionPool[Tagged]) -> None:
    assert_type(pool.query("SELECT 1"), ybsmart.Result[TupleRow])
    assert_type(own.query("SELECT %s", [1]), ybsmart.Result[DictRow])
    assert_type(own.query("SELECT 1", row_factory=tuple_row).one(), TupleRow)
    accounts = pool.query("SELECT 1", row_factory=class_row(Account), retry=True)
    assert_type(accounts, ybsmart.Result[Account])
    assert_type(accounts.rows, list[Account])
    assert_type(list(accounts), list[Account])
    assert_type(accounts.one().name, str)
    assert_type(accounts.rowcount, int)
    assert_type(accounts.statusmessage, str | None)
    assert_type(len(accounts), int)
    pool.query(1)  # type: ignore[call-overload]


def transactions(pool: ConnectionPool, own: ConnectionPool[Tagged]) -> None:
    def transfer(conn: ybsmart.Connection) -> Account:
        return Account(str(conn.node))

    def look(conn: Tagged) -> None: ...

    assert_type(pool.run_transaction(transfer, max_retries=3), Account)
    assert_type(own.run_transaction(lambda conn: conn.tag), str)
    pool.run_transaction(look)  # type: ignore[arg-type]


def hooks() -> None:
    def configure(conn: Tagged) -> None: ...
    def reset(conn: psycopg.Connection[Any]) -> None: ...

    ConnectionPool(
        connection_class=Tagged,
        configure=configure,
        reset=reset,
        check=ConnectionPool.check_connection,
    )


def events(pool: ConnectionPool) -> None:
    @pool.on("connect")
    def connected(conn: ybsmart.Connection) -> int:
        return id(conn)

    @pool.on("error")
    def failed(error: Exception, conn: ybsmart.Connection | None) -> None: ...

    # The function stays what it is.
    assert_type(connected(ybsmart.connect()), int)
    failed(OSError(), None)
    pool.on("remove", print)
    for event in ("connect", "release"):
        pool.on(event, print)
    pool.off("connect", connected)

    pool.on("error", connected)  # type: ignore[call-overload]
    pool.on("connect", failed)  # type: ignore[call-overload]
    pool.on("connected", connected)  # type: ignore[call-overload]


def properties(pool: ConnectionPool) -> None:
    assert_type(pool.name, str)
    assert_type(pool.min_size, int)
    assert_type(pool.max_size, int)
    assert_type(pool.total_count, int)
    assert_type(pool.idle_count, int)
    assert_type(pool.waiting_count, int)
    assert_type(pool.connecting_count, int)
    assert_type(pool.closed, bool)
    assert_type(pool.conninfo, str | Callable[[], str])
    assert_type(pool.kwargs, dict[str, Any] | Callable[[], Mapping[str, Any]])
    assert_type(pool.timeout, float | None)
    assert_type(pool.get_stats(), dict[str, Any])
    assert_type(pool.holders(), list[ybsmart.Holder])
    pool.leak_detection_threshold = 5
    pool.total_count = 1  # type: ignore[misc]


def a_pool_of_any_connections(pool: ConnectionPool[psycopg.Connection[Any]]) -> None:
    """A function that takes any pool takes each."""
    a_pool_of_any_connections(ConnectionPool())
    a_pool_of_any_connections(ConnectionPool(connection_class=Tagged))


def errors(pool: ConnectionPool) -> None:
    try:
        pool.getconn(0)
    except ybsmart.PoolTimeout as exc:
        assert_type(exc, ybsmart.PoolTimeout)
        error: psycopg.OperationalError = exc
        print(error.sqlstate)
    except (ybsmart.PoolClosed, ybsmart.TooManyRequests, ybsmart.PoolDeadlock) as other:
        closed: ybsmart.PoolError = other
        del closed
