"""What servers say is not trusted: neither printed raw, nor believed, nor kept without end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import psycopg
import pytest

import ybsmart
from ybsmart import ConnectionPool, registry
from ybsmart.testing import LocalCluster

ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202e\r\n"

COLUMNS = (
    "host text, port int8, num_connections int8, node_type text, cloud text, region text,"
    " zone text, public_ip text, uuid text, universe_uuid text"
)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        yield cluster


class Lying:
    """A server that lists whatever it is told to list."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.node = cluster.nodes[0]
        registry.forget()

    def says(self, *rows: Mapping[str, object], body: str | None = None) -> str:
        """Have it list these rows, or what `body` selects; return a URL."""
        if body is None:
            body = "VALUES " + ", ".join(self._row(row) for row in rows)
        self.cluster.execute(
            self.node,
            "DROP FUNCTION IF EXISTS pg_catalog.yb_servers();"
            f"CREATE FUNCTION pg_catalog.yb_servers() RETURNS TABLE ({COLUMNS})"
            f" LANGUAGE plpgsql AS $body$ BEGIN RETURN QUERY {body}; END $body$",
        )
        return self.cluster.conninfo(load_balance=True)

    def _row(self, row: Mapping[str, object]) -> str:
        whole = {
            **{"host": self.node.host, "port": self.node.port, "num_connections": 0},
            **{"node_type": "primary", "cloud": "c", "region": "r", "zone": "z"},
            **{"public_ip": "", "uuid": "u", "universe_uuid": "universe"},
            **row,
        }
        types = [column.split()[1] for column in COLUMNS.split(", ")]
        values = zip(whole.values(), types, strict=True)
        return "(" + ", ".join(f"{literal(value)}::{type_}" for value, type_ in values) + ")"


def literal(value: object) -> str:
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


@pytest.fixture
def lying(server: LocalCluster) -> Lying:
    return Lying(server)


def is_clean(text: str) -> bool:
    return not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in text) and (
        "\u202e" not in text
    )


def test_escape_sequences_are_not_printed(lying: Lying, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = dict.fromkeys(
        ("node_type", "cloud", "region", "zone", "public_ip", "uuid", "universe_uuid"), ESCAPE
    )
    url = lying.says(texts, {"host": ESCAPE + "h", "uuid": "other"})
    with ConnectionPool(url) as pool:
        with pool.connection() as conn:
            assert conn.node is not None
            shown = [repr(conn.node), str(conn.node), conn.node.placement, conn.node.public_ip]
            shown += [str(pool.get_stats()), str(pool.holders()), str(conn)]
    (info,) = ybsmart.clusters()
    shown += [repr(info), str(info.universe_uuid), str(ybsmart.connection_counts())]
    for node in info.nodes:
        shown += map(str, node)
    shown += [record.getMessage() for record in caplog.records]
    assert "ignored a row" in caplog.text
    assert [text for text in shown if not is_clean(text)] == []


def test_nor_are_those_in_errors(lying: Lying, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = literal(ESCAPE).replace("'", "''")
    lying.says({})
    lying.cluster.execute(
        lying.node,
        "CREATE OR REPLACE FUNCTION pg_catalog.yb_servers() RETURNS TABLE"
        f" ({COLUMNS}) LANGUAGE plpgsql AS '"
        f" BEGIN RAISE EXCEPTION USING MESSAGE = {text}; END'",
    )
    url = lying.cluster.conninfo(load_balance=True)
    with ybsmart.connect(url) as conn:
        assert conn.node is None
    registry.forget()
    with pytest.raises(psycopg.OperationalError) as refused:
        ybsmart.connect(url, load_balance="only-rr")
    registry.forget()
    with pytest.raises(psycopg.OperationalError) as unknown:
        ybsmart.connect(url, dbname=f"x{ESCAPE}")
    shown = [str(refused.value), str(unknown.value)]
    shown += [record.getMessage() for record in caplog.records]
    assert len(shown) > 2
    assert [text for text in shown if not is_clean(text)] == []


@pytest.mark.parametrize("port", [0, -1, 65536, 70000, 2**62, None])
def test_a_port_that_is_none_is_no_node(lying: Lying, port: int | None) -> None:
    url = lying.says({"port": port, "uuid": "absurd"}, {})
    with ybsmart.connect(url) as conn:
        assert conn.node is not None
        (info,) = ybsmart.clusters()
        assert [node.uuid for node in info.nodes] == ["u"]


@pytest.mark.parametrize(
    "host",
    ["", None, "a,b", "/tmp", "@x", "h p", "h' host=evil", "h\nport=1", "x" * 300, "h=1", "%h"],
)
def test_a_host_that_might_mean_something_else_is_no_node(lying: Lying, host: str | None) -> None:
    url = lying.says({"host": host, "uuid": "absurd"}, {})
    with ybsmart.connect(url):
        (info,) = ybsmart.clusters()
        assert [node.uuid for node in info.nodes] == ["u"]


def test_rows_that_repeat_each_other_are_one_node(lying: Lying) -> None:
    url = lying.says(*[{}] * 50, *[{"uuid": None}] * 50)
    conns = [ybsmart.connect(url) for _ in range(4)]
    assert sum(ybsmart.connection_counts().values()) == 4
    for conn in conns:
        conn.close()
    assert set(ybsmart.connection_counts().values()) == {0}


def test_nulls_everywhere_but_in_the_address(lying: Lying) -> None:
    rest = ("num_connections", "node_type", "cloud", "region", "zone", "public_ip", "uuid")
    url = lying.says(dict.fromkeys((*rest, "universe_uuid")))
    with ybsmart.connect(url) as conn:
        assert conn.node is not None
        assert (conn.node.cloud, conn.node.uuid, conn.node.node_type) == ("", "", "primary")
    (info,) = ybsmart.clusters()
    assert not info.universe_uuid


def test_thousands_of_rows_and_long_texts_are_not_kept(
    lying: Lying, caplog: pytest.LogCaptureFixture
) -> None:
    body = (
        f"SELECT '{lying.node.host}', {lying.node.port}::int8, 0::int8, repeat('p', 5000),"
        " repeat('c', 5000), repeat('r', 5000), repeat('z', 5000), '', 'u' || i, 'universe'"
        " FROM generate_series(1, 5000) i"
    )
    url = lying.says(body=body)
    with ybsmart.connect(url):
        (info,) = ybsmart.clusters()
        assert len(info.nodes) <= 1000
        assert max(len(text) for node in info.nodes for text in map(str, node)) <= 2000
    assert sum(len(record.getMessage()) for record in caplog.records) < 5000


def test_the_users_security_settings_hold_for_every_server_and_address() -> None:
    from ybsmart.dialing import Target
    from ybsmart.request import request_of

    settings = {
        "sslmode": "verify-full",
        "sslrootcert": "/ca.crt",
        "sslcert": "/client.crt",
        "sslkey": "/client.key",
        "channel_binding": "require",
        "gssencmode": "disable",
        "ssl_min_protocol_version": "TLSv1.3",
        "requirepeer": "postgres",
    }
    request = request_of("host=h1 user=u load_balance=true", settings)
    for target in (
        Target("node", "10.0.0.1", "5433"),
        Target("public", "", "5433"),
        Target("h1", "", "1"),
    ):
        told = psycopg.conninfo.conninfo_to_dict(request.conninfo_for(target).decode())
        assert {name: told.get(name) for name in settings} == settings
        assert told.get("host") == target.host
