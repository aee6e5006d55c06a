"""Where a node is dialled: private or public, names, maps; and what its certificate must say."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import ybsmart
from tests import tls
from tests.api.support import close, refresh, states, the_cluster
from tests.servers import by_node, by_server
from tests.support import until
from tests.wire import Forwarder, listening, silent
from ybsmart import registry
from ybsmart.addresses import AddressMap, parse_address_map, public_or_private
from ybsmart.candidates import describe
from ybsmart.dialing import Target
from ybsmart.discovery import NodeRecord
from ybsmart.testing import LocalCluster


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve as the test says; to nothing where it does not."""
    known: dict[str, list[str]] = {}
    real: Callable[..., Any] = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(host, str) or not host.endswith(".example"):
            return real(host, port, *args, **kwargs)
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


# The decision


def record(host: str, public: str = "", *addresses: str) -> NodeRecord:
    return NodeRecord(
        host, 5433, public_ip=public, addresses=addresses or (host,), public_addresses=(public,)
    )


@pytest.mark.parametrize(
    ("ways_in", "verdict"),
    [
        ({"10.0.0.1"}, False),
        ({"db.example", "10.0.0.2"}, False),
        ({"34.0.0.2"}, True),
        ({"34.0.0.1", "10.0.0.2"}, False),
        ({"lb.example", "198.51.100.1"}, None),
        (set(), None),
    ],
)
def test_by_which_addresses_a_cluster_is_reached(ways_in: set[str], verdict: bool | None) -> None:
    nodes = [record("10.0.0.1", "34.0.0.1"), record("10.0.0.2", "34.0.0.2"), record("10.0.0.3")]

    assert public_or_private(nodes, ways_in) is verdict


# Public and private


def test_public_addresses_are_used_where_the_configured_host_is_one(
    own_cluster: LocalCluster,
) -> None:
    for i, node in enumerate(own_cluster.nodes):
        own_cluster.update(node, advertised_host=f"192.0.2.{i + 1}", public_ip=node.host)
    url = own_cluster.conninfo(load_balance=True, application_name="public")

    held = [ybsmart.connect(url) for _ in range(6)]
    refresh(url)
    held += [ybsmart.connect(url) for _ in range(6)]

    assert by_server(own_cluster, "public") == [4, 4, 4]
    assert list(ybsmart.connection_counts().values()) == [4, 4, 4]
    assert {conn.node.public_ip for conn in held if conn.node} == {
        node.host for node in own_cluster.nodes
    }
    close(held)


def test_private_addresses_are_used_where_the_configured_host_is_one(
    own_cluster: LocalCluster,
) -> None:
    for i, node in enumerate(own_cluster.nodes):
        own_cluster.update(node, public_ip=f"192.0.2.{i + 1}")
    url = own_cluster.conninfo(load_balance=True)

    held = [ybsmart.connect(url) for _ in range(6)]

    assert by_node(own_cluster) == [2, 2, 2]
    close(held)


@pytest.mark.usefixtures("impatient")
def test_behind_a_load_balancer_both_are_tried_and_what_works_is_remembered(
    own_cluster: LocalCluster,
) -> None:
    with listening(silent) as hole:
        port = own_cluster.nodes[0].port
        balancer = Forwarder(own_cluster.nodes[0].host, port, "127.0.0.99")
        try:
            for node in own_cluster.nodes:
                # The same port at both addresses, as with real nodes; nobody listens at one.
                own_cluster.update(node, advertised_host="127.0.0.98", public_ip=node.host)
            url = own_cluster.conninfo(load_balance=True, application_name="behind")
            url = url.replace(f"{own_cluster.nodes[0].host}:{port}", f"127.0.0.99:{balancer.port}")

            held = [ybsmart.connect(url) for _ in range(6)]

            assert by_server(own_cluster, "behind") == [2, 2, 2]
            for host in the_cluster().table.hosts():
                targets = the_cluster().targets(host.info, AddressMap())
                assert [target.hostaddr for target in targets] == [host.info.public_ip]
            assert hole.accepted == 0
            close(held)
        finally:
            balancer.close()


# Names


@pytest.mark.parametrize("host", ["10.0.0.1", "db.example", "2001:db8::1"])
def test_a_configured_host_is_known_for_the_node_it_is(host: str) -> None:
    """By its name in messages, or it would be tried again as the last resort."""
    assert describe(Target(host, "", "5433")) == NodeRecord(host, 5433).address


def test_hostaddr_is_replaced_for_each_node(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, application_name="hostaddr")

    held = [ybsmart.connect(url, hostaddr=own_cluster.nodes[1].host) for _ in range(6)]

    assert by_server(own_cluster, "hostaddr") == [2, 2, 2]
    close(held)


def test_nodes_may_have_names_and_one_that_cannot_be_resolved(
    own_cluster: LocalCluster, names: dict[str, list[str]]
) -> None:
    for i, node in enumerate(own_cluster.nodes):
        names[f"pod-{i}.example"] = [node.host]
        own_cluster.update(node, advertised_host=f"pod-{i}.example")
    del names["pod-1.example"]
    url = own_cluster.conninfo(
        load_balance=True, application_name="names", failed_host_reconnect_delay_secs=1
    )

    held = [ybsmart.connect(url) for _ in range(4)]

    assert by_server(own_cluster, "names") == [2, 0, 2]
    assert states() == ["up", "down", "up"]
    assert "pod-1.example" in str(ybsmart.clusters()[0].nodes[1].last_error)
    assert {conn.info.host for conn in held} == {"pod-0.example", "pod-2.example"}
    names["pod-1.example"] = [own_cluster.nodes[1].host]
    until(lambda: states() == ["up", "up", "up"])
    close(held)


def test_a_name_that_stops_resolving_keeps_its_addresses(
    own_cluster: LocalCluster, names: dict[str, list[str]]
) -> None:
    names["pod.example"] = [own_cluster.nodes[1].host]
    own_cluster.update(1, advertised_host="pod.example")
    url = own_cluster.conninfo(load_balance=True)
    ybsmart.connect(url).close()
    names.clear()
    refresh(url)

    held = [ybsmart.connect(url) for _ in range(3)]

    assert list(ybsmart.connection_counts().values()) == [1, 1, 1]
    close(held)


def test_a_name_with_several_addresses_is_one_node(
    own_cluster: LocalCluster, names: dict[str, list[str]]
) -> None:
    names["pod.example"] = ["127.0.0.97", "127.0.0.98", own_cluster.nodes[1].host]
    own_cluster.update(1, advertised_host="pod.example")
    url = own_cluster.conninfo(load_balance=True, application_name="several")

    held = [ybsmart.connect(url) for _ in range(6)]

    assert by_server(own_cluster, "several") == [2, 2, 2]
    close(held)


def test_the_configured_name_is_resolved_anew(
    own_cluster: LocalCluster, names: dict[str, list[str]]
) -> None:
    for node in range(3):
        own_cluster.update(node, advertised_host="127.0.0.98")
    names["db.example"] = ["127.0.0.97", own_cluster.nodes[0].host]
    url = own_cluster.conninfo(load_balance=True).replace("127.0.0.1", "db.example")
    first = ybsmart.connect(url)
    names["db.example"] = [own_cluster.nodes[2].host]

    second = ybsmart.connect(url)

    assert first.info.hostaddr == own_cluster.nodes[0].host
    assert second.info.hostaddr == own_cluster.nodes[2].host
    close([first, second])


def test_all_addresses_of_the_configured_name_are_tried(
    own_cluster: LocalCluster, names: dict[str, list[str]]
) -> None:
    names["db.example"] = ["127.0.0.97", own_cluster.nodes[1].host]
    url = own_cluster.conninfo(load_balance=True).replace("127.0.0.1", "db.example")

    with ybsmart.connect(url) as conn:
        assert conn.node is not None


# Maps


def test_an_address_map_leads_through_poolers(own_cluster: LocalCluster) -> None:
    ports = [Forwarder(node.host, node.port) for node in own_cluster.nodes]
    try:
        rules = ",".join(
            f"{node.host}:{node.port} = {port.host}:{port.port}"
            for node, port in zip(own_cluster.nodes, ports, strict=True)
        )
        url = own_cluster.conninfo(load_balance=True, addressMap=rules, application_name="mapped")

        held = [ybsmart.connect(url) for _ in range(6)]

        assert by_server(own_cluster, "mapped") == [2, 2, 2]
        assert by_node(own_cluster) == [2, 2, 2]  # counted for the nodes, not for the way there
        assert {conn.info.port for conn in held} == {port.port for port in ports}
        close(held)
    finally:
        for port in ports:
            port.close()


def test_what_an_address_map_says() -> None:
    found = parse_address_map("10.0.0.1:5433=a:1, 10.0.0.1=b , [fe80::1]:2=[::1]:3, *=:6543").find

    assert found("10.0.0.1", 5433) == ("a", "1")
    assert found("10.0.0.1", 5434) == ("b", "5434")
    assert found("fe80::1", 2) == ("::1", "3")
    assert found("10.0.0.2", 5433) == ("10.0.0.2", "6543")
    assert parse_address_map("a=b").find("c", 1) is None


@pytest.mark.parametrize(
    "bad", ["a", "", "a=", "=b:1", "a:0=b", "a:99999=b", "a=b:x", "a=*", "a b=c"]
)
def test_an_address_map_that_makes_no_sense(bad: str) -> None:
    with pytest.raises(ybsmart.InvalidProperty, match="address_map"):
        ybsmart.connect("load_balance=true", address_map=bad)


# What a server says is not trusted


def test_rows_that_can_be_no_node_are_left_out(
    own_cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    body = """
        SELECT 'h' || i, i::int8, 0::int8, 'primary', 'c', E'\\x1b[2J', 'z', '', 'u' || i, 'x'
        FROM generate_series(65536, 65540) i
        UNION ALL SELECT v, 5433, 0, 'primary', 'c', 'r', 'z', '', 'v' || v, 'x' FROM unnest(ARRAY[
            '/tmp', '@x', 'a,b', E'a\\x1b[2Jb', 'a b', '', repeat('x', 300)]) v
        UNION ALL SELECT '127.0.0.1', 0, 0, 'primary', 'c', 'r', 'z', '', 'w', 'x'
        UNION ALL SELECT '127.0.0.1', -5, 0, 'primary', 'c', 'r', 'z', '', 'y', 'x'
        UNION ALL SELECT '127.0.0.1', 9223372036854775807, 0, 'primary', '', '', '', '', 'z', 'x'
        UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    """
    good = f"""UNION ALL SELECT '{own_cluster.nodes[1].host}', {own_cluster.nodes[1].port}, 0,
        'primary', 'c', E'r\\x1b[2J', repeat('z', 100000), E'\\x07', 'good', 'x'"""
    install(own_cluster, body + good)
    url = own_cluster.conninfo(load_balance=True)

    with caplog.at_level(logging.WARNING, logger="ybsmart"), ybsmart.connect(url) as conn:
        assert conn.node is not None
        assert conn.node.uuid == "good"
        assert "\x1b" not in repr(conn.node) + str(conn.node.region)
        assert len(conn.node.zone) < 300

    assert [node.uuid for node in ybsmart.clusters()[0].nodes] == ["good"]
    assert len(caplog.records) == 1
    assert "\x1b" not in caplog.text


def test_thousands_of_rows_are_cut_off(
    own_cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    node = own_cluster.nodes[1]
    install(
        own_cluster,
        f"""SELECT '{node.host}', {node.port}::int8, 0::int8, 'primary', 'c', 'r', 'z', '',
        'u' || i, 'x' FROM generate_series(1, 50000) i""",
    )

    with ybsmart.connect(own_cluster.conninfo(load_balance=True)):
        assert len(ybsmart.clusters()[0].nodes) == 1000


def install(cluster: LocalCluster, body: str) -> None:
    """Another `yb_servers()`, on the first node."""
    cluster.execute(
        0,
        f"""DROP FUNCTION yb_servers(); CREATE FUNCTION pg_catalog.yb_servers() RETURNS TABLE (
        host text, port int8, num_connections int8, node_type text, cloud text, region text,
        zone text, public_ip text, uuid text, universe_uuid text) LANGUAGE sql AS $${body}$$""",
    )


# TLS


@pytest.fixture(scope="module")
def servers() -> Iterator[tls.TlsServers]:
    if tls.programs() is None or tls.OPENSSL is None:
        pytest.skip("needs PostgreSQL with TLS and openssl (Debian: postgresql, openssl)")
    with tls.tls_servers() as servers:
        yield servers


@pytest.fixture
def tls_url(servers: tls.TlsServers, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)  # its servers are well, if slow
    monkeypatch.setattr("ybsmart.listing.ANSWER_TIMEOUT", 30.0)
    registry.forget()

    def url(host: str, **params: str) -> str:
        return psycopg.conninfo.make_conninfo(
            "user=yugabyte password=sesame dbname=postgres application_name=tls",
            host=host,
            port=servers.port,
            sslrootcert=servers.root,
            **params,
        )

    return url


def test_verify_full_with_a_certificate_for_the_urls_name(
    servers: tls.TlsServers, tls_url: Callable[..., str]
) -> None:
    shared = servers.certificate("shared", "DNS:localhost")
    with servers.running([shared] * 3):
        url = tls_url("localhost", sslmode="verify-full")

        held = [ybsmart.connect(url, load_balance=True) for _ in range(6)]

        assert servers.sessions("tls") == [2, 2, 2]
        assert {conn.info.host for conn in held} == {"localhost"}
        refresh_with(url)
        assert states() == ["up", "up", "up"]
        close(held)


def test_verify_full_with_certificates_for_the_nodes_own_addresses(
    servers: tls.TlsServers, tls_url: Callable[..., str]
) -> None:
    own = [servers.certificate(f"own-{host[-1]}", f"IP:{host}") for host in tls.HOSTS]
    with servers.running(own):
        url = tls_url(tls.HOSTS[0], sslmode="verify-full")

        held = [ybsmart.connect(url, load_balance=True) for _ in range(6)]

        assert servers.sessions("tls") == [2, 2, 2]
        refresh_with(url)
        close(held)


def test_verify_full_with_both_kinds(servers: tls.TlsServers, tls_url: Callable[..., str]) -> None:
    shared = servers.certificate("shared", "DNS:localhost")
    own = servers.certificate("own-3", f"IP:{tls.HOSTS[2]}")
    with servers.running([shared, shared, own]):
        url = tls_url("localhost", sslmode="verify-full")

        held = [ybsmart.connect(url, load_balance=True) for _ in range(9)]

        assert servers.sessions("tls") == [3, 3, 3]
        close(held)


@pytest.mark.parametrize("sslmode", ["verify-full", "require"])
def test_a_wrong_certificate_is_refused_where_it_is_checked(
    servers: tls.TlsServers, tls_url: Callable[..., str], sslmode: str
) -> None:
    shared = servers.certificate("shared", "DNS:localhost")
    wrong = servers.certificate("wrong", "DNS:other.invalid")
    with servers.running([shared, wrong, shared]):
        url = tls_url("localhost", sslmode=sslmode)

        held = [ybsmart.connect(url, load_balance=True) for _ in range(6)]

        assert servers.sessions("tls") == ([3, 0, 3] if sslmode == "verify-full" else [2, 2, 2])
        close(held)


def test_nothing_but_wrong_certificates_is_an_error(
    servers: tls.TlsServers, tls_url: Callable[..., str]
) -> None:
    shared = servers.certificate("shared", "DNS:localhost")
    wrong = servers.certificate("wrong", "DNS:other.invalid")
    with servers.running([shared, wrong, wrong]):
        url = tls_url("localhost", sslmode="verify-full")
        ybsmart.connect(url, load_balance=True).close()
    with servers.running([wrong, wrong, wrong]):
        with pytest.raises(psycopg.OperationalError, match="certificate") as caught:
            ybsmart.connect(url, load_balance=True)

        assert len(str(caught.value).splitlines()) >= 4
        assert servers.sessions("tls") == [0, 0, 0]


def test_channel_binding_works_through_a_discovered_address(
    servers: tls.TlsServers, tls_url: Callable[..., str]
) -> None:
    shared = servers.certificate("shared", "DNS:localhost")
    with servers.running([shared] * 3):
        url = tls_url("localhost", sslmode="verify-full", channel_binding="require")

        held = [ybsmart.connect(url, load_balance=True) for _ in range(3)]

        assert servers.sessions("tls") == [1, 1, 1]
        close(held)


def test_a_root_certificate_that_is_missing_is_the_callers_own(
    servers: tls.TlsServers, tls_url: Callable[..., str]
) -> None:
    shared = servers.certificate("shared", "DNS:localhost")
    with servers.running([shared] * 3):
        url = tls_url("localhost", sslmode="require")
        ybsmart.connect(url, load_balance=True).close()

        with pytest.raises(psycopg.OperationalError, match="root certificate") as caught:
            ybsmart.connect(url, load_balance=True, sslmode="verify-full", sslrootcert="/no/such")

        assert "\n  127" not in str(caught.value)
        assert states() == ["up", "up", "up"]


def refresh_with(url: str) -> None:
    refresh(psycopg.conninfo.make_conninfo(url) + " load_balance=true")
