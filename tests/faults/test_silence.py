"""Nodes that fall silent: stopped, or behind a network that swallows everything."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import errors, pq

from tests.faults import load
from tests.faults.support import audit, borrowed, fill, soon, spread, state, swept
from tests.support import until
from ybsmart import ConnectionPool, silence, tending
from ybsmart.testing import LocalCluster
from ybsmart.upkeep import Upkeep

MakePool = Callable[..., ConnectionPool]


class Asking(threading.Thread):
    """Somebody who waits for an answer."""

    def __init__(self, conn: Any, sql: str = "SELECT 1") -> None:
        super().__init__(daemon=True)
        self.conn, self.sql = conn, sql
        self.answer: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.conn.execute(self.sql).fetchone()
        except BaseException as exc:
            self.error = exc


def on(cluster: LocalCluster, conns: list[Any], index: int) -> list[Any]:
    return [conn for conn in conns if conn.node.host == cluster.nodes[index].host]


@pytest.mark.usefixtures("impatient")
def test_a_stopped_node_is_given_up_and_those_who_wait_for_it_are_told(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool()
    fill(pool)
    told: list[BaseException] = []

    def use() -> None:
        try:
            with pool.connection() as conn:
                go.wait()
                conn.execute("SELECT 1")
        except psycopg.OperationalError as exc:
            told.append(exc)

    go = threading.Event()
    users = [threading.Thread(target=use, daemon=True) for _ in range(6)]
    for user in users:
        user.start()
    until(lambda: sum(slot.holder != 0 for slot in pool._list_slots()) == 6)
    own_cluster.pause(1)
    try:
        go.set()
        # Two of them were on that node; it has two idle ones too.
        soon(lambda: not any(user.is_alive() for user in users), pool)
        assert len(told) == 2
        for error in told:
            assert isinstance(error.__cause__, errors.ConnectionTimeout)
            assert "127.0.0.2" in str(error.__cause__)
            assert "has not answered" in str(error.__cause__)
        soon(lambda: spread(pool, own_cluster) == [4, 0, 4], pool)
        assert pool.get_stats()["removed_silent"] == 2
        # Nobody is sent there any more.
        for _ in range(12):
            assert pool.query("SELECT 1").scalar() == 1
        fill(pool)
        assert spread(pool, own_cluster) == [6, 0, 6]
    finally:
        own_cluster.resume(1)
    soon(lambda: spread(pool, own_cluster) == [4, 4, 4], pool)
    audit(pool, own_cluster)


@pytest.mark.usefixtures("impatient")
def test_a_long_query_on_a_node_that_is_well_is_not_disturbed(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool(3)
    with borrowed(pool, 3) as conns:
        asking = [Asking(conn, "SELECT pg_sleep(4), 1") for conn in conns]
        soon(lambda: not any(thread.is_alive() for thread in asking), pool)
        assert [thread.error for thread in asking] == [None] * 3
        assert [state(own_cluster, i) for i in range(3)] == ["up"] * 3


@pytest.mark.usefixtures("impatient")
def test_a_long_query_that_is_alone_on_its_node_is_told_too(
    own_cluster: LocalCluster, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tending, "LAST_LOOK", 0.4)
    looks: list[str] = []
    watch = Upkeep.watch

    def counted(self: Upkeep, host: Any, *args: Any, **options: Any) -> None:
        looks.append(host.info.host)
        watch(self, host, *args, **options)

    monkeypatch.setattr(Upkeep, "watch", counted)
    pool = make_pool()
    with borrowed(pool) as conns:
        there = on(own_cluster, conns, 1)[0]
        asking = Asking(there, "SELECT pg_sleep(60)")
        # It takes its time, and its node is found to be well.
        soon(lambda: len(looks) >= 4, pool)
        assert asking.is_alive()
        assert set(looks) == {own_cluster.nodes[1].host}
        own_cluster.pause(1)
        try:
            soon(lambda: not asking.is_alive(), pool)
            assert isinstance(asking.error, psycopg.OperationalError)
        finally:
            own_cluster.resume(1)
    assert pool.get_stats()["requests_errors"] == 0


def waits(*ages: float, unheard: bool = False) -> list[silence.Wait]:
    return [silence.Wait(1, None, 0.0, 1000.0 - age, unheard) for age in ages]


def test_the_longer_a_query_takes_on_a_node_that_is_well_the_more_time_it_is_given() -> None:
    first, last = tending.FIRST_LOOK, tending.LAST_LOOK
    assert tending.patience(waits(1), 1000.0) == first
    assert tending.patience(waits(first + 1), 1000.0) == first + 1
    assert tending.patience(waits(last + 60), 1000.0) == last
    # What has begun later, or after the last sign of life, shows nothing.
    assert tending.patience(waits(60, 1), 1000.0) == first
    assert tending.patience(waits(60), 900.0) == first
    assert tending.patience(waits(60, unheard=True), 1000.0) == first


@pytest.mark.usefixtures("impatient")
def test_an_application_that_takes_its_time_on_a_stopped_node_is_left_alone(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool()
    with borrowed(pool) as conns:
        there = on(own_cluster, conns, 1)
        asking = Asking(there[0])
        asking.join()
        own_cluster.pause(1)
        try:
            asking = Asking(there[0])
            soon(lambda: not asking.is_alive(), pool)
            assert isinstance(asking.error, psycopg.OperationalError)
        finally:
            own_cluster.resume(1)
        for conn in there[1:]:
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_short_stop_costs_nobody_anything(own_cluster: LocalCluster, make_pool: MakePool) -> None:
    pool = make_pool()
    with borrowed(pool) as conns:
        own_cluster.pause(1)
        asking = [Asking(conn) for conn in conns]
        swept(pool, 3)
        own_cluster.resume(1)
        for thread in asking:
            thread.join()
        assert [thread.answer for thread in asking] == [(1,)] * 12
    assert pool.get_stats()["removed_silent"] == 0


def test_a_wait_that_has_ended_by_itself_is_not_ended(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    pool = make_pool(1)
    watch = silence.Watch()
    with borrowed(pool, 1) as (conn,):
        (slot,) = pool._list_slots()
        assert watch.look([slot], 0.0) == {}
        asking = Asking(conn, "SELECT pg_advisory_lock(1), 1")
        with psycopg.connect(own_cluster.conninfo(), autocommit=True) as other:
            asking.join()
            other_asks = Asking(other, "SELECT pg_advisory_lock(1)")
            asking = Asking(conn, "SELECT pg_sleep(0.3), 1")
            until(lambda: bool(watch.look([slot], 0.0)))
            asking.join()
            assert not watch.end(slot, "late")
            assert watch.look([slot], 0.0) == {}
            conn.execute("SELECT pg_advisory_unlock(1)")
            other_asks.join()
        assert conn.execute("SELECT 1").fetchone() == (1,)
        asking = Asking(conn, "SELECT pg_sleep(60)")
        until(lambda: bool(watch.look([slot], 0.0)))
        assert watch.end(slot, "enough")
        asking.join()
        assert isinstance(asking.error, psycopg.OperationalError)
    assert conn.closed


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(not load.can_drop(), reason="needs root and nftables")
@pytest.mark.parametrize("how", ["given up by the pool", "by the system"])
def test_a_black_hole_ends_the_waits_of_those_in_it(
    own_cluster: LocalCluster, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fast = {"keepalives_idle": 1, "keepalives_interval": 1, "tcp_user_timeout": 1500}
    ours = how == "given up by the pool"
    if not ours:
        monkeypatch.setattr(tending, "HOPELESS", 60.0)
    pool = make_pool(properties=None if ours else fast)
    with borrowed(pool) as conns:
        there = on(own_cluster, conns, 1)
        fault = load.BY_NAME["black-holed"]
        fault.begins(own_cluster)
        try:
            asking = [Asking(conn) for conn in conns]
            soon(lambda: not any(thread.is_alive() for thread in asking), pool)
        finally:
            fault.ends(own_cluster)
        assert [t.conn for t in asking if t.error is not None] == there
        for conn in conns:
            conn.rollback() if not conn.closed else None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_looking_at_what_is_no_socket_any_more_leaves_no_descriptor(tmp_path: Path) -> None:
    # Closed at that moment, and its number given to a file.
    with (tmp_path / "file").open("w") as file:
        pgconn = SimpleNamespace(socket=file.fileno())
        before = len(os.listdir("/proc/self/fd"))
        with silence._duplicate(SimpleNamespace(pgconn=pgconn)) as twin:
            assert twin is None
        assert len(os.listdir("/proc/self/fd")) == before


class Waits:
    """As much of a slot, of a connection and of libpq's as is asked of one that waits."""

    loan, lent, lent_at = 1, True, 0.0
    transaction_status = pq.TransactionStatus.ACTIVE

    def __init__(self, number: int) -> None:
        self.conn = self.pgconn = self
        self.socket = number


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing counts as waiting")
def test_a_connection_is_left_alone_that_has_taken_the_number_of_one_just_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in "ab"]
    (one, _), (other, its_end) = pairs
    for end, _ in pairs:
        end.send(b"?")
    slot: Any = Waits(one.fileno())
    watch = silence.Watch()
    assert slot in watch.look([slot], 0.0)

    slot.socket = other.fileno()
    assert not watch.end(slot, "it is silent")

    other.send(b"!")
    its_end.settimeout(30)
    assert its_end.recv(2, socket.MSG_WAITALL) == b"?!"
    for pair in pairs:
        for end in pair:
            end.close()
