"""A connection counts for its node until it is closed or collected, exactly once, whatever else."""

from __future__ import annotations

import gc
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import rows

import ybsmart
from tests.smart.conftest import NewClient
from tests.smart.scenario import Client
from tests.support import in_threads, until
from ybsmart.testing import LocalCluster


@contextmanager
def dropped_connections_are_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        # psycopg's, for a connection that nobody closed; here it is the point of the test.
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def test_closing_twice_counts_once(three: LocalCluster, client: NewClient) -> None:
    app = client(three)
    app.open(6)
    for conn in app.held[:3]:
        conn.close()
        conn.close()
    del app.held[:3]

    assert sum(app.counts()) == 3
    app.open(3)
    app.check([2, 2, 2])


def test_what_the_server_cut_counts_until_it_is_closed(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(6)
    sql = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s"
    )
    for node in three.nodes:
        three.execute(node, sql, [app.name])
    for conn in app.held:
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        assert conn.closed
    app.check([2, 2, 2], alive=[0, 0, 0])

    app.close()

    assert app.counts() == [0, 0, 0]
    app.spread(6, [2, 2, 2])


def test_a_dropped_connection_stops_counting_when_it_is_collected(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(6)

    with dropped_connections_are_fine():
        app.held.clear()

    app.check([0, 0, 0])


def test_a_connection_in_a_reference_cycle_stops_counting_too(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    with dropped_connections_are_fine():
        cycle: list[Any] = [app.connect()]
        cycle.append(cycle)
        app.held.clear()
        del cycle

    app.check([0, 0, 0])


def test_the_end_of_a_with_block_counts_off(three: LocalCluster, client: NewClient) -> None:
    app = client(three)

    with app.connect(), pytest.raises(ZeroDivisionError), app.connect():
        raise ZeroDivisionError
    app.held.clear()

    app.check([0, 0, 0])


def test_a_connect_that_fails_after_the_server_said_yes_counts_nothing(
    three: LocalCluster, client: NewClient
) -> None:
    class Fussy(ybsmart.Connection[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            raise LookupError("an adapter that does not like this server")

    app = client(three)
    app.touch()

    with dropped_connections_are_fine():
        for _ in range(4):
            with pytest.raises(LookupError):
                Fussy.connect(app.url, **app.params)

    app.check([0, 0, 0])
    app.spread(6, [2, 2, 2])


def test_a_subclass_a_row_factory_and_a_cursor_factory_work_as_in_psycopg(
    three: LocalCluster, client: NewClient
) -> None:
    class Mine(ybsmart.Connection[rows.DictRow]):
        pass

    app = client(three)
    with Mine.connect(
        app.url,
        autocommit=True,
        row_factory=rows.dict_row,
        cursor_factory=psycopg.ClientCursor,
        **app.params,
    ) as conn:
        assert type(conn) is Mine
        assert conn.autocommit
        assert conn.execute("SELECT %s AS n", [7]).fetchone() == {"n": 7}
        assert sum(app.counts()) == 1


def test_threads_that_open_and_close_leave_exact_counts(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    lock = threading.Lock()

    def churn() -> None:
        for _ in range(5):
            with ybsmart.connect(app.url, **app.params):
                pass
        conn = ybsmart.connect(app.url, **app.params)
        with lock:
            app.held.append(conn)

    assert not in_threads(12, churn)

    assert sum(app.counts()) == 12
    app.check(app.counts())


@contextmanager
def pool_of_six(app: Client) -> Iterator[psycopg_pool.ConnectionPool[ybsmart.Connection[Any]]]:
    """psycopg_pool's own pool, with six connections of ours."""
    with psycopg_pool.ConnectionPool(
        app.url,
        kwargs=app.params,
        connection_class=ybsmart.Connection,
        min_size=6,
        max_size=6,
        open=True,
    ) as pool:
        pool.wait()
        yield pool


def test_under_psycopg_pool_the_pools_connections_count_idle_or_not(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    with pool_of_six(app) as pool:
        assert app.counts() == [2, 2, 2]
        until(app.sessions, [2, 2, 2])
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            assert app.counts() == [2, 2, 2]

    app.check([0, 0, 0])


def test_under_psycopg_pool_a_killed_connection_is_replaced_and_counted_right(
    three: LocalCluster, client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    # The pool drops a broken connection without closing it, after a warning that refers to it,
    # which pytest would keep.
    caplog.set_level(logging.ERROR, "psycopg.pool")
    app = client(three)
    with pool_of_six(app) as pool:
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        del conn

        def is_settled() -> bool:
            gc.collect()  # what was dropped, without the GIL not at once
            return sum(app.sessions()) == 6 and app.counts() == app.sessions()

        until(is_settled)

    app.check([0, 0, 0])


def test_a_connection_without_balancing_counts_nowhere(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.open(3)

    plain = app.connect(load_balance=False)

    assert plain.node is None
    assert app.counts() == [1, 1, 1]
    plain.close()
    app.held.remove(plain)
    app.check([1, 1, 1])
