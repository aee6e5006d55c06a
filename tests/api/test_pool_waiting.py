"""The queue: deadlocks, time limits, many waiters, growth while others return."""

from __future__ import annotations

import gc
import threading
import time
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.api.support import Queued, controlled, until_none_runs
from tests.servers import by_node
from tests.support import Threads, in_threads, until
from ybsmart import ConnectionPool, PoolClosed, PoolDeadlock, PoolTimeout
from ybsmart.testing import LocalCluster


def test_who_holds_all_and_asks_for_more_is_told_at_once(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=60) as pool:
        with pool.connection(), pool.connection():
            with pytest.raises(PoolDeadlock):
                pool.getconn()
            assert pool.waiting_count == 0
        assert pool.idle_count == 2


def test_who_dropped_the_rest_in_a_cycle_gets_another(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=60) as pool:
        gc.disable()
        try:
            dropped: list[Any] = [pool.getconn()]
            until_none_runs(f"{pool.name}-connect")  # which might still have it
            dropped.append(dropped)
            del dropped
            with pool.connection() as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)
        finally:
            gc.enable()


def test_who_dropped_the_rest_while_another_thread_still_had_it_gets_another(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=60) as pool:
        of_another_thread = [pool.getconn()]
        until_none_runs(f"{pool.name}-connect")  # which might still have it as well
        clock = SimpleNamespace(sleep=lambda _: of_another_thread.clear(), monotonic=time.monotonic)
        monkeypatch.setattr("ybsmart.pool_hooks.time", clock)
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_of_two_that_wait_for_each_other_the_last_is_told(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=60) as pool:
        both_hold = threading.Barrier(2)
        deadlocks: list[PoolDeadlock] = []
        served: list[int] = []

        def use() -> None:
            with pool.connection():
                both_hold.wait(10)
                try:
                    with pool.connection():
                        served.append(1)
                except PoolDeadlock as exc:
                    deadlocks.append(exc)

        assert in_threads(2, use) == []
        assert (len(deadlocks), len(served)) == (1, 1)
        assert isinstance(deadlocks[0], PoolTimeout)
        assert isinstance(deadlocks[0], psycopg.OperationalError)


def test_two_that_wait_for_each_other_are_seen_among_many_that_wait(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=60) as pool:
        holds, others_wait = threading.Event(), threading.Event()

        def use() -> None:
            with pool.connection():
                holds.set()
                assert others_wait.wait(30)
                with pool.connection():
                    pass

        with pool.connection():
            threads = Threads([use])
            assert holds.wait(30)
            others = [Queued(pool, timeout=60) for _ in range(20)]
            others_wait.set()
            until(lambda: pool.waiting_count, 21)
            with pytest.raises(PoolDeadlock):
                pool.getconn()
        for other in others:
            pool.putconn(other.result())
        threads.join()


def test_somebody_who_only_waits_is_no_deadlock(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=10) as pool:
        mine = pool.getconn()
        other = Queued(pool).result()
        waiters = [Queued(pool), Queued(pool)]
        pool.putconn(mine)
        pool.putconn(waiters[0].result())
        pool.putconn(waiters[1].result())
        pool.putconn(other)
        assert pool.get_stats()["requests_rejected"] == 0


def test_the_place_of_a_connection_that_is_being_closed_is_worth_waiting_for(balanced: str) -> None:
    closing, queued = threading.Event(), threading.Event()

    class Slow(ybsmart.Connection[Any]):
        def close(self) -> None:
            closing.set()
            assert queued.wait(10)
            super().close()

    with ConnectionPool(balanced, connection_class=Slow, max_size=2, timeout=10) as pool:
        mine, other = pool.getconn(), pool.getconn()

        def discard() -> None:
            pool.putconn(other, discard=True)

        def look() -> None:
            until(lambda: pool.waiting_count == 1)
            queued.set()

        threads = Threads([discard, look])
        assert closing.wait(10)
        try:
            pool.putconn(pool.getconn())
        finally:
            queued.set()
        threads.join()
        pool.putconn(mine)


def test_a_waiter_that_gives_up_leaves_the_order_of_the_others(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1) as pool:
        held = pool.getconn(10)
        first = Queued(pool, timeout=0.5)
        second, third = Queued(pool), Queued(pool)
        with pytest.raises(PoolTimeout):
            first.result()
        assert pool.waiting_count == 2
        pool.putconn(held)
        conn = second.result()
        assert third.thread.is_alive()
        pool.putconn(conn)
        pool.putconn(third.result())
        assert pool.get_stats()["requests_timeouts"] == 1


def test_a_pools_own_timeout_and_that_of_a_request(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=0.05) as pool:
        pool.wait(10)
        held = pool.getconn()
        with pytest.raises(PoolTimeout, match=r"after \d\.\d+ sec"):
            Queued(pool, timeout=None).result()
        waiter = Queued(pool, timeout=10)
        pool.putconn(held)
        pool.putconn(waiter.result())


@pytest.mark.parametrize("timeout", [-1, 0])
def test_without_time_an_idle_connection_is_lent_all_the_same(
    pool: ConnectionPool, timeout: float
) -> None:
    pool.query("SELECT 1")
    conn = pool.getconn(timeout)
    assert pool.idle_count == 0
    pool.putconn(conn)


def test_five_thousand_waiters(balanced: str) -> None:
    threading.stack_size(128 * 1024)
    try:
        with ConnectionPool(balanced, max_size=4, timeout=60, max_idle=600) as pool:
            held = [pool.getconn() for _ in range(4)]
            served: list[None] = []

            def use() -> None:
                with pool.connection():
                    served.append(None)

            threads = [threading.Thread(target=use) for _ in range(5000)]
            for thread in threads:
                thread.start()
            until(lambda: pool.waiting_count == 5000, limit=60)
            for conn in held:
                pool.putconn(conn)
            for thread in threads:
                thread.join()
            assert len(served) == 5000
            assert pool.total_count == 4
            pool._check_invariants()
    finally:
        threading.stack_size(0)


def test_thirty_two_threads_on_four_connections_get_equal_shares(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=4, min_size=4, timeout=60) as pool:
        pool.wait(10)
        counts = [0] * 32
        numbers = iter(range(32))
        stop = threading.Event()

        def use() -> None:
            number = next(numbers)
            while not stop.is_set():
                with pool.connection():
                    time.sleep(0.001)  # work
                counts[number] += 1

        threads = Threads([use] * 32)
        until(lambda: min(counts) > 0)
        before = counts.copy()  # from here on, all of them are there
        until(lambda: min(counts) > 300)
        stop.set()
        threads.join()
        shares = [after - early for after, early in zip(counts, before, strict=True)]
        # Who is not run by the system just then misses a round.
        assert max(shares) - min(shares) <= max(2, 0.05 * max(shares))


def test_a_spike_of_short_requests_hardly_grows_the_pool(balanced: str) -> None:
    connection_class = controlled()
    with ConnectionPool(
        balanced, min_size=5, max_size=10, connection_class=connection_class, timeout=20
    ) as pool:
        pool.wait(10)
        connection_class.gate.clear()  # for as long as the spike lasts

        def use() -> None:
            with pool.connection():
                pass

        assert in_threads(50, use) == []
        connection_class.gate.set()
        until(lambda: pool.connecting_count == 0)
        assert pool.total_count <= 7


def test_waiting_for_a_pool_whose_queue_is_full_is_no_busy_loop(balanced: str) -> None:
    pool = ConnectionPool(balanced, max_size=1, max_waiting=1)
    held = pool.getconn(10)
    queued = Queued(pool)
    with pytest.raises(PoolTimeout):
        pool.wait(0.2)
    # Each was refused at once: with nothing in between there would be thousands.
    assert 1 <= pool.get_stats()["requests_rejected"] <= 11
    with pytest.raises(PoolClosed):
        queued.result()
    pool.putconn(held)


def test_waiting_goes_on_when_the_queue_has_room_again(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, max_waiting=1, timeout=20) as pool:
        held = pool.getconn()
        queued = Queued(pool, timeout=20)
        errors: list[list[BaseException]] = []
        waiting = threading.Thread(target=lambda: errors.append(in_threads(1, pool.wait)))
        waiting.start()
        until(lambda: pool.get_stats()["requests_rejected"] > 0)
        pool.putconn(held)
        pool.putconn(queued.result())
        waiting.join()
        assert errors == [[]]


def test_never_more_than_max_size(cluster: LocalCluster, balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2) as pool:
        most = 0

        def use() -> None:
            nonlocal most
            for _ in range(20):
                pool.query("SELECT 1")
                most = max(most, sum(by_node(cluster)))

        assert not in_threads(8, use)
        assert 1 <= most <= 2


def test_waiters_are_served_in_the_order_of_their_arrival(pool: ConnectionPool) -> None:
    held = [pool.getconn() for _ in range(3)]
    queue = [Queued(pool) for _ in range(5)]
    assert pool.waiting_count == 5

    for waiter in queue[:3]:
        conn = held.pop(0)
        pool.putconn(conn)
        assert waiter.result() is conn
        held.append(conn)
    assert all(waiter.thread.is_alive() for waiter in queue[3:])
    for waiter in queue[3:]:
        pool.putconn(held.pop(0))
        held.append(waiter.result())
    for conn in held:
        pool.putconn(conn)


def test_a_waiter_takes_a_returned_connection_before_its_own_is_open(
    balanced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectionPool(balanced, max_size=2) as pool:
        first = pool.getconn()
        gate = threading.Event()
        connect = ybsmart.Connection.connect

        def slow(*args: Any, **kwargs: Any) -> Any:
            gate.wait(10)
            return connect(*args, **kwargs)

        monkeypatch.setattr(ybsmart.Connection, "connect", slow)
        waiter = Queued(pool)
        assert pool.connecting_count == 1
        pool.putconn(first)
        assert waiter.result() is first

        gate.set()
        until(lambda: pool.connecting_count == 0)
        assert pool.idle_count == 1  # the connection outlived the request for it
        pool.putconn(first)


def test_a_request_that_times_out_says_so_and_leaves_nothing_behind(pool: ConnectionPool) -> None:
    held = [Queued(pool).result() for _ in range(3)]

    with pytest.raises(PoolTimeout, match=r"idle 0.*waiting") as caught:
        pool.getconn(timeout=0.05)

    assert isinstance(caught.value, psycopg.OperationalError)
    assert pool.name in str(caught.value)
    assert pool.waiting_count == 0
    for conn in held:
        pool.putconn(conn)


def test_timeout_zero_is_only_if_one_is_at_hand(pool: ConnectionPool) -> None:
    with pool.connection():
        pass

    conn = pool.getconn(timeout=0)
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0)
    pool.putconn(conn)


def test_an_interrupt_while_waiting_loses_nothing(pool: ConnectionPool) -> None:
    class Interrupt(BaseException):
        pass

    held = [Queued(pool).result() for _ in range(3)]
    original = pool._sleep

    def interrupted(waiter: Any, timeout: Any) -> None:
        pool.putconn(held.pop())  # granted to this waiter, which then is interrupted
        raise Interrupt

    pool._sleep = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        pool.getconn()
    pool._sleep = original  # type: ignore[method-assign]

    assert (pool.waiting_count, pool.idle_count) == (0, 1)
    for conn in held:
        pool.putconn(conn)


ODD = ["1", b"1", [1], Decimal(1), Fraction(1, 2), True, float("nan")]


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize("timeout", ODD, ids=repr)
def test_a_timeout_that_is_no_number_of_seconds_is_refused_before_anything_is_done(
    balanced: str, timeout: Any, idle: bool
) -> None:
    with ConnectionPool(balanced, max_size=1) as pool:
        conn = pool.getconn()
        if idle:
            pool.putconn(conn)
        requests = pool.get_stats()["requests_num"]
        for ask in (
            lambda: pool.getconn(timeout),
            lambda: pool.connection(timeout).__enter__(),
            lambda: pool.query("SELECT 1", timeout=timeout),
            lambda: pool.wait(timeout),
            lambda: pool.close(timeout),
        ):
            with pytest.raises((TypeError, ValueError), match="timeout: expected a number of sec"):
                ask()
        assert not pool.closed
        assert pool.get_stats()["requests_num"] == requests
        if not idle:
            pool.putconn(conn)


class Seconds(float):
    """A number of seconds that is somebody's own."""


@pytest.mark.parametrize("timeout", [-1, -0.5, Seconds(-1), -(10**400)], ids=lambda t: str(t)[:9])
def test_a_timeout_that_has_passed_already_takes_what_is_idle_and_waits_for_nothing(
    balanced: str, timeout: float
) -> None:
    with ConnectionPool(balanced, max_size=1) as pool:
        pool.wait(10)
        conn = pool.getconn(timeout)
        errors = in_threads(1, lambda: pool.getconn(timeout))
        assert [type(error) for error in errors] == [PoolTimeout]
        pool.putconn(conn)


@pytest.mark.parametrize(
    "timeout", [float("inf"), 10**400, Seconds(1e300)], ids=["inf", "int", "own"]
)
def test_a_timeout_may_be_as_long_as_numbers_are(balanced: str, timeout: float) -> None:
    with ConnectionPool(balanced, max_size=1) as pool:
        conn = pool.getconn(timeout)
        waiter = Queued(pool, timeout)
        pool.putconn(conn)
        pool.putconn(waiter.result())
