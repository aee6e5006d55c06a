"""`configure`, `check` and `reset`; parameters that are asked for each time."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from tests.servers import kill_backend, pid
from tests.support import until
from ybsmart import ConnectionPool, PoolTimeout

Conn = psycopg.Connection[Any]


def leave_open(conn: Conn) -> None:
    conn.execute("SELECT 1")


def fail(conn: Conn) -> None:
    raise LookupError("as written")


# configure


def test_configure_runs_once_for_each_new_connection(balanced: str) -> None:
    configured: list[Conn] = []
    with ConnectionPool(balanced, max_size=2, configure=configured.append) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                assert configured == [conn]
        with pool.connection() as first, pool.connection() as second:
            assert configured == [first, second]


@pytest.mark.parametrize(
    ("configure", "error", "message"),
    [(fail, LookupError, "as written"), (leave_open, psycopg.ProgrammingError, "INTRANS")],
)
def test_what_configure_does_wrong_is_the_requesters_error(
    balanced: str, configure: Any, error: type[Exception], message: str
) -> None:
    good = False

    def first_wrong(conn: Conn) -> None:
        if not good:
            configure(conn)

    events: list[str] = []
    with ConnectionPool(balanced, max_size=1, configure=first_wrong) as pool:
        for event in ("connect", "acquire", "release", "remove"):
            pool.on(event, lambda *_, event=event: events.append(event))
        for _ in range(3):
            with pytest.raises(error, match=message):
                pool.getconn(10)
            assert pool.total_count == 0
        assert events == []
        good = True
        with pool.connection(10):
            pass


def test_a_slow_configure_counts_against_the_timeout(balanced: str) -> None:
    gate = threading.Event()

    def configure(_: Conn) -> None:
        gate.wait(10)

    with ConnectionPool(balanced, max_size=1, configure=configure) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn(0.05)
        gate.set()
        until(lambda: pool.idle_count == 1)  # the connect outlives who asked for it
        with pool.connection(10):
            assert pool.total_count == 1


# check


def test_check_runs_before_each_loan_and_a_bad_connection_is_replaced(balanced: str) -> None:
    bad: set[int] = set()
    checked: list[int] = []

    def check(conn: Conn) -> None:
        checked.append(pid(conn))
        if pid(conn) in bad:
            raise psycopg.OperationalError("bad")

    with ConnectionPool(balanced, max_size=1, check=check, timeout=10) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                first = pid(conn)
        assert checked == [first, first]
        bad.add(first)
        with pool.connection() as conn:
            assert pid(conn) != first
        stats = pool.get_stats()
        assert stats["removed_check"] == stats["connections_lost"] == 1
        assert stats["requests_num"] == 3


@pytest.mark.parametrize("check", [fail, leave_open])
def test_a_check_that_always_fails_ends_with_the_timeout_and_its_error(
    balanced: str, check: Any
) -> None:
    calls = 0

    def counted(conn: Conn) -> None:
        nonlocal calls
        calls += 1
        check(conn)

    with ConnectionPool(balanced, min_size=1, max_size=1, check=counted) as pool:
        pool.wait(10)
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(3)
        assert caught.value.__cause__ is not None
        assert 2 <= calls < 30  # not in a busy loop
        pool.check()
        assert pool.get_stats()["requests_timeouts"] == 1


def test_the_time_that_checks_take_is_off_the_timeout(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is the time in the queue: see tests/core/test_vetting.py."""
    checks = 0

    def check(conn: Conn) -> None:
        nonlocal checks
        checks += 1
        if checks < 5:
            raise LookupError

    # A minute for each check.
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 60 * checks, sleep=time.sleep)
    monkeypatch.setattr("ybsmart.pool_hooks.time", clock)
    with ConnectionPool(balanced, max_size=1, check=check) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn(100)
        assert checks == 2


@pytest.mark.parametrize("autocommit", [True, False])
def test_check_connection_as_the_check(balanced: str, autocommit: bool) -> None:
    with ConnectionPool(
        balanced,
        kwargs={"autocommit": autocommit},
        max_size=1,
        check=ConnectionPool.check_connection,
        timeout=10,
    ) as pool:
        with pool.connection() as conn:
            first = pid(conn)
            assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        kill_backend(conn)
        with pool.connection() as conn:
            assert pid(conn) != first
            assert conn.autocommit == autocommit


# reset


def test_reset_runs_after_each_loan_on_a_connection_in_no_transaction(balanced: str) -> None:
    statuses: list[int] = []
    with ConnectionPool(
        balanced, max_size=1, reset=lambda conn: statuses.append(conn.pgconn.transaction_status)
    ) as pool:
        pool.putconn(pool.getconn())
        conn = pool.getconn()
        conn.execute("SELECT 1")
        pool.putconn(conn)
        with pytest.raises(psycopg.errors.UndefinedTable), pool.connection() as conn:
            conn.execute("SELECT * FROM nowhere")
        assert statuses == [psycopg.pq.TransactionStatus.IDLE] * 3
        assert pool.get_stats()["returns_rolled_back"] == 1


@pytest.mark.parametrize(("reset", "reason"), [(fail, "as written"), (leave_open, "INTRANS")])
def test_a_connection_that_reset_fails_on_is_closed(
    balanced: str, caplog: pytest.LogCaptureFixture, reset: Any, reason: str
) -> None:
    with ConnectionPool(balanced, max_size=1, reset=reset, timeout=10) as pool:
        with pool.connection() as conn:
            pass
        assert conn.closed
        assert pool.total_count == 0
        assert reason in caplog.text


@pytest.mark.parametrize(
    ("reset_on_return", "kept"), [("rollback", True), ("discard", False), (None, False)]
)
def test_reset_on_return_says_what_becomes_of_a_transaction(
    balanced: str, reset_on_return: str | None, kept: bool
) -> None:
    with ConnectionPool(balanced, max_size=1, reset_on_return=reset_on_return) as pool:
        conn = pool.getconn()
        conn.execute("SELECT 1")
        pool.putconn(conn)
        assert conn.closed != kept


def test_without_rollback_reset_may_end_the_transaction_itself(balanced: str) -> None:
    with ConnectionPool(
        balanced, max_size=1, reset_on_return=None, reset=lambda conn: conn.commit()
    ) as pool:
        conn = pool.getconn()
        conn.execute("CREATE TEMP TABLE kept (x int)")
        pool.putconn(conn)
        with pool.connection() as conn:
            assert conn.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_connection_returned_in_the_middle_of_a_result_is_closed(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=10) as pool:
        conn = pool.getconn()
        conn.pgconn.exec_(b"COPY (SELECT generate_series(1, 10)) TO STDOUT")
        pool.putconn(conn)
        assert conn.closed
        with pool.connection() as other:
            assert other.execute("SELECT 1").fetchone() == (1,)


# Parameters that are asked for


def test_callables_are_asked_before_each_connect(balanced: str) -> None:
    names = iter(["one", "two"])
    asked: list[str] = []

    def conninfo() -> str:
        asked.append("conninfo")
        return balanced

    with ConnectionPool(
        conninfo, kwargs=lambda: {"application_name": next(names)}, max_size=2
    ) as pool:
        assert asked == []
        with pool.connection() as first, pool.connection() as second:
            told = [c.execute("SHOW application_name").fetchone() for c in (first, second)]
        assert told == [("one",), ("two",)]
        assert asked == ["conninfo"] * 2


def test_what_a_callable_raises_is_the_requesters_error(balanced: str) -> None:
    def conninfo() -> str:
        raise LookupError("no secret today")

    with ConnectionPool(conninfo) as pool:
        with pytest.raises(LookupError, match="no secret today"):
            pool.getconn(10)
        assert pool.total_count == 0


def test_kwargs_are_copied(balanced: str) -> None:
    kwargs: dict[str, Any] = {"autocommit": True}
    with ConnectionPool(balanced, kwargs=kwargs) as pool:
        kwargs["autocommit"] = False
        with pool.connection() as conn:
            assert conn.autocommit
    assert kwargs == {"autocommit": False}


def test_a_check_that_returns_the_connection_gives_it_no_second_holder(balanced: str) -> None:
    seen: list[Conn] = []

    def check(conn: Conn) -> None:
        if not seen:
            seen.append(conn)
            conn.close()  # which returns it

    with ConnectionPool(balanced, max_size=2, close_returns=True, check=check) as pool:
        first, second = pool.getconn(10), pool.getconn(10)

        assert first is not second
        pool.putconn(first)
        pool.putconn(second)
        pool._check_invariants()
