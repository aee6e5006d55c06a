"""Without load balancing, everything reaches libpq as it was written."""

from __future__ import annotations

import psycopg
import pytest

import ybsmart
from tests.smart.conftest import NewClient
from ybsmart.testing import LocalCluster


@pytest.mark.parametrize(
    "password", ["a  b", "p topology_keys=zz load_balance=true", "it's", "?load_balance=true&x"]
)
def test_odd_passwords_and_options_reach_the_server_unchanged(
    three: LocalCluster, client: NewClient, password: str
) -> None:
    node = three.nodes[0]
    quoted = password.replace("'", "\\'")
    three.execute(
        node, psycopg.sql.SQL("CREATE ROLE app PASSWORD {} LOGIN").format(password).as_string()
    )
    try:
        conninfo = (
            f"host={node.host} port={node.port} dbname=yugabyte user=app password='{quoted}' "
            "options='-c my.one=a  -c my.two=load_balance=true'"
        )
        for url in (conninfo, f"load_balance=false {conninfo}"):
            with ybsmart.connect(url) as conn:
                assert conn.node is None
                row = conn.execute("SELECT current_user, current_setting('my.two')").fetchone()
                assert row == ("app", "load_balance=true")
        with ybsmart.connect(conninfo, load_balance=True, topology_keys="cloud.region.a") as conn:
            assert conn.node is not None
            assert (conn.info.user, conn.info.password) == ("app", password)
    finally:
        three.execute(node, "DROP ROLE app")


def test_the_other_properties_mean_nothing_without_balancing(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, load_balance=False, topology_keys="cloud.region.b")

    app.open(2, yb_servers_refresh_interval=7, failed_host_reconnect_delay_secs=3)

    assert app.sessions() == [2, 0, 0]
    assert ybsmart.clusters() == ()
    assert ybsmart.connection_counts() == {}


@pytest.mark.parametrize("load_balance", [False, True])
def test_a_port_list_of_another_length_than_the_host_list_is_an_error(
    three: LocalCluster, client: NewClient, load_balance: bool
) -> None:
    hosts = ",".join(node.host for node in three.nodes)
    app = client(three, host=hosts, port="5433,5434", load_balance=load_balance)

    with pytest.raises(psycopg.Error, match="port"):
        app.connect()
