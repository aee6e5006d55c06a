"""Whose fault a failed connect is, and what follows from it for the caller and for the others."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import psycopg
import pytest
from psycopg import errors

import ybsmart
from tests.api.support import states, the_cluster
from tests.servers import by_node
from tests.support import in_threads, until
from tests.wire import Listener, hangs_up, listening, refuses
from ybsmart import faults, libpq, registry
from ybsmart.faults import Fault
from ybsmart.testing import LocalCluster

REFUSED = b'connection to server at "127.0.0.1", port 5433 failed: '


def advertise(cluster: LocalCluster, node: int, listener: Listener) -> None:
    cluster.update(node, advertised_host=listener.host, advertised_port=listener.port)


# Reading


def test_this_installation_tells_sqlstates() -> None:
    assert libpq.tells_sqlstate


@pytest.mark.parametrize(
    ("message", "sqlstate", "text"),
    [
        (
            'FATAL:  28P01: password authentication failed for user "x"\n'
            "LOCATION:  auth_failed, auth.c:317\n",
            "28P01",
            'FATAL:  password authentication failed for user "x"',
        ),
        (
            "PANNE :  57P03: le système se lance\nEMPLACEMENT : ici, ../../src/postmaster.c:2\n",
            "57P03",
            "PANNE :  le système se lance",
        ),
        (
            "致命错误:  53300: 已有太多客户\nDETAIL:  x\n位置:  auth.c:3",
            "53300",
            "致命错误:  已有太多客户\nDETAIL:  x",
        ),
        (
            'FATAL:  3D000: database "a:  57P01: b" does not exist\n',
            "3D000",
            'FATAL:  database "a:  57P01: b" does not exist',
        ),
        (
            "Connection refused\n\tIs the server running?\n",
            None,
            "Connection refused\n\tIs the server running?",
        ),
    ],
)
def test_a_message_reads_as_usual_and_its_sqlstate_is_known(
    message: str, sqlstate: str | None, text: str
) -> None:
    found, said = faults.read(REFUSED + message.encode())

    assert found == sqlstate
    assert said == REFUSED.decode() + text


def test_what_a_server_says_is_not_printed_raw() -> None:
    _, text = faults.read(b"FATAL:  28000: \x1b[2Jgone\x07 \xff" + b"x" * 10_000)

    assert "\x1b" not in text
    assert "\\x1b[2Jgone\\x07" in text
    assert len(text) < 2100


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        ("28P01", Fault.CALLER),
        ("28000", Fault.CALLER),
        ("3D000", Fault.CALLER),
        ("42501", Fault.CALLER),
        ("42704", Fault.CALLER),
        ("53300", Fault.BUSY),
        ("57P01", Fault.NODE),
        ("57P02", Fault.NODE),
        ("57P03", Fault.NODE),
        ("08006", Fault.DOUBTFUL),
        ("XX000", Fault.DOUBTFUL),
    ],
)
def test_a_sqlstate_says_whose_fault_it_is(sqlstate: str, fault: Fault) -> None:
    error = faults.failure(REFUSED + f"SCHLIMM:  {sqlstate}: so nicht\n".encode())

    assert error.sqlstate == sqlstate
    assert isinstance(error, psycopg.OperationalError)
    assert faults.classify(error, reached=True) is fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('FATAL:  password authentication failed for user "x"', Fault.CALLER),
        ("FATAL:  sorry, too many clients already", Fault.BUSY),
        ("FATAL:  the database system is starting up", Fault.NODE),
        ("server is not in hot standby mode", Fault.BUSY),
        ("fe_sendauth: no password supplied", Fault.CALLER),
        ("server closed the connection unexpectedly", Fault.DOUBTFUL),
    ],
)
def test_without_a_sqlstate_words_have_to_do(text: str, fault: Fault) -> None:
    error = psycopg.OperationalError(f"connection failed: {REFUSED.decode()}{text}")

    assert faults.classify(error, reached=True) is fault


# The caller's


@pytest.mark.parametrize(
    ("wrong", "kind", "sqlstate"),
    [
        ({"password": "wrong"}, errors.InvalidPassword, "28P01"),
        ({"dbname": "nowhere"}, psycopg.OperationalError, "3D000"),
        ({"user": "nobody"}, psycopg.OperationalError, "28P01"),
        ({"options": "-c no_such=1"}, psycopg.OperationalError, "42704"),
    ],
)
def test_the_callers_own_fault_is_raised_at_once_and_harms_nobody(
    cluster: LocalCluster,
    balanced: str,
    wrong: dict[str, Any],
    kind: type[psycopg.Error],
    sqlstate: str,
) -> None:
    ybsmart.connect(balanced).close()

    with pytest.raises(kind) as caught:
        ybsmart.connect(balanced, **wrong)

    assert caught.value.sqlstate == sqlstate
    assert sqlstate not in str(caught.value)
    assert "LOCATION" not in str(caught.value)
    assert states() == ["up", "up", "up"]
    assert by_node(cluster) == [0, 0, 0]


def test_the_callers_own_fault_costs_one_attempt_in_any_language(
    own_cluster: LocalCluster,
) -> None:
    with listening(refuses("28P01", "неверный пароль", "ПОГИБЕЛЬ")) as refusing:
        for node in range(3):
            advertise(own_cluster, node, refusing)
            own_cluster.update(node, placement=f"a.b.c{node}")
        own_cluster.update(1, advertised_port=1)
        url = own_cluster.conninfo(load_balance=True, topology_keys="a.b.c0:1,a.b.c2:2")

        with pytest.raises(errors.InvalidPassword, match="неверный пароль"):
            ybsmart.connect(url)

        assert refusing.accepted == 1
        assert set(ybsmart.connection_counts().values()) == {0}


@pytest.mark.parametrize("bad", [{"sslmode": "bogus"}, {"target_session_attrs": "nonsense"}])
def test_a_bad_option_is_the_callers_own(
    cluster: LocalCluster, balanced: str, bad: dict[str, Any]
) -> None:
    ybsmart.connect(balanced).close()

    with pytest.raises(psycopg.OperationalError) as caught:
        ybsmart.connect(balanced, **bad)

    assert "\n" not in str(caught.value)  # not one line for each node
    assert states() == ["up", "up", "up"]


def test_a_socket_that_is_not_there_is_the_callers_connection_string() -> None:
    registry.forget()

    with pytest.raises(psycopg.OperationalError, match="/no/such/place"):
        ybsmart.connect("host=/no/such/place load_balance=true")


def test_cold_callers_with_another_password_are_not_refused_for_it(balanced: str) -> None:
    registry.forget()

    with pytest.raises(errors.InvalidPassword):
        ybsmart.connect(balanced, password="wrong")
    ybsmart.connect(balanced).close()


def test_who_waits_for_the_first_look_is_not_refused_for_the_one_who_looks(balanced: str) -> None:
    refused: list[BaseException] = []

    def connect(number: int) -> None:
        if number % 2:
            ybsmart.connect(balanced).close()
        else:
            with pytest.raises(errors.InvalidPassword) as caught:
                ybsmart.connect(balanced, password="wrong")
            refused.append(caught.value)

    for _ in range(5):
        registry.forget()
        numbers = itertools.count()
        assert not in_threads(10, lambda numbers=numbers: connect(next(numbers)))  # type: ignore[misc]

    assert len({id(error) for error in refused}) == len(refused) == 25


# Nodes


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "57P03"])
def test_a_node_that_starts_or_stops_is_passed_over(
    own_cluster: LocalCluster, sqlstate: str
) -> None:
    with listening(refuses(sqlstate, "gleich wieder da", "SCHADE")) as going:
        advertise(own_cluster, 0, going)
        url = own_cluster.conninfo(load_balance=True)

        connections = [ybsmart.connect(url) for _ in range(4)]

        assert sorted(ybsmart.connection_counts().values()) == [0, 2, 2]
        assert states() == ["down", "up", "up"]
        (info,) = ybsmart.clusters()
        assert "gleich wieder da" in str(info.nodes[0].last_error)
        for conn in connections:
            conn.close()


def test_a_full_node_is_passed_over_by_this_request_and_stays_in_service(
    own_cluster: LocalCluster,
) -> None:
    with listening(refuses("53300", "besetzt", "SCHADE")) as full:
        advertise(own_cluster, 0, full)
        url = own_cluster.conninfo(load_balance=True)

        connections = [ybsmart.connect(url) for _ in range(4)]

        assert sorted(ybsmart.connection_counts().values()) == [0, 2, 2]
        assert states() == ["up", "up", "up"]
        assert full.accepted >= 2  # tried again and again, as it may have a place any time
        for conn in connections:
            conn.close()


def test_all_nodes_full_is_an_error_that_says_so(own_cluster: LocalCluster) -> None:
    with listening(refuses("53300", "besetzt", "SCHADE")) as full:
        for node in range(3):
            advertise(own_cluster, node, full)
            own_cluster.update(node, advertised_host=f"127.0.0.{1 + node}")
        # Only the first of the three addresses listens: the others are down.
        url = own_cluster.conninfo(load_balance="only-primary")

        with pytest.raises(psycopg.OperationalError) as caught:
            ybsmart.connect(url)

        assert "besetzt" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 4


def test_a_node_that_breaks_off_is_looked_at_and_then_passed_over(
    own_cluster: LocalCluster,
) -> None:
    with listening(hangs_up) as broken:
        advertise(own_cluster, 0, broken)
        url = own_cluster.conninfo(load_balance=True)
        connections = [ybsmart.connect(url) for _ in range(3)]

        until(lambda: states() == ["down", "up", "up"])

        for conn in connections:
            conn.close()


def test_odd_parameters_of_one_caller_take_no_node_from_the_others(
    cluster: LocalCluster, balanced: str
) -> None:
    ybsmart.connect(balanced).close()

    # These servers have no TLS. Nothing tells that from a node with a defect, but another look.
    with pytest.raises(psycopg.OperationalError, match="SSL"):
        ybsmart.connect(balanced, sslmode="require")

    assert states() == ["up", "up", "up"]  # not even until the look
    known = the_cluster()
    until(lambda: not any(map(known.upkeep.is_watching, known.table.hosts())))
    assert states() == ["up", "up", "up"]


def test_target_session_attrs_of_one_caller_take_no_node_from_the_others(
    cluster: LocalCluster, balanced: str
) -> None:
    ybsmart.connect(balanced).close()

    with pytest.raises(psycopg.OperationalError, match="hot standby"):
        ybsmart.connect(balanced, target_session_attrs="standby")

    assert states() == ["up", "up", "up"]
    with ybsmart.connect(balanced, target_session_attrs="read-write") as conn:
        assert conn.node is not None


def test_the_messages_of_an_open_connection_are_psycopgs(balanced: str) -> None:
    with ybsmart.connect(balanced) as conn, pytest.raises(psycopg.Error) as caught:
        conn.execute("SELECT nothing")

    assert "LOCATION" not in str(caught.value)
    assert "42703:" not in str(caught.value)
    assert caught.value.sqlstate == "42703"


def test_no_password_is_in_any_message(
    own_cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    url = own_cluster.conninfo(load_balance=True).replace(":yugabyte@", ":s3same@")
    said = []
    with caplog.at_level(logging.DEBUG):
        wrongs: list[dict[str, Any]] = [{}, {"sslmode": "require"}, {"topology_keys": "a.b"}]
        for wrong in wrongs:
            with pytest.raises(psycopg.Error) as caught:
                ybsmart.connect(url, **wrong)
            said.append(str(caught.value) + repr(caught.value))

    assert "s3same" not in "".join(said) + caplog.text
