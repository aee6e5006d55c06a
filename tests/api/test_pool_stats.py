"""Numbers, holders, leaks, what the log says."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.rows import tuple_row

import ybsmart
from tests.api.support import Queued
from tests.support import in_threads, until
from ybsmart import ConnectionPool, PoolTimeout, leaks
from ybsmart.testing import LocalCluster

PSYCOPG_KEYS = [
    "pool_min",
    "pool_max",
    "pool_size",
    "pool_available",
    "requests_waiting",
    "usage_ms",
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_errors",
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
]
OWN_KEYS = [
    "pool_connecting",
    "pool_checked_out",
    "pool_peak",
    "requests_timeouts",
    "requests_rejected",
    "returns_rolled_back",
    "removed_idle",
    "removed_lifetime",
    "removed_uses",
    "removed_error",
    "removed_check",
    "removed_drain",
    "removed_evict",
    "removed_leak",
    "wait_ms_p50",
    "wait_ms_p99",
    "wait_ms_max",
    "usage_ms_p50",
    "usage_ms_p99",
    "usage_ms_max",
    "nodes",
]


def test_the_statistics_have_all_of_psycopg_pools_keys_and_ours(pool: ConnectionPool) -> None:
    stats = pool.get_stats()
    assert set(PSYCOPG_KEYS + OWN_KEYS) <= set(stats)
    assert all(isinstance(stats[key], int) for key in PSYCOPG_KEYS)


def test_requests_and_times_are_counted(cluster: LocalCluster, balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=10) as pool:
        first, second = pool.getconn(), pool.getconn()
        first.execute("SELECT pg_sleep(0.05)")
        waiter = Queued(pool)
        stats = pool.get_stats()
        assert (stats["pool_size"], stats["pool_checked_out"], stats["requests_waiting"]) == (
            2,
            2,
            1,
        )
        second.execute("SELECT pg_sleep(0.05)")
        pool.putconn(second)
        pool.putconn(waiter.result())
        pool.putconn(first)
        stats = pool.get_stats()
        assert stats["requests_num"] == 3
        assert stats["requests_queued"] == 3  # two of them for a new connection
        assert stats["connections_num"] == stats["pool_peak"] == 2
        assert stats["connections_ms"] >= 1
        assert 50 <= stats["requests_wait_ms"] < 5000
        assert 150 <= stats["usage_ms"] < 10_000
        assert 50 <= stats["wait_ms_max"] < 5000
        assert 100 <= stats["usage_ms_max"] < 10_000
        assert sum(n["total"] for n in stats["nodes"].values()) == 2
        assert set(stats["nodes"]) <= {f"{n.host}:{n.port}" for n in cluster.nodes}


def test_pop_stats_resets_counters_and_no_gauges(pool: ConnectionPool) -> None:
    pool.query("SELECT 1")
    assert pool.pop_stats()["requests_num"] == 1
    stats = pool.get_stats()
    assert stats["requests_num"] == stats["connections_num"] == stats["usage_ms"] == 0
    assert stats["pool_size"] == stats["pool_peak"] == 1


@pytest.mark.usefixtures("fast_switching")
def test_pop_stats_while_others_work_loses_no_count(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=4, timeout=30) as pool:
        keys = ("requests_num", "connections_num", "removed_discard", "requests_errors")
        sums: Counter[str] = Counter()
        over = threading.Event()

        def pop() -> None:
            last = False
            while not last:
                last = over.is_set()
                stats = pool.pop_stats()
                with adding:
                    sums.update({key: stats[key] for key in keys})

        adding = threading.Lock()

        def work() -> None:
            for number in range(300):
                conn = pool.getconn()
                for _ in range(20):
                    pool._count_error()
                pool.putconn(conn, discard=number % 60 == 0)

        popping = [threading.Thread(target=pop) for _ in range(2)]
        for thread in popping:
            thread.start()
        try:
            assert in_threads(4, work) == []
        finally:
            over.set()
            for thread in popping:
                thread.join()
        assert sums["requests_num"] == 4 * 300
        assert sums["requests_errors"] == 4 * 300 * 20
        assert sums["removed_discard"] == 4 * 5
        assert sums["connections_num"] == 4 * 5 + pool.total_count


def test_drain_and_evict_are_counted_apart(pool: ConnectionPool) -> None:
    pool.query("SELECT 1")
    pool.drain()
    pool.query("SELECT 1")
    pool.evict()
    stats = pool.get_stats()
    assert (stats["removed_drain"], stats["removed_evict"]) == (1, 1)


def test_each_node_keeps_why_its_connections_are_closed(pool: ConnectionPool) -> None:
    conns = [pool.getconn() for _ in range(3)]
    pool.drain()
    assert conns[0].node is not None
    pool.evict(conns[0].node)
    for conn in conns:
        pool.putconn(conn)
    reasons = [getattr(conn, "removal_reason", None) for conn in conns]
    assert reasons == ["evict", "drain", "drain"]
    stats = pool.get_stats()
    assert (stats["removed_drain"], stats["removed_evict"]) == (2, 1)


@pytest.mark.parametrize("ending", ["discard", "close"])
def test_the_use_of_connections_that_are_not_kept_is_counted(
    pool: ConnectionPool, ending: str
) -> None:
    conn = pool.getconn()
    conn.execute("SELECT pg_sleep(0.03)")
    if ending == "close":
        conn.close()
    pool.putconn(conn, discard=ending == "discard")
    stats = pool.get_stats()
    assert stats["pool_size"] == 0
    assert stats["usage_ms"] >= 30
    assert stats["usage_ms_max"] >= 30


def test_evict_of_one_node(cluster: LocalCluster, pool: ConnectionPool) -> None:
    held = [pool.getconn() for _ in range(3)]
    for conn in held[:2]:
        pool.putconn(conn)
    node = held[0].node
    assert node is not None
    pool.evict(node)
    assert [conn.closed for conn in held] == [True, False, False]
    lent = held[2].node
    assert lent is not None
    pool.evict(lent.address)
    assert not held[2].closed
    pool.putconn(held[2])
    assert held[2].closed
    with pytest.raises(ValueError, match=r"nowhere:1"):
        pool.evict("nowhere:1")


def test_check_closes_what_is_broken_and_disturbs_nothing(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=3, max_idle=0) as pool:
        conns = [pool.getconn() for _ in range(3)]
        for conn in conns:
            pool.putconn(conn)
        events: list[str] = []
        for event in ("acquire", "release"):
            pool.on(event, lambda *_, event=event: events.append(event))
        before = pool.get_stats()
        pool.check()
        assert events == []
        conns[0].close()
        pool.check()
        assert pool.idle_count == 2
        stats = pool.get_stats()
        assert stats["requests_num"] == before["requests_num"]
        assert stats["connections_lost"] == stats["removed_check"] == 1


# Holders


def test_holders_says_who_since_when_and_on_which_node(pool: ConnectionPool) -> None:
    assert pool.holders() == []
    first = pool.getconn()
    waiter = Queued(pool)
    second = waiter.result()
    holders = pool.holders()
    assert [h.thread for h in holders] == [threading.current_thread().name, "?"]
    assert holders[0].thread_id == threading.get_ident()
    assert holders[0].age >= holders[1].age >= 0
    assert first.node is not None
    assert holders[0].node == first.node.address
    assert holders[0].taken_at is None
    pool.putconn(first)
    pool.putconn(second)
    assert pool.holders() == []


@pytest.mark.parametrize("has_table", [True, False])
def test_a_timeout_names_the_threads_that_hold_connections(
    balanced: str, monkeypatch: pytest.MonkeyPatch, has_table: bool
) -> None:
    """Also on a Python that does not have its table of threads where it has always been."""
    if not has_table:
        monkeypatch.setattr(leaks, "threading", SimpleNamespace(enumerate=threading.enumerate))
    with ConnectionPool(balanced, max_size=2) as pool:
        holds, seen = threading.Event(), threading.Event()

        def hold() -> None:
            with pool.connection():
                holds.set()
                assert seen.wait(30)

        with pool.connection():
            other = threading.Thread(target=hold, name="the other")
            other.start()
            assert holds.wait(30)
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn(0)
            seen.set()
            other.join(30)
    holders = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert [line.partition(" for ")[0].strip() for line in holders] == [
        threading.current_thread().name,
        "the other",
    ]


def test_with_leak_detection_holders_and_timeouts_say_where(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, leak_detection_threshold=60) as pool:
        with pool.connection():
            (holder,) = pool.holders()
            assert "test_with_leak_detection_holders" in (holder.taken_at or "")
            with pytest.raises(PoolTimeout, match="test_with_leak_detection_holders"):
                pool.getconn(0)


def test_a_place_is_the_users_whatever_took_the_connection_there(balanced: str) -> None:
    places: list[str | None] = []

    def look(_: object) -> None:
        places.append(pool.holders()[0].taken_at)

    def row_factory(cursor: psycopg.Cursor[Any]) -> Any:
        look(cursor)
        return tuple_row(cursor)

    with ConnectionPool(balanced, max_size=1, leak_detection_threshold=60) as pool:
        conn = pool.getconn()
        look(conn)
        pool.putconn(conn)
        with pool.connection() as conn:
            look(conn)
        pool.run_transaction(look)
        pool.query("SELECT 1", row_factory=row_factory)
    assert len(places) == 4
    for place in places:
        assert "test_a_place_is_the_users" in (place or "")
        assert os.path.dirname(ybsmart.__file__) not in (place or "")


# Leaks


def test_a_leak_is_reported_once_with_its_place_and_again_when_it_is_returned(
    balanced: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ConnectionPool(balanced, leak_detection_threshold=0.05) as pool:
        conn = pool.getconn()
        until(lambda: "is in use for" in caplog.text)
        assert "test_a_leak_is_reported_once" in caplog.text
        until(lambda: len(pool.holders()) == 1 and pool.holders()[0].age > 0.3)
        assert caplog.text.count("is in use for") == 1
        pool.putconn(conn)
        assert "was returned after" in caplog.text
        assert pool.get_stats()["leaks_suspected"] == 1


class Moving:
    """A slot that is lent, or returned, while it is looked at."""

    lent, holder, note = True, 1, None
    shelf = SimpleNamespace(label="127.0.0.1:5433")

    def __init__(self, *lent_at: float) -> None:
        self._readings = iter(lent_at)

    @property
    def lent_at(self) -> float:
        return next(self._readings)


def test_a_connection_that_is_lent_while_it_is_looked_at_is_no_leak() -> None:
    slot: Any = Moving(0.0, time.monotonic(), time.monotonic())

    assert list(leaks.overdue([slot], 1.0)) == []


def test_a_connection_that_is_returned_while_it_is_looked_at_has_not_been_lent_for_ever() -> None:
    slot: Any = Moving(time.monotonic(), 0.0)

    (holder,) = leaks.holders([slot])

    assert holder.age < 60


def test_leak_detection_is_switched_at_run_time(
    pool: ConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    assert pool.leak_detection_threshold == 0
    conn = pool.getconn()
    pool.leak_detection_threshold = 0.01
    until(lambda: "is in use for" in caplog.text)
    pool.leak_detection_threshold = 0
    pool.putconn(conn)
    with pytest.raises(ValueError, match="leak_detection_threshold"):
        pool.leak_detection_threshold = -1


def test_a_dropped_connection_is_counted_and_its_place_named(
    balanced: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ConnectionPool(balanced, max_size=1, leak_detection_threshold=60, timeout=10) as pool:
        pool.getconn()
        gc.collect()
        assert pool.query("SELECT 1").scalar() == 1
        assert pool.get_stats()["removed_leak"] == 1
        assert "test_a_dropped_connection_is_counted" in caplog.text


def test_a_dropped_block_is_a_leak_as_well(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=10) as pool:
        pool.connection().__enter__()
        gc.collect()
        assert pool.query("SELECT 1").scalar() == 1


# The log


def test_a_log_handler_may_use_the_pool(balanced: str) -> None:
    answers: list[object] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not answers:
                answers.append(None)
                answers.append(pool.query("SELECT 1").scalar())

    logger = logging.getLogger("ybsmart.pool")
    handler = Handler()
    logger.addHandler(handler)
    try:
        with ConnectionPool(balanced, max_size=2, timeout=10) as pool:
            conn = pool.getconn()
            conn.execute("SELECT 1")
            pool.putconn(conn)  # logs that it is rolled back
            assert answers == [None, 1]
    finally:
        logger.removeHandler(handler)


def test_a_return_in_a_transaction_is_one_warning(
    pool: ConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    conn = pool.getconn()
    with pytest.raises(psycopg.errors.SyntaxError):
        conn.execute("wat")
    pool.putconn(conn)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "INERROR" in caplog.text
