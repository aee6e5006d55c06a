"""The queue: deadlocks, time limits, many waiters, growth while others return."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from tests.api.support import Queued, controlled, in_threads, until
from ybsmart import ConnectionPool, PoolClosed, PoolDeadlock, PoolTimeout


def test_who_holds_all_and_asks_for_more_is_told_at_once(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=60) as pool:
        with pool.connection(), pool.connection():
            with pytest.raises(PoolDeadlock):
                pool.getconn()
            assert pool.waiting_count == 0
        assert pool.idle_count == 2


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


def test_a_waiter_that_gives_up_leaves_the_order_of_the_others(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1) as pool:
        held = pool.getconn(10)
        first = Queued(pool, timeout=0.05)
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
        with pytest.raises(PoolTimeout, match=r"after 0\.\d+ sec"):
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
        with ConnectionPool(balanced, max_size=4, timeout=60) as pool:
            held = [pool.getconn() for _ in range(4)]
            served: list[None] = []

            def use() -> None:
                with pool.connection():
                    served.append(None)

            threads = [threading.Thread(target=use) for _ in range(5000)]
            for thread in threads:
                thread.start()
            until(lambda: pool.waiting_count == 5000, 60)
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
        timer = threading.Timer(3, stop.set)

        def use() -> None:
            number = next(numbers)
            while not stop.is_set():
                with pool.connection():
                    time.sleep(0.001)  # work
                counts[number] += 1

        timer.start()
        assert in_threads(32, use) == []
        assert min(counts) > 20
        # Those who came last may be one round behind.
        assert max(counts) - min(counts) <= max(2, 0.05 * max(counts))


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
