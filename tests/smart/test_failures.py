"""Nodes that die, stop, fall silent, fill up or come back; passwords and addresses that change."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.smart.conftest import NewClient
from tests.smart.scenario import sessions_so_far, states
from tests.support import until
from ybsmart.testing import LocalCluster

# What a caller may lose to a node that does not answer, while the connect_timeout is ten seconds.
# The driver is much quicker; a loaded machine is not.
PROMPT = 4.0


def timed(action: Callable[[], object]) -> float:
    before = time.monotonic()
    action()
    return time.monotonic() - before


# One node, gone in one way or another


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_node_goes_and_comes_back(three: LocalCluster, client: NewClient, how: str) -> None:
    app = client(three, failed_host_reconnect_delay_secs=0)
    app.open(12)
    app.check([4, 4, 4])

    getattr(three, how)(1)
    app.open(6)
    # What the application has not let go of counts: a failure takes nothing away.
    app.check([7, 4, 7], alive=[7, 0, 7])
    app.close_broken()
    app.check([7, 0, 7])

    three.start(1)
    app.until(three.nodes[1], "up")
    app.open(7)
    app.check([7, 7, 7])


@pytest.mark.usefixtures("impatient")
def test_a_node_that_was_frozen_with_its_connections_keeps_them(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, failed_host_reconnect_delay_secs=0)
    app.open(6)
    three.pause(1)

    waits = [timed(lambda: app.open(1)) for _ in range(6)]
    assert max(waits) < PROMPT
    app.check([5, 2, 5], alive=[5, 0, 5])

    three.resume(1)
    for conn in app.held:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    app.check([5, 2, 5])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_frozen_node_costs_no_caller_its_connect_timeout(
    three: LocalCluster, client: NewClient, silent: int
) -> None:
    app = client(three)
    app.touch()
    three.pause(silent)

    waits = [timed(lambda: app.open(1)) for _ in range(6)]

    assert max(waits) < PROMPT
    expected = [3, 3, 3]
    expected[silent] = 0
    app.check(expected)
    # The attempts that were given up are no longer under way either.
    three.resume(silent)
    app.check(expected)


@pytest.mark.usefixtures("impatient")
def test_a_frozen_first_contact_host_is_passed_over(three: LocalCluster, client: NewClient) -> None:
    three.pause(0)
    app = client(three, host=",".join(node.host for node in three.nodes))

    assert timed(lambda: app.open(1)) < PROMPT
    app.open(3)

    app.check([0, 2, 2])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("interval", [0, 300])
def test_nobody_waits_for_a_frozen_node_to_list_the_nodes(
    three: LocalCluster, client: NewClient, interval: int
) -> None:
    app = client(three, yb_servers_refresh_interval=interval, connect_timeout=10)
    app.open(3)
    three.pause(0)

    waits = [timed(lambda: app.open(1)) for _ in range(8)]

    assert max(waits) < PROMPT
    app.check([1, 5, 5], alive=[0, 5, 5])


@contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """An address where nobody answers, as behind a firewall that drops: not even TCP connects.

    A listener whose queue is full is one, on Linux, and needs no rights.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.76.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(sys.platform != "linux", reason="others refuse when a queue is full")
@pytest.mark.parametrize("interval", [0, 300])
def test_a_node_behind_a_firewall_that_drops_costs_no_caller_its_connect_timeout(
    client: NewClient, interval: int
) -> None:
    with LocalCluster(3, first_address="127.0.77.1") as cluster, black_hole() as (host, port):
        cluster.update(1, advertised_host=host, advertised_port=port)
        app = client(cluster, yb_servers_refresh_interval=interval)

        waits = [timed(lambda: app.open(1)) for _ in range(6)]

        assert max(waits) < PROMPT
        app.check([3, 0, 3])


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(sys.platform != "linux", reason="others refuse when a queue is full")
def test_a_contact_host_behind_a_firewall_that_drops_is_passed_over(
    three: LocalCluster, client: NewClient
) -> None:
    with black_hole() as (host, port):
        app = client(
            three, host=f"{host},{three.nodes[0].host}", port=f"{port},{three.nodes[0].port}"
        )

        assert timed(lambda: app.open(1)) < PROMPT
        app.open(2)

        app.check([1, 1, 1])


def test_all_nodes_down_is_one_error_with_every_reason_and_the_first_to_return_serves(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)  # with the usual five seconds of quarantine
    app.touch()
    for node in three.nodes:
        three.kill(node)

    for _ in range(2):
        with pytest.raises(ybsmart.Unreachable) as caught:
            app.connect()
        for node in three.nodes:
            assert node.host in str(caught.value)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)

    # All are in quarantine, which is no reason to fail when one of them is back.
    three.start(2)
    app.open(2)
    app.check([0, 0, 2])


def test_a_rolling_restart_then_the_loss_of_the_contact_host_then_a_new_node(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0, failed_host_reconnect_delay_secs=0)
    app.spread(3, [1, 1, 1])

    for number, node in enumerate(three.nodes):
        three.stop(node)
        expected = [2, 2, 2]
        expected[number] = 0
        app.spread(4, expected)
        three.start(node)
        app.until(node, "up")
    app.spread(6, [2, 2, 2])

    three.kill(0)
    app.spread(6, [0, 3, 3])

    new = three.add("cloud.region.a")
    app.until(new, "up")
    app.spread(6, [0, 2, 2, 2])
    assert ybsmart.clusters()[0].refreshes > 1


def test_a_node_that_flaps_causes_no_storm_of_looks(three: LocalCluster, client: NewClient) -> None:
    app = client(three, failed_host_reconnect_delay_secs=0)
    app.touch()
    until(app.sessions, [0, 0, 0])
    before = sum(sessions_so_far(three)[:2])
    for _ in range(3):
        three.kill(2)
        app.open(4)
        three.start(2)
        app.open(4)
    app.close()

    def extra() -> bool:
        # The statistics of the node start anew with it; those of the others tell enough.
        return 0 <= sum(sessions_so_far(three)[:2]) - before <= 24 + 8

    until(extra, True)


# Counts and quarantine are two things


def test_a_node_that_refuses_for_a_while_is_not_stormed_afterwards(
    three: LocalCluster, client: NewClient
) -> None:
    # Its role may not connect to node 2: an error of the server's that is no fault of the node.
    for node in three.nodes:
        three.execute(node, "CREATE ROLE app LOGIN PASSWORD 'app'")
    try:
        app = client(three, user="app", password="app", failed_host_reconnect_delay_secs=0)
        app.open(12)
        app.check([4, 4, 4])
        three.execute(1, "ALTER ROLE app CONNECTION LIMIT 4")

        app.open(3)
        assert app.counts()[1] == 4
        assert sum(app.counts()) == 15

        three.execute(1, "ALTER ROLE app CONNECTION LIMIT -1")
        app.open(6)
        app.check([7, 7, 7])
        assert states(three) == ["up", "up", "up"]
    finally:
        for node in three.nodes:
            three.execute(node, "DROP ROLE app")


def test_a_node_without_a_free_slot_is_passed_over_and_stays_in_service(
    client: NewClient,
) -> None:
    with LocalCluster(3, first_address="127.0.62.1", max_connections=8) as cluster:
        app = client(cluster)
        app.touch()
        others = [psycopg.connect(cluster.conninfo(1)) for _ in range(8)]
        try:
            app.open(6)
            app.check([3, 0, 3])
            assert states(cluster) == ["up", "up", "up"]
        finally:
            for other in others:
                other.close()
        until(lambda: cluster.sessions(1), 0)
        app.open(3)
        app.check([3, 3, 3])


# The node list


@pytest.mark.parametrize("fault", [{"empty": True}, {"error": "no topology today"}])
def test_a_node_list_that_is_empty_or_fails_leaves_the_old_one(
    three: LocalCluster, client: NewClient, fault: dict[str, Any]
) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    app.open(3)
    three.discovery(**fault)

    app.open(6)
    app.check([3, 3, 3])

    three.discovery()
    new = three.add("cloud.region.b")
    app.until(new, "up")
    app.open(3)
    app.check([3, 3, 3, 3])


def test_a_node_list_that_takes_for_ever_holds_nobody_up(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    app.open(3)
    three.discovery(delay=60)

    waits = [timed(lambda: app.open(1)) for _ in range(3)]

    assert max(waits) < PROMPT + 1
    assert app.counts() == [2, 2, 2]


def test_a_node_that_is_missing_from_the_list_for_a_while_keeps_its_count(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    app.open(9)
    three.update(2, listed=False)
    try:
        app.until(three.nodes[2], "gone")
        app.open(4)
        app.check([5, 5, 3])
    finally:
        three.update(2, listed=True)

    app.until(three.nodes[2], "up")
    app.open(5)

    app.check([6, 6, 6])


def test_a_removed_node_gets_nothing_more_and_is_forgotten_with_its_last_connection(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    fourth = three.add("cloud.region.a")
    app.open(4)
    app.check([1, 1, 1, 1])
    known = f"{fourth.host}:{fourth.port}"

    three.remove(fourth)
    app.touch_until(lambda: len(ybsmart.clusters()[0].nodes), 4)
    assert ybsmart.connection_counts()[known] == 1
    app.open(3)
    assert app.counts() == [2, 2, 2]

    for conn in [c for c in app.held if c.node is not None and c.node.host == fourth.host]:
        conn.close()
        app.held.remove(conn)
    app.touch_until(lambda: known in ybsmart.connection_counts(), False)


# Everything changes


@pytest.fixture
def with_a_role(three: LocalCluster) -> Iterator[LocalCluster]:
    """The role `app`, password `old`, on each node."""
    for node in three.nodes:
        three.execute(node, "CREATE ROLE app LOGIN PASSWORD 'old'")
    yield three
    for node in three.nodes:
        three.start(node)
        three.execute(node, "DROP ROLE app")


def test_a_rotated_password_leaves_nothing_behind(
    with_a_role: LocalCluster, client: NewClient
) -> None:
    three = with_a_role
    app = client(three, user="app", password="old", yb_servers_refresh_interval=0)
    app.open(3)
    for node in three.nodes:
        three.execute(node, "ALTER ROLE app PASSWORD 'new'")

    # The old one is refused, once per request, and is the caller's problem alone.
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            app.connect()
    app.open(3, password="new")
    app.check([2, 2, 2])
    assert states(three) == ["up", "up", "up"]

    # The node list is asked for with the new one.
    app.params["password"] = "new"
    new = three.add("cloud.region.c")
    three.execute(new, "CREATE ROLE app LOGIN PASSWORD 'new'")
    app.until(new, "up")
    app.open(2)
    app.check([2, 2, 2, 2])
    app.close()


def test_one_callers_wrong_password_costs_one_attempt_and_no_other_caller_anything(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(6)

    with pytest.raises(psycopg.OperationalError, match="password authentication failed") as caught:
        app.connect(password="wrong")

    assert len([node for node in three.nodes if node.host in str(caught.value)]) == 1
    app.open(6)
    app.check([4, 4, 4])
    assert states(three) == ["up", "up", "up"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dbname": "nowhere"}, "does not exist"),
        ({"user": "nobody_at_all"}, "authentication failed"),
        ({"options": "-c no_such_setting_here=1"}, "unrecognized configuration parameter"),
    ],
)
def test_what_is_the_callers_fault_is_raised_as_it_is(
    three: LocalCluster, client: NewClient, params: dict[str, Any], message: str
) -> None:
    app = client(three)
    app.open(3)

    with pytest.raises(psycopg.OperationalError, match=message) as caught:
        app.connect(**params)

    # One node's answer: another would say the same.
    assert len([node for node in three.nodes if node.host in str(caught.value)]) == 1
    assert states(three) == ["up", "up", "up"]
    app.open(3)
    app.check([2, 2, 2])


def test_all_addresses_are_replaced_while_the_url_stays_valid(client: NewClient) -> None:
    # The first node stands for the name in the URL: it always leads into the cluster, and is not
    # in the node list.
    with LocalCluster(3, first_address="127.0.63.1") as cluster:
        cluster.update(0, listed=False)
        app = client(cluster)  # the list is asked for every 300 s
        app.open(4)
        app.check([0, 2, 2])
        old = cluster.nodes[1:]
        cluster.add("aws.us-west.us-west-2a")
        cluster.add("aws.us-west.us-west-2b")
        for node in old:
            cluster.remove(node)
        for conn in app.held:
            conn.close()
        app.held.clear()

        # The next one succeeds, wherever it goes; and soon all go to the new nodes.
        app.touch()
        until(app.touch, True)
        (info,) = ybsmart.clusters()
        assert {node.host for node in info.nodes} == {node.host for node in cluster.nodes[1:]}
        app.spread(4, [0, 2, 2])


def test_a_second_name_in_the_url_leads_to_the_cluster_when_the_first_is_gone(
    client: NewClient,
) -> None:
    with (
        LocalCluster(2, first_address="127.0.64.1") as old,
        LocalCluster(2, first_address="127.0.65.1", universe_uuid=old.universe_uuid) as new,
    ):
        hosts = f"{old.nodes[0].host},{new.nodes[0].host}"
        ports = f"{old.nodes[0].port},{new.nodes[0].port}"
        before = client(old, host=hosts, port=ports)
        before.spread(4, [2, 2])

        old.close()
        after = client(new, host=hosts, port=ports)
        after.touch()

        until(after.touch, True)
        after.spread(4, [2, 2])


def test_no_session_of_the_drivers_own_sits_in_a_transaction(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0, autocommit=True)
    app.open(6)

    sql = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
    assert [three.execute(node, sql, []) for node in three.nodes] == [[(0,)]] * 3
