"""Nodes that are silent, die and come back: who waits for them, and who looks after them."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import psycopg
import pytest
from psycopg import errors

import ybsmart
from tests.api.support import close, refresh, states, the_cluster
from tests.servers import by_node, by_server
from tests.support import in_threads, until
from tests.wire import listening, refuses, silent
from ybsmart import dialing, listing, registry
from ybsmart.candidates import LEVEL_DELAY, NodeSource
from ybsmart.request import request_of
from ybsmart.testing import LocalCluster

PATIENT = 60  # seconds of connect_timeout: whoever waits for them fails


# Silence


@pytest.mark.usefixtures("impatient")
def test_a_stopped_node_costs_nobody_a_connect_timeout(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, connect_timeout=PATIENT)
    ybsmart.connect(url).close()
    own_cluster.pause(own_cluster.nodes[1])
    started = time.monotonic()

    connections = [ybsmart.connect(url) for _ in range(6)]

    assert time.monotonic() - started < PATIENT / 2
    assert by_node(own_cluster) == [3, 0, 3]
    assert states() == ["up", "down", "up"]
    own_cluster.resume(own_cluster.nodes[1])
    until(lambda: states() == ["up", "up", "up"])
    connections += [ybsmart.connect(url) for _ in range(3)]
    assert by_node(own_cluster) == [3, 3, 3]
    close(connections)


@pytest.mark.usefixtures("impatient")
def test_no_caller_pays_twice_for_a_silent_node(own_cluster: LocalCluster) -> None:
    with listening(silent) as hole:
        own_cluster.update(0, advertised_host=hole.host, advertised_port=hole.port)
        url = own_cluster.conninfo(
            load_balance=True, connect_timeout=PATIENT, failed_host_reconnect_delay_secs=60
        )

        connections = [ybsmart.connect(url) for _ in range(8)]

        # One caller, and one look in the background.
        assert hole.accepted <= 2
        assert sorted(ybsmart.connection_counts().values()) == [0, 4, 4]
        close(connections)


@pytest.mark.usefixtures("impatient")
def test_of_a_cluster_with_one_node_left_that_is_the_one(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, connect_timeout=PATIENT)
    ybsmart.connect(url).close()
    for node in own_cluster.nodes[:2]:
        own_cluster.pause(node)

    with ybsmart.connect(url) as conn:
        assert conn.node is not None
        assert conn.node.host == own_cluster.nodes[2].host


@pytest.mark.usefixtures("impatient")
def test_connect_timeout_is_for_the_whole(own_cluster: LocalCluster) -> None:
    with listening(silent) as hole:
        for node in range(3):
            own_cluster.update(
                node, advertised_host=f"127.0.0.{1 + node}", advertised_port=hole.port
            )
        own_cluster.update(1, listed=False)
        own_cluster.update(2, listed=False)
        url = own_cluster.conninfo(load_balance="only-primary", connect_timeout=2)
        started = time.monotonic()

        with pytest.raises(errors.ConnectionTimeout) as caught:
            ybsmart.connect(url)

        assert isinstance(caught.value, psycopg.OperationalError)
        assert f"{hole.host}:{hole.port}: connection timeout expired" in str(caught.value)
        assert time.monotonic() - started >= 2


def test_a_failure_before_the_delay_starts_the_next_at_once(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a delay beyond the time-out, only a failure can start the next one.
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 1000.0)
    with listening(refuses("57P03", "not yet")) as starting:
        for node in range(2):
            own_cluster.update(node, advertised_host=f"127.0.0.{1 + node}", advertised_port=1)
        own_cluster.update(0, advertised_host=starting.host, advertised_port=starting.port)

        with ybsmart.connect(own_cluster.conninfo(load_balance=True), connect_timeout=60) as conn:
            assert conn.node is not None
            assert conn.node.host == own_cluster.nodes[2].host


@pytest.mark.usefixtures("impatient")
def test_the_loser_is_dropped_and_its_server_told(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, application_name="raced")
    ybsmart.connect(url).close()
    own_cluster.pause(own_cluster.nodes[0])
    connections = [ybsmart.connect(url) for _ in range(4)]
    own_cluster.resume(own_cluster.nodes[0])

    until(lambda: states() == ["up", "up", "up"])
    until(lambda: by_server(own_cluster, "raced") == [0, 2, 2])
    assert by_node(own_cluster) == [0, 2, 2]
    assert dialing.under_way() == 0
    close(connections)


def test_many_at_a_time_spread_exactly_however_slow_that_makes_them(
    cluster: LocalCluster, balanced: str
) -> None:
    connections: list[ybsmart.Connection[Any]] = []

    assert not in_threads(60, lambda: connections.append(ybsmart.connect(balanced)))

    assert by_node(cluster) == [20, 20, 20]
    close(connections)


# Death and return


def test_a_dead_node_is_back_without_a_caller_trying_it(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=1)
    dead = own_cluster.nodes[2]
    ybsmart.connect(url).close()
    own_cluster.kill(dead)
    connections = [ybsmart.connect(url) for _ in range(4)]
    assert states() == ["up", "up", "down"]
    assert by_node(own_cluster) == [2, 2, 0]

    own_cluster.start(dead)

    until(lambda: states() == ["up", "up", "up"])
    assert ybsmart.clusters()[0].nodes[2].last_error is None
    connections += [ybsmart.connect(url) for _ in range(2)]
    assert by_node(own_cluster) == [2, 2, 2]
    close(connections)


def test_while_others_are_up_no_caller_tries_a_dead_node(own_cluster: LocalCluster) -> None:
    with listening(refuses("57P03", "not yet")) as starting:
        own_cluster.update(0, advertised_host=starting.host, advertised_port=starting.port)
        url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=60)

        connections = [ybsmart.connect(url) for _ in range(10)]

        assert starting.accepted == 1
        close(connections)


def test_as_a_last_resort_quarantined_nodes_are_tried_and_a_success_clears_them(
    own_cluster: LocalCluster,
) -> None:
    url = own_cluster.conninfo(
        load_balance="only-primary", failed_host_reconnect_delay_secs=60, connect_timeout=PATIENT
    )
    ybsmart.connect(url).close()
    for node in own_cluster.nodes:
        own_cluster.kill(node)
    with pytest.raises(psycopg.OperationalError, match="none of the primary nodes"):
        ybsmart.connect(url)
    assert states() == ["down", "down", "down"]

    own_cluster.start(own_cluster.nodes[1])

    with ybsmart.connect(url):
        assert states() == ["down", "up", "down"]
        assert by_node(own_cluster) == [0, 1, 0]


def test_a_zero_delay_passes_nobody_over(own_cluster: LocalCluster) -> None:
    with listening(refuses("57P03", "not yet")) as starting:
        own_cluster.update(0, advertised_host=starting.host, advertised_port=starting.port)
        url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=0)

        connections = [ybsmart.connect(url) for _ in range(5)]

        assert starting.accepted >= 3
        close(connections)


def test_a_node_that_flaps_is_looked_at_by_one_thread(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=1)
    ybsmart.connect(url).close()
    refreshes = ybsmart.clusters()[0].refreshes
    for _ in range(3):
        own_cluster.kill(own_cluster.nodes[0])
        close([ybsmart.connect(url) for _ in range(6)])
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("ybsmart-probe") <= 1 + EARLIER
        own_cluster.start(own_cluster.nodes[0])
        until(lambda: states() == ["up", "up", "up"])

    assert ybsmart.clusters()[0].refreshes == refreshes


# Threads that look after clusters of tests before, which find out at their next look.
EARLIER = 10


# Where no node can be reached


def test_any_mode_ends_at_the_configured_host(own_cluster: LocalCluster) -> None:
    for node in range(3):
        own_cluster.update(node, advertised_host=f"127.0.0.{1 + node}", advertised_port=1)
    url = own_cluster.conninfo(own_cluster.nodes[2], load_balance=True)

    with ybsmart.connect(url) as conn:
        assert conn.node is None
        assert conn.info.port == own_cluster.nodes[2].port
        assert set(ybsmart.connection_counts().values()) == {0}


@pytest.mark.parametrize(
    "only",
    [
        {"load_balance": "only-primary"},
        {"topology_keys": "aws.us-west.*", "fallback_to_topology_keys_only": True},
    ],
)
def test_strict_modes_never_end_there(own_cluster: LocalCluster, only: dict[str, Any]) -> None:
    for node in range(3):
        own_cluster.update(node, advertised_host=f"127.0.0.{1 + node}", advertised_port=1)
    url = own_cluster.conninfo(load_balance=True, application_name="strict")

    with pytest.raises(psycopg.OperationalError) as caught:
        ybsmart.connect(url, **only)

    assert len(str(caught.value).splitlines()) == 4
    # The session that asked for the nodes may take a moment to end.
    until(lambda: by_server(own_cluster, "strict") == [0, 0, 0])


@pytest.mark.usefixtures("impatient")
def test_on_the_detour_dead_nodes_hold_nobody_up(own_cluster: LocalCluster) -> None:
    with listening(silent) as hole:
        own_cluster.update(0, advertised_host=hole.host, advertised_port=hole.port)
        own_cluster.update(1, listed=False)
        own_cluster.update(2, listed=False)
        url = own_cluster.conninfo(
            own_cluster.nodes[1],
            load_balance=True,
            failed_host_reconnect_delay_secs=60,
            connect_timeout=PATIENT,
        )

        close([ybsmart.connect(url) for _ in range(6)])

        # One caller and one look in the background; refreshes ask the configured host, too.
        assert hole.accepted <= 4


# Refreshing


@pytest.mark.usefixtures("impatient")
def test_the_first_look_does_not_wait_for_a_silent_host(own_cluster: LocalCluster) -> None:
    hosts = ",".join(node.host for node in own_cluster.nodes)
    own_cluster.pause(own_cluster.nodes[0])
    started = time.monotonic()

    with ybsmart.connect(
        own_cluster.conninfo(), host=hosts, load_balance=True, connect_timeout=PATIENT
    ) as conn:
        assert conn.node is not None

    assert time.monotonic() - started < PATIENT / 2


def test_interval_zero_sees_a_change_before_the_next_connection(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a server may take longer than a caller waits for it.
    monkeypatch.setattr(registry, "HEDGE_DELAY", 30.0)
    url = own_cluster.conninfo(load_balance=True, yb_servers_refresh_interval=0)
    ybsmart.connect(url).close()
    new = own_cluster.add("aws.us-west.us-west-2c")

    connections = [ybsmart.connect(url) for _ in range(8)]

    assert by_node(own_cluster) == [2, 2, 2, 2]
    own_cluster.update(new, listed=False)
    ybsmart.connect(url).close()
    assert states() == ["up", "up", "up", "gone"]
    close(connections)


def test_interval_zero_never_waits_for_a_server_that_does_not_answer(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is, no other server is asked meanwhile.
    monkeypatch.setattr(listing, "ANSWER_TIMEOUT", 600.0)
    url = own_cluster.conninfo(
        load_balance=True, yb_servers_refresh_interval=0, connect_timeout=PATIENT
    )
    ybsmart.connect(url).close()
    own_cluster.discovery(delay=600)
    started = time.monotonic()

    connections = [ybsmart.connect(url) for _ in range(6)]

    assert time.monotonic() - started < PATIENT / 2
    assert by_node(own_cluster) == [2, 2, 2]
    # All of them together have asked one server at a time.
    asking = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%yb_servers()'"
        " AND pid <> pg_backend_pid()"
    )
    assert sum(own_cluster.execute(n, asking)[0][0] for n in own_cluster.nodes) <= 1
    close(connections)


def test_an_empty_or_failing_answer_leaves_the_list(
    own_cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    url = own_cluster.conninfo(load_balance=True)
    held = [ybsmart.connect(url) for _ in range(3)]
    for fault in ({"empty": True}, {"error": "no list today"}):
        own_cluster.discovery(**fault)
        with caplog.at_level(logging.WARNING, logger="ybsmart"):
            refresh(url)

    assert by_node(own_cluster) == [1, 1, 1]
    assert states() == ["up", "up", "up"]
    assert "no list today" in caplog.text
    assert ybsmart.clusters()[0].refreshes == 1
    close(held)


@pytest.mark.usefixtures("impatient")
def test_a_refresh_goes_on_to_another_server(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True)
    ybsmart.connect(url).close()
    own_cluster.kill(own_cluster.nodes[0])  # the only one in the connection string
    own_cluster.pause(own_cluster.nodes[1])
    own_cluster.add("aws.us-west.us-west-2c")

    refresh(url)

    assert len(ybsmart.clusters()[0].nodes) == 4


def test_a_rolling_restart_then_the_loss_of_the_first_host_then_a_new_node(
    own_cluster: LocalCluster,
) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=1)
    ybsmart.connect(url).close()
    for node in own_cluster.nodes:
        own_cluster.stop(node)
        close([ybsmart.connect(url) for _ in range(3)])
        own_cluster.start(node)
    until(lambda: states() == ["up", "up", "up"])
    own_cluster.kill(own_cluster.nodes[0])
    own_cluster.add("aws.us-west.us-west-2c")

    refresh(url)
    connections = [ybsmart.connect(url) for _ in range(6)]

    assert by_node(own_cluster) == [0, 2, 2, 2]
    close(connections)


def test_when_all_addresses_are_replaced_the_configured_host_leads_to_the_new_ones(
    own_cluster: LocalCluster,
) -> None:
    url = own_cluster.conninfo(
        host="localhost", load_balance=True, failed_host_reconnect_delay_secs=60
    )
    for node in own_cluster.nodes:
        own_cluster.update(node, advertised_port=1)
    conn = ybsmart.connect(url)
    assert conn.node is None
    for node in own_cluster.nodes:
        own_cluster.update(node, advertised_port=node.port)

    # Whoever finds no node has the list looked at again, in the background.
    def balanced_again() -> bool:
        with ybsmart.connect(url) as conn:
            return conn.node is not None

    until(balanced_again)
    conn.close()


def test_credentials_that_have_changed_quarantine_nobody(own_cluster: LocalCluster) -> None:
    for node in own_cluster.nodes:
        own_cluster.execute(node, "CREATE ROLE short_lived LOGIN PASSWORD 'one'")
    base = own_cluster.conninfo(load_balance=True)
    first = base.replace("yugabyte:yugabyte@", "short_lived:one@")
    ybsmart.connect(first).close()
    for node in own_cluster.nodes:
        own_cluster.execute(node, "ALTER ROLE short_lived PASSWORD 'two'")

    with pytest.raises(errors.InvalidPassword):
        ybsmart.connect(first)
    second = first.replace(":one@", ":two@")
    close([ybsmart.connect(second) for _ in range(3)])
    own_cluster.add("aws.us-west.us-west-2c")
    refresh(second)
    assert len(ybsmart.clusters()[0].nodes) == 4
    assert states() == ["up"] * 4

    # A role that is gone does not stick either: the one who asks is tried next.
    for node in own_cluster.nodes[:3]:
        own_cluster.execute(node, "DROP ROLE short_lived")
    own_cluster.add("aws.us-west.us-west-2c")
    refresh(base)
    assert len(ybsmart.clusters()[0].nodes) == 5
    assert states() == ["up"] * 5


def test_no_transaction_and_no_session_is_left_behind(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True)
    ybsmart.connect(url).close()
    refresh(url)

    until(lambda: by_server(own_cluster) == [0, 0, 0])


def test_a_server_whose_list_fails_at_first_is_looked_at_again(own_cluster: LocalCluster) -> None:
    own_cluster.discovery(error="still starting")
    url = own_cluster.conninfo(load_balance=True)

    with ybsmart.connect(url) as conn:
        assert conn.node is None
    with pytest.raises(psycopg.OperationalError, match="still starting"):
        ybsmart.connect(url, load_balance="only-rr")
    own_cluster.discovery()

    def balanced_now() -> bool:
        with ybsmart.connect(url) as conn:
            return conn.node is not None

    until(balanced_now)


@pytest.mark.usefixtures("impatient")
def test_a_silent_node_is_given_longer_before_its_level_is_left(own_cluster: LocalCluster) -> None:
    request = request_of(
        own_cluster.conninfo(load_balance=True, topology_keys="aws.us-west.us-west-2a"), {}
    )
    ybsmart.connect(own_cluster.conninfo(load_balance=True)).close()
    source = NodeSource(the_cluster(), request)

    trials = [source.next() for _ in range(3)]

    delays = [trial.hedge_delay for trial in trials if trial is not None]
    assert delays[0] < LEVEL_DELAY  # there is another node in its zone
    assert delays[1] >= LEVEL_DELAY  # there is none
    for trial in trials:
        assert trial is not None
        source.dropped(trial)
