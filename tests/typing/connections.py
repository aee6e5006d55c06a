"""What type-checkers make of connections in code of our users. Checked, never executed.

A `type: ignore` here stands for an error that users must get: mypy reports those that are not
needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import psycopg_pool
from psycopg.rows import DictRow, TupleRow, class_row, dict_row
from typing_extensions import assert_type

import ybsmart


@dataclass
class Account:
    name: str


class Tagged(ybsmart.Connection[DictRow]):
    tag = ""


def connecting() -> None:
    conn = ybsmart.connect("load_balance=true")
    assert_type(conn, ybsmart.Connection[TupleRow])
    assert_type(conn.node, ybsmart.NodeInfo | None)
    assert_type(conn.execute("SELECT 1").fetchone(), TupleRow | None)
    with conn as same:
        assert_type(same, ybsmart.Connection[TupleRow])


def connecting_with_a_row_factory() -> None:
    assert_type(ybsmart.connect(row_factory=dict_row), ybsmart.Connection[DictRow])
    accounts = ybsmart.Connection.connect(row_factory=class_row(Account))
    assert_type(accounts, ybsmart.Connection[Account])
    assert_type(accounts.execute("SELECT 1").fetchall(), list[Account])


def connecting_with_properties() -> None:
    ybsmart.connect(
        host="h1,h2", port=5433, load_balance="prefer-rr", topology_keys="aws.us-west.*:1"
    )
    ybsmart.connect(load_balance=True, yb_servers_refresh_interval=60)
    ybsmart.connect(load_balance=[])  # type: ignore[call-overload]
    ybsmart.connect(1)  # type: ignore[call-overload]


def connecting_with_a_class_of_ones_own() -> None:
    tagged = Tagged.connect("")
    assert_type(tagged, Tagged)
    assert_type(tagged.tag, str)
    assert_type(tagged.execute("SELECT 1").fetchone(), DictRow | None)


async def connecting_asynchronously() -> None:
    conn = await ybsmart.AsyncConnection.connect("")
    assert_type(conn, ybsmart.AsyncConnection[TupleRow])
    assert_type(conn.node, ybsmart.NodeInfo | None)
    accounts = await ybsmart.AsyncConnection.connect(row_factory=class_row(Account))
    assert_type(accounts, ybsmart.AsyncConnection[Account])
    dicts = await ybsmart.AsyncConnection.connect(row_factory=dict_row)
    cursor = await dicts.execute("SELECT 1")
    assert_type(await cursor.fetchone(), DictRow | None)


def standing_in_for_psycopgs_own() -> None:
    conn: psycopg.Connection = ybsmart.connect()
    pool = psycopg_pool.ConnectionPool(connection_class=Tagged)
    assert_type(pool, psycopg_pool.ConnectionPool[Tagged])
    del conn


def looking_at_clusters() -> None:
    assert_type(ybsmart.connection_counts(), dict[str, int])
    assert_type(ybsmart.clusters(), tuple[ybsmart.ClusterInfo, ...])
    for cluster in ybsmart.clusters():
        assert_type(cluster.nodes, tuple[ybsmart.NodeInfo, ...])
        assert_type(cluster.nodes[0].connections, int)
    assert_type(ybsmart.from_env("READS"), str)
    assert_type(ybsmart.__impl__, str)


def failing() -> None:
    try:
        ybsmart.connect()
    except ybsmart.Unreachable as exc:
        assert_type(exc, ybsmart.Unreachable)
        error: psycopg.OperationalError = exc
        print(error.sqlstate)


def names_that_there_are_not() -> None:
    print(ybsmart.Conection)  # type: ignore[attr-defined]
