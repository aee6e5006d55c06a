"""The pool and its process: forks, the end of the interpreter, the garbage collector."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.api.support import in_threads, pid, until
from ybsmart import ConnectionPool, DoubleRelease, PoolDeadlock


def in_child(action: Callable[[], object]) -> None:
    """Run the action in a forked child; fail if it does."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os.write(write, b"ok")
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    assert answer == "ok", answer


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
quiet = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forks
@quiet
def test_a_forked_child_starts_empty_and_leaves_the_parent_alone(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=2, timeout=10) as pool:
        conns = [pool.getconn(), pool.getconn()]
        pids = [pid(conn) for conn in conns]
        pool.putconn(conns[0])

        def child() -> None:
            assert (pool.total_count, pool.idle_count, pool.waiting_count) == (0, 0, 0)
            assert pool.get_stats()["requests_num"] == 0
            with pool.connection() as conn, pool.connection() as other:
                assert not {pid(conn), pid(other)} & set(pids)
            with pytest.raises(DoubleRelease):
                pool.putconn(conns[1])
            pool.end(10)
            gc.collect()

        in_child(child)
        for conn in conns:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        pool.putconn(conns[1])
        assert pool.total_count == 2


@forks
@quiet
def test_a_block_that_spans_the_fork_does_not_commit_in_the_child(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=1, timeout=10) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TEMP TABLE here (x int)")
        block = pool.connection()
        with block as conn:
            conn.execute("INSERT INTO here VALUES (1)")

            def leave() -> None:
                with pytest.raises(DoubleRelease):
                    block.__exit__(None, None, None)

            in_child(leave)
            assert conn.execute("SELECT count(*) FROM here").fetchone() == (1,)
            conn.rollback()
            assert conn.execute("SELECT count(*) FROM here").fetchone() == (0,)


@forks
@quiet
def test_a_closed_pool_stays_closed_in_the_child(balanced: str) -> None:
    pool = ConnectionPool(balanced)
    pool.close()
    in_child(lambda: _assert(pool.closed))


def _assert(what: bool) -> None:
    assert what


@forks
@quiet
def test_a_fork_while_others_use_the_pool(balanced: str) -> None:
    with ConnectionPool(balanced, max_size=3, timeout=20) as pool:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                pool.query("SELECT 1")

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                in_child(lambda: pool.query("SELECT 1"))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        pool.check_invariants()


# The end of the interpreter


@pytest.mark.parametrize("holding", [False, True])
def test_a_program_that_forgets_to_close_ends_at_once_and_in_silence(
    balanced: str, holding: bool
) -> None:
    program = f"""
        import sys, threading, time, ybsmart
        pool = ybsmart.ConnectionPool({balanced!r}, min_size=4, max_size=8)
        pool.wait(20)
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        kept = pool.getconn() if {holding} else None
        print(time.time())
    """
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    took = time.time() - float(done.stdout)
    assert done.stderr == ""
    assert done.returncode == 0
    assert took < 2  # it is a few hundredths; five seconds where threads are waited for


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
    gc.set_threshold(1)
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
        assert in_threads(4, use) == []
        over.set()
        collector.join()
        gc.collect()
        until(lambda: pool.total_count == pool.idle_count)
        assert pool.total_count <= 3
        pool.check_invariants()


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
        while time.monotonic() < until:
            for thread in threads:
                if thread.ident is not None:
                    set_exc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))
                    thrown += 1
            time.sleep(0.0005)
        stop.set()
        for thread in threads:
            thread.join(10)
        gc.collect()
        assert thrown > 100
        assert min(done) > 0
        pool._sweep()
        assert (pool.total_count, pool.idle_count, pool.waiting_count) == (3, 3, 0)
        assert pool.get_stats()["removed_leak"] == 0
        pool.check_invariants()
