"""Events: which, when, in which order, with which counts."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import psycopg
import pytest

from tests.api.support import Queued, controlled
from tests.servers import kill_backend
from tests.support import until
from ybsmart import ConnectionPool, events
from ybsmart.hygiene import IDLE

EVENTS = ("connect", "acquire", "release", "error", "remove")


class Record:
    """What happened, each with the pool's total, idle and waiting counts at that moment."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self.happened: list[tuple[Any, ...]] = []
        self.arguments: list[tuple[Any, ...]] = []
        for event in EVENTS:
            pool.on(event, lambda *args, event=event: self._note(pool, event, args))

    def _note(self, pool: ConnectionPool, event: str, arguments: tuple[Any, ...]) -> None:
        counts = [pool.total_count, pool.idle_count, pool.waiting_count]
        self.happened.append((event, *counts))
        self.arguments.append(arguments)

    def names(self) -> list[str]:
        return [happened[0] for happened in self.happened]


def test_the_first_request_connects_acquires_and_releases(pool: ConnectionPool) -> None:
    record = Record(pool)
    with pool.connection() as conn:
        assert record.names() == ["connect", "acquire"]
        assert record.happened[1] == ("acquire", 1, 0, 0)
        assert record.happened[0][1:3] == (1, 0)
    assert record.happened[2] == ("release", 1, 0, 0)  # not lent to others yet
    assert record.arguments == [(conn,), (conn,), (None, conn)]
    assert pool.idle_count == 1


@pytest.mark.parametrize("statement", ["SET datestyle = 'German'", "SELECT 1 / 0"])
def test_what_a_connect_listener_executes_stays_and_leaves_nothing_open(
    pool: ConnectionPool, statement: str
) -> None:
    pool.on("connect", lambda conn: conn.execute(statement))

    style = pool.query("SHOW datestyle").scalar()
    with pool.connection() as conn:
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert conn.execute("SHOW datestyle").fetchone() == (style,)

    assert style.startswith("German") == statement.startswith("SET")
    assert pool.total_count == 1


def test_an_idle_connection_is_acquired_without_connecting(pool: ConnectionPool) -> None:
    pool.query("SELECT 1")
    record = Record(pool)
    pool.query("SELECT 1")
    assert record.happened == [("acquire", 1, 0, 0), ("release", 1, 0, 0)]


def test_a_hand_over_releases_before_it_acquires_and_is_never_idle(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=10) as pool:
        held = pool.getconn()
        waiters = [Queued(pool), Queued(pool)]
        record = Record(pool)
        pool.putconn(held)
        pool.putconn(waiters[0].result())
        pool.putconn(waiters[1].result())
        assert record.happened == [
            ("release", 1, 0, 2),
            ("acquire", 1, 0, 1),
            ("release", 1, 0, 1),
            ("acquire", 1, 0, 0),
            ("release", 1, 0, 0),
        ]


def test_a_discarded_connection_is_removed_after_it_is_closed(pool: ConnectionPool) -> None:
    conn = pool.getconn()
    record = Record(pool)
    pool.on("remove", lambda conn: record.happened.append((conn.closed, conn.removal_reason)))
    pool.putconn(conn, discard=True)
    assert record.happened == [("release", 1, 0, 0), ("remove", 0, 0, 0), (True, "discard")]


def test_the_error_that_ended_the_block_comes_with_the_release(pool: ConnectionPool) -> None:
    released: list[Any] = []
    pool.on("release", lambda error, conn: released.append(error))
    error = ValueError()
    with pytest.raises(ValueError, match=r"^$"), pool.connection():
        raise error
    assert released == [error]


def test_a_connection_that_dies_idle_is_an_error_and_then_removed(pool: ConnectionPool) -> None:
    pool.query("SELECT 1")
    record = Record(pool)
    conn = pool.getconn()
    pool.putconn(conn)
    del record.happened[:], record.arguments[:]
    kill_backend(conn)
    until(lambda: "remove" in record.names())  # found by the sweeper: nobody asks
    assert record.happened == [("error", 0, 0, 0), ("remove", 0, 0, 0)]
    error, about = record.arguments[0]
    assert isinstance(error, psycopg.OperationalError)
    assert about is conn
    assert conn.removal_reason == "lost"


def test_a_connection_that_breaks_in_use_is_no_pool_error(pool: ConnectionPool) -> None:
    record = Record(pool)
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        kill_backend(conn)
        conn.execute("SELECT 1")
    assert record.names() == ["connect", "acquire", "release", "remove"]


def test_a_connect_that_fails_for_a_requester_is_no_event(balanced: str) -> None:
    connection_class = controlled()
    connection_class.error = psycopg.OperationalError("no luck")
    with ConnectionPool(balanced, connection_class=connection_class) as pool:
        record = Record(pool)
        with pytest.raises(psycopg.OperationalError, match="no luck"):
            pool.getconn(10)
        assert record.happened == []


def test_a_connect_that_fails_for_nobody_is_an_error_event(balanced: str) -> None:
    connection_class = controlled()
    connection_class.error = failure = psycopg.OperationalError("no luck")
    pool = ConnectionPool(balanced, connection_class=connection_class, min_size=1, open=False)
    record = Record(pool)
    with pool:
        until(lambda: bool(record.happened))
        assert record.names()[0] == "error"
        assert record.arguments[0] == (failure, None)


def test_all_that_ever_connected_is_removed_when_end_returns(balanced: str) -> None:
    pool = ConnectionPool(balanced, max_size=3)
    record = Record(pool)
    held = [pool.getconn() for _ in range(3)]
    for conn in held[:2]:
        pool.putconn(conn)
    thread = threading.Thread(target=pool.putconn, args=(held[2],))
    thread.start()
    pool.end(10)
    assert record.names().count("remove") == record.names().count("connect") == 3
    thread.join()


def test_a_listener_that_raises_changes_nothing(
    pool: ConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*_: object) -> None:
        raise LookupError("in a listener")

    for event in EVENTS:
        pool.on(event, raises)
    with pool.connection() as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    pool.putconn(pool.getconn(), discard=True)
    assert pool.total_count == 0
    assert "in a listener" in caplog.text


@pytest.mark.parametrize("event", ["acquire", "release", "remove"])
def test_a_listener_may_use_the_pool(balanced: str, event: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=10) as pool:
        seen: list[Any] = []

        def listener(*_: object) -> None:
            if not seen:
                seen.append(None)
                seen.append(pool.query("SELECT 1").scalar())

        pool.on(event, listener)
        pool.putconn(pool.getconn(), discard=True)
        assert seen == [None, 1]


def test_on_as_a_decorator_and_off(pool: ConnectionPool) -> None:
    calls: list[object] = []

    @pool.on("acquire")
    def listener(conn: object) -> None:
        calls.append(conn)

    pool.query("SELECT 1")
    pool.off("acquire", listener)
    pool.query("SELECT 1")
    assert len(calls) == 1
    with pytest.raises(ValueError, match="does not listen"):
        pool.off("acquire", listener)


def test_an_unknown_event_and_a_listener_that_is_none(pool: ConnectionPool) -> None:
    with pytest.raises(ValueError, match="'connect'"):
        pool.on("connected", print)
    with pytest.raises(TypeError, match="callable"):
        pool.on("connect", 1)  # type: ignore[call-overload]


def test_an_acquire_listener_that_returns_the_connection_gives_it_no_second_holder(
    balanced: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=10) as pool:
        pool.on("acquire", pool.putconn)
        first = pool.getconn()
        assert "DoubleRelease" in caplog.text
        assert (pool.total_count, pool.idle_count) == (1, 0)
        second = pool.getconn()
        assert second is not first
        pool.off("acquire", pool.putconn)
        pool.putconn(first)
        pool.putconn(second)
        assert pool.idle_count == 2
        pool._check_invariants()


def test_what_release_listeners_execute_is_committed_before_anybody_else_has_the_connection(
    pool: ConnectionPool,
) -> None:
    with pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE noted (n int)")

    @pool.on("release")
    def note(error: BaseException | None, conn: Any) -> None:
        conn.execute("INSERT INTO noted VALUES (1)")

    pool.query("SELECT 1")
    with pool.connection() as conn:
        assert conn.info.transaction_status == IDLE
        conn.execute("ROLLBACK")
        assert conn.execute("SELECT count(*) FROM noted").fetchone() == (1,)
    assert pool.query("SELECT count(*) FROM noted").scalar() == 2
    assert pool.get_stats()["returns_bad"] == 0
    assert pool.total_count == 1


def test_a_transaction_that_is_discarded_is_not_committed_for_its_listeners(
    pool: ConnectionPool,
) -> None:
    pool.on("release", lambda error, conn: conn.execute("SELECT 1"))
    conn = pool.getconn()
    password = conn.info.password
    with psycopg.connect(conn.info.dsn, password=password, autocommit=True) as other:
        other.execute("CREATE TABLE discarded (n int)")
        conn.execute("INSERT INTO discarded VALUES (1)")
        pool.putconn(conn, discard=True)
        try:
            assert other.execute("SELECT count(*) FROM discarded").fetchone() == (0,)
        finally:
            other.execute("DROP TABLE discarded")


def test_a_connection_that_a_release_listener_closes_is_lent_to_nobody(
    pool: ConnectionPool,
) -> None:
    def close(error: BaseException | None, conn: Any) -> None:
        conn.close()

    with pool.connection():
        pool.on("release", close)
    pool.off("release", close)
    assert (pool.total_count, pool.idle_count) == (0, 0)
    assert pool.query("SELECT 1").scalar() == 1


def test_a_query_runs_in_autocommit_after_an_acquire_listener_has_executed_something(
    pool: ConnectionPool,
) -> None:
    pool.on("acquire", lambda conn: conn.execute("SELECT set_config('app.who', 'me', false)"))
    assert pool.query("SELECT current_setting('app.who')").scalar() == "me"
    pool.query("CREATE TEMP TABLE kept (n int)")
    assert pool.query("SELECT count(*) FROM kept").scalar() == 0


def test_no_listener_is_lost_when_two_are_added_at_the_same_time(pool: ConnectionPool) -> None:
    heard: list[str] = []

    def add_another(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename == events.__file__ and frame.f_code.co_name == "of":
            sys.settrace(None)
            pool.on("release", lambda *_: heard.append("release"))

    sys.settrace(add_another)
    try:
        pool.on("acquire", lambda _: heard.append("acquire"))
    finally:
        sys.settrace(None)
    with pool.connection():
        pass
    assert heard == ["acquire", "release"]


def test_a_listener_is_called_that_was_added_while_another_was(pool: ConnectionPool) -> None:
    heard: list[object] = []
    set_flags = pool._set_flags

    def add_another(*flags: bool) -> None:
        pool._set_flags = set_flags  # type: ignore[method-assign]
        pool.on("acquire", heard.append)
        set_flags(*flags)

    pool._set_flags = add_another  # type: ignore[method-assign, assignment]
    pool.on("release", lambda *_: None)
    with pool.connection() as conn:
        assert heard == [conn]
