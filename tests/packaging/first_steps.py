"""The examples of YugabyteDB's and node-postgres's documentation, in Python, as a new user types
them. Run in an interpreter that has ybsmart and psycopg and nothing else:

    python first_steps.py HOST PORT {uniform,topology,pool}

against the three nodes of YugabyteDB's tutorial. Nothing of the tests is imported here.
"""

from __future__ import annotations

import sys

import ybsmart
from ybsmart import ConnectionPool

host, port, example = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def counts(properties: str) -> list[int]:
    """The connections to each node after 30 have been made."""
    url = f"postgresql://yugabyte:yugabyte@{host}:{port}/yugabyte?{properties}"
    connections = [ybsmart.connect(url) for _ in range(30)]
    by_node = ybsmart.connection_counts()
    for connection in connections:
        connection.close()
    assert set(ybsmart.connection_counts().values()) == {0}
    return [by_node[node] for node in sorted(by_node)]


def uniform() -> None:
    assert counts("loadBalance=true") == [10, 10, 10]


def topology() -> None:
    assert counts("loadBalance=true&&topologyKey=aws.us-west.us-west-2a") == [15, 15, 0]


def pool() -> None:
    pool = ConnectionPool(
        kwargs={
            "user": "yugabyte",
            "password": "yugabyte",
            "host": host,
            "port": port,
            "loadBalance": True,
            "dbname": "yugabyte",
        },
        max_size=100,
    )
    assert (pool.total_count, pool.idle_count) == (0, 0)

    @pool.on("connect")
    def set_date_style(conn: ybsmart.Connection) -> None:
        conn.execute("SET DATESTYLE = iso, mdy")

    client = pool.getconn()
    client.execute("SELECT now()")
    assert (pool.total_count, pool.idle_count) == (1, 0)
    pool.putconn(client, discard=True)
    assert (pool.total_count, pool.idle_count) == (0, 0)

    assert pool.query("SELECT %s::text AS name", ["brianc"]).rows == [("brianc",)]
    with pool.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert (pool.total_count, pool.idle_count) == (1, 1)
    pool.end()
    print("pool has ended")


{"uniform": uniform, "topology": topology, "pool": pool}[example]()
