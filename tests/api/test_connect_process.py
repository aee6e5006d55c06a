"""Connecting and what comes at any instant: finalisers, handlers of signals, interrupts."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.api.support import (
    Queued,
    close,
    controlled,
    interrupted,
    refresh,
    states,
    the_cluster,
    until_none_runs,
)
from tests.servers import by_node
from tests.support import Threads, asleep, until
from ybsmart import ConnectionPool, dialing, registry, upkeep
from ybsmart._core import hosts
from ybsmart.cluster import Cluster
from ybsmart.discovery import NodeRecord
from ybsmart.listing import list_nodes
from ybsmart.request import request_of
from ybsmart.steering import Cap, NodesFull
from ybsmart.testing import LocalCluster

STUCK = 60.0  # seconds: who takes that long is


class Moments:
    """Does something in the middle of what others do, in their own threads, as a finaliser or a
    signal's handler would: once at each line `there` that any thread comes to."""

    def __init__(self, there: Callable[[FrameType], bool], action: Callable[[], object]) -> None:
        self.within: set[str] = set()
        """The functions in the middle of which that was."""
        self.errors: list[BaseException] = []
        self._there = there
        self._action = action
        self._lines: set[tuple[CodeType, int]] = set()
        self._over = False

    def __enter__(self) -> Moments:
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        sys.settrace(None)
        threading.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if self._over or not self._there(frame):
            return None
        line = frame.f_code, frame.f_lineno
        if event == "line" and line not in self._lines:
            self._lines.add(line)
            self.within.add(frame.f_code.co_name)
            try:
                self._action()
            except BaseException as exc:
                self.errors.append(exc)
        return self._trace


def in_modules(*names: str) -> Callable[[FrameType], bool]:
    return lambda frame: frame.f_globals.get("__name__") in names


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class InterruptedLock:
    """A lock at the end of whose first block an interrupt comes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._interrupts = [KeyboardInterrupt]

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self._interrupts:
            raise self._interrupts.pop()


# Finalisers and handlers


def lose_a_node_and_find_it_again(cluster: LocalCluster, url: str) -> None:
    lost = cluster.nodes[1]
    cluster.kill(lost)
    close([ybsmart.connect(url) for _ in range(4)])
    assert states() == ["up", "down", "up"]
    cluster.start(lost)
    until(lambda: states() == ["up", "up", "up"])
    refresh(url)


LOCKED = {"watch", "is_back", "look_at", "tiers", "learn", "refresh_if_due", "_end_refresh"}


def test_in_the_middle_of_connecting_reports_may_be_asked_for(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=1)

    def report() -> None:
        ybsmart.clusters()
        ybsmart.connection_counts()
        ybsmart.connection_counts(url)

    def connect() -> None:
        modules = ("registry", "cluster", "upkeep", "steering", "dialing", "candidates")
        with Moments(in_modules(*(f"ybsmart.{name}" for name in modules)), report) as moments:
            ybsmart.connect(url).close()
            lose_a_node_and_find_it_again(own_cluster, url)
        assert moments.errors == []
        assert moments.within >= {*LOCKED, "_find", "_run", "_join"}

    threads = Threads([connect])
    threads.wait(STUCK)
    assert threads.errors == []
    assert by_node(own_cluster) == [0, 0, 0]


def test_in_the_middle_of_connecting_others_may_connect(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=1)

    def connect() -> None:
        ybsmart.connect(url).close()  # who comes in the middle of the first has to wait for it
        there = in_modules("ybsmart.cluster", "ybsmart.upkeep")
        with Moments(there, lambda: ybsmart.connect(url).close()) as moments:
            ybsmart.connect(url, topology_keys="aws.us-west.*").close()
            lose_a_node_and_find_it_again(own_cluster, url)
        assert moments.errors == []
        assert moments.within >= LOCKED

    threads = Threads([connect])
    threads.wait(STUCK)
    assert threads.errors == []
    assert by_node(own_cluster) == [0, 0, 0]
    the_cluster().table.check()


def test_who_connects_in_the_middle_of_a_first_look_waits_no_longer_than_said(
    cluster: LocalCluster,
) -> None:
    first, second, third = [cluster.conninfo(node, load_balance=True) for node in cluster.nodes]
    ybsmart.connect(first).close()
    later = [third]

    def connect() -> None:
        if later:
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                ybsmart.connect(later.pop(), connect_timeout=2)

    # There the look has a lock, which the one that this begins wants.
    with Moments(lambda frame: frame.f_code.co_name == "_is_same", connect) as moments:
        threads = Threads([lambda: ybsmart.connect(second).close()])
        threads.wait(STUCK)
    assert moments.errors == threads.errors == []
    assert not later
    ybsmart.connect(third).close()


def test_in_the_middle_of_a_pools_choice_of_a_node_others_may_connect(balanced: str) -> None:
    def connect() -> None:
        with suppress(NodesFull):  # in a thread of the pool's, its limit holds
            ybsmart.connect(balanced).close()

    with Moments(in_modules("ybsmart.steering"), connect) as moments:
        with ConnectionPool(balanced, max_size=3, max_per_node=1, timeout=STUCK) as pool:
            for conn in [pool.getconn() for _ in range(3)]:
                pool.putconn(conn)
    assert moments.errors == []
    assert moments.within >= {"reserve", "over", "landing"}


def test_in_the_middle_of_a_choice_the_first_of_the_same_thread_may_be_made() -> None:
    table = hosts.HostTable(1)
    tiers = table.arrange([table.update([("a", None), ("b", None)])])

    def choose(cap: Cap, at: int) -> bool:
        """Whether there is such an instruction, before which another choice is made."""
        left = [None] * at

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_globals.get("__name__") != "ybsmart.steering":
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and left:
                left.pop()
                if not left:
                    sys.settrace(None)
                    cap.reserve(table, tiers, None)
            return trace

        sys.settrace(trace)
        try:
            cap.reserve(table, tiers, None)
        finally:
            sys.settrace(None)
        return not left

    at = 1
    while True:
        cap = Cap(100, lambda _: 0)
        threads = Threads([lambda cap=cap: cap.reserve(table, tiers, None)])  # type: ignore[misc]
        threads.wait(STUCK)
        if not choose(cap, at):
            break
        at += 1
    assert at > 50


def test_in_the_middle_of_closing_a_pool_it_may_be_closed(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    pool.query("SELECT 1")

    def close_it() -> None:
        there = in_modules("ybsmart.alarm", "ybsmart.pool_lifetime", "ybsmart.connector")
        with Moments(there, pool.close) as moments:
            pool.close()
        assert moments.errors == []

    threads = Threads([close_it])
    threads.wait(STUCK)
    assert threads.errors == []


def test_in_the_middle_of_a_pause_between_attempts_a_pool_may_be_closed(balanced: str) -> None:
    connection_class = controlled()
    connection_class.error = psycopg.OperationalError("no luck")
    pool = ConnectionPool(balanced, fail_fast=False, connection_class=connection_class)
    connector = f"{pool.name}-connect"

    def pausing(frame: FrameType) -> bool:
        caller = frame.f_back
        while caller is not None and caller.f_code.co_name != "pause":
            caller = caller.f_back
        return caller is not None and threading.current_thread().name == connector

    with Moments(pausing, pool.close) as moments:
        waiter = Queued(pool)
        with pytest.raises(ybsmart.PoolClosed):
            waiter.result()
        until_none_runs(connector)
    assert moments.errors == []
    assert moments.within


# Interrupts


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the threads that look after clusters would do, had they been started."""
    threads: list[tuple[Any, ...]] = []

    def start(name: str, *action: Any) -> bool:
        threads.append((name, *action))
        return True

    monkeypatch.setattr(upkeep, "_start", start)
    return threads


REQUEST = request_of("host=127.0.0.1 load_balance=true", {})


def test_an_interrupt_of_who_wants_the_list_refreshed_keeps_nobody_from_refreshing_it(
    started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    with monkeypatch.context() as patch:
        patch.setattr(cluster.upkeep, "_lock", InterruptedLock())
        with pytest.raises(KeyboardInterrupt):
            cluster.upkeep.refresh_if_due(0, REQUEST)
    cluster.upkeep._not_before = 0.0

    cluster.upkeep.refresh_if_due(0, REQUEST)

    assert [name for name, *_ in started] == ["ybsmart-refresh"]


def watched() -> tuple[Cluster, Callable[[], None]]:
    """A cluster of one node, and a function that has this watched."""
    cluster = Cluster()
    (host,) = cluster.table.update([("a", NodeRecord("127.0.0.1", 5433))])
    cluster.request = REQUEST
    return cluster, lambda: cluster.upkeep.watch(host, 5, "refused", at_once=True, passed_over=True)


def test_an_interrupt_of_who_has_a_node_watched_keeps_nobody_from_looking(
    started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, watch = watched()
    with monkeypatch.context() as patch:
        patch.setattr(cluster.upkeep, "_lock", InterruptedLock())
        with pytest.raises(KeyboardInterrupt):
            watch()
    watch()

    assert [name for name, *_ in started] == ["ybsmart-probe"]


def test_an_interrupt_while_the_thread_that_looks_is_started_does_not_leave_two(
    started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _cluster, watch = watched()
    with monkeypatch.context() as patch:
        start = upkeep._start
        patch.setattr(upkeep, "_start", lambda *args: interrupt(start(*args)))
        with pytest.raises(KeyboardInterrupt):
            watch()
    watch()
    (_, look, *arguments), _ = started

    thread = threading.Thread(target=look, args=arguments, daemon=True)
    thread.start()

    thread.join(STUCK)
    assert not thread.is_alive()


def test_a_thread_that_looks_although_an_interrupt_came_as_it_started_is_the_one(
    started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, watch = watched()
    looks: list[None] = []

    def look_once(_: object) -> None:
        looks.append(None)
        watch()  # by somebody else, meanwhile
        (host,) = cluster.table.hosts()
        cluster.upkeep.is_back(host)

    with monkeypatch.context() as patch:
        start = upkeep._start
        patch.setattr(upkeep, "_start", lambda *args: interrupt(start(*args)))
        with pytest.raises(KeyboardInterrupt):
            watch()
    monkeypatch.setattr(upkeep, "run", look_once)
    ((_, look, *arguments),) = started

    look(*arguments)

    assert (len(looks), len(started)) == (1, 1)


def test_when_the_thread_that_looks_is_ended_the_next_to_have_a_node_watched_starts_another(
    started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(upkeep, "run", end)
    _cluster, watch = watched()
    watch()
    ((_, look, *arguments),) = started
    with pytest.raises(SystemExit):
        look(*arguments)

    watch()

    assert len(started) == 2


def test_an_interrupted_connect_is_not_under_way(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(set[Any]):
        def add(self, dialer: object) -> None:
            super().add(dialer)
            raise KeyboardInterrupt

    ybsmart.connect(balanced).close()
    monkeypatch.setattr(dialing, "_under_way", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        ybsmart.connect(balanced)

    assert dialing.under_way() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whether a thread sleeps")
def test_an_interrupt_of_who_waits_for_a_first_look_holds_up_nobody_else(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = threading.current_thread()
    seen: set[str] = set()  # of the caller: no event, which an interrupt could leave locked
    find = registry._find

    def find_and_say(request: Any) -> Any:
        found = find(request)
        if threading.current_thread() is caller:
            seen.add("waits")
        return found

    def look_when_awaited(*args: Any) -> Any:
        until(lambda: "is over" in seen or ("waits" in seen and asleep(caller)))
        return list_nodes(*args)

    def connect() -> None:
        ybsmart.connect(balanced).close()

    monkeypatch.setattr(registry, "_find", find_and_say)
    monkeypatch.setattr(registry, "list_nodes", look_when_awaited)
    moment, came = 0, True
    while came:
        moment += 1
        registry.forget()
        seen.clear()
        others = Threads([connect])
        try:
            came = interrupted(connect, moment, "concurrent.futures._base", "ybsmart.alarm")
        finally:
            seen.add("is over")
        others.wait(STUCK)
        assert others.errors == []
    assert moment > 5


def test_a_log_that_fails_does_not_make_connects_wait(own_cluster: LocalCluster) -> None:
    def fail(_: logging.LogRecord) -> bool:
        raise RuntimeError("the disk is full")

    own_cluster.discovery(error="no list today")
    url = own_cluster.conninfo(load_balance=True, connect_timeout=2)
    logger = logging.getLogger("ybsmart")
    logger.addFilter(fail)
    try:
        with pytest.raises(RuntimeError, match="the disk is full"):
            ybsmart.connect(url)
    finally:
        logger.removeFilter(fail)

    ybsmart.connect(url).close()
