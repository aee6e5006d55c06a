"""The pool and what comes at any instant: finalisers and interrupts."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.api.support import interrupted
from tests.conftest import EAGER, GIL
from tests.support import Threads, in_threads, until
from ybsmart import ConnectionPool, PoolDeadlock, PoolTimeout

# The garbage collector


class Returns:
    """Has a finaliser that returns a connection, and is only found by the garbage collector."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.conn: Any = None
        self.pool = pool
        self.conn = pool.getconn()
        self.myself = self

    def __del__(self) -> None:
        if self.conn is not None:
            self.pool.putconn(self.conn)


@pytest.fixture
def frantic_collector() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(EAGER)
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frantic_collector")
def test_finalisers_that_return_connections_anywhere(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=3, timeout=30) as pool:
        pool.wait(10)

        def use() -> None:
            for _ in range(30):
                try:
                    Returns(pool)
                    with pool.connection() as conn:
                        assert conn.pgconn.transaction_status == 0
                except PoolDeadlock:
                    # Quite so: all that is left to wait for is the collector.
                    gc.collect()
                pool.get_stats()

        over = threading.Event()

        def collect() -> None:
            # When all wait, nobody allocates; and what has survived once is not young any more.
            while not over.wait(0.001):
                gc.collect()

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            assert in_threads(4, use) == []
        finally:
            over.set()
            collector.join()
        gc.collect()
        until(lambda: pool.total_count == pool.idle_count)
        assert pool.total_count <= 3
        pool._check_invariants()


def test_an_interrupt_of_who_waits_for_the_pool_itself_is_one_and_holds_up_nobody_else(
    balanced: str,
) -> None:
    def end(pool: ConnectionPool) -> None:
        with suppress(PoolTimeout):
            pool.end(0.01)

    waiting = ("threading", "ybsmart.alarm", "ybsmart.pool_lifetime")
    moment, came = 0, True
    while came:
        moment += 1
        pool = ConnectionPool(balanced)
        conn = pool.getconn()

        came = interrupted(lambda pool=pool: end(pool), moment, *waiting)  # type: ignore[misc]

        threads = Threads([lambda pool=pool, conn=conn: pool.putconn(conn)])  # type: ignore[misc]
        threads.wait(30)
        assert threads.errors == []
    assert moment > 10


@pytest.mark.skipif(
    sys.version_info >= (3, 14) or not GIL,
    reason="Python raises some between `__enter__` and the block, and loses its own locks so;"
    " without the GIL, also in finalisers that it runs for other threads",
)
def test_interrupts_at_any_instant_lose_nothing(balanced: str) -> None:
    """Asynchronous exceptions into threads that wait, hold and return; the compiled pool only:
    between two bytecodes of the pure one, a connection is in nobody's hands."""
    import ctypes

    import ybsmart

    if ybsmart.__impl__ != "c":
        pytest.skip("only the compiled core promises this")

    class Interrupt(BaseException):
        pass

    with ConnectionPool(balanced, max_size=3, min_size=3, timeout=30, max_idle=0) as pool:
        pool.wait(10)
        stop = threading.Event()
        done = [0] * 6

        def work(number: int) -> None:
            while not stop.is_set():
                try:
                    while not stop.is_set():
                        with pool.connection():
                            done[number] += 1
                except Interrupt:
                    pass

        def outer(number: int) -> None:
            while not stop.is_set():
                try:
                    work(number)
                except Interrupt:
                    pass

        threads = [threading.Thread(target=outer, args=(n,), daemon=True) for n in range(6)]
        for thread in threads:
            thread.start()
        thrown = 0
        until = time.monotonic() + float(os.environ.get("YBSMART_FUZZ_SECONDS", "2"))
        set_exc: Any = ctypes.pythonapi.PyThreadState_SetAsyncExc
        # However slow the machine is: many, and each thread has had connections.
        while time.monotonic() < until or thrown <= 100 or not all(done):
            for thread in threads:
                if thread.ident is not None:
                    set_exc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))
                    thrown += 1
            time.sleep(0.0005)
        stop.set()
        for thread in threads:
            thread.join(10)
        gc.collect()
        pool._sweep()
        assert (pool.total_count, pool.idle_count, pool.waiting_count) == (3, 3, 0)
        assert pool.get_stats()["removed_leak"] == 0
        pool._check_invariants()
