"""`close_on_sigterm`: real programs, real signals, whatever their main thread is doing."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.programs import Program
from tests.support import until
from ybsmart import ConnectionPool

KILLED = -signal.SIGTERM

# A thread has a connection until a line comes in; another one tries until the pool is closed.
HOLDER = """
import asyncio, logging, os, signal, sys, threading, time, ybsmart

def hold():
    with pool.connection() as conn:
        print("held")
        input()
        conn.execute("SELECT 1")
        print("done")

def ask():
    try:
        while True:
            with ybsmart.ConnectionPool.connection(pool): pass
            time.sleep(0.001)
    except ybsmart.PoolClosed:
        print("closed")

pool = ybsmart.ConnectionPool(sys.argv[1], max_size=2)
"""

START = """
ybsmart.close_on_sigterm(pool)
threading.Thread(target=hold, daemon=True).start()
threading.Thread(target=ask, daemon=True).start()
"""


def check_that_the_holder_finishes(program: Program) -> None:
    """SIGTERM comes while a connection is lent: only newcomers notice before it is returned."""
    program.expect("held")
    program.terminate()
    program.expect("closed")
    program.say()
    program.expect("done")

    assert program.end() == (KILLED, [])
    assert program.errors == ""


# What the main thread does: it can be waited for in its handler, or not.
IDLING = {
    "sleeping": "time.sleep(1000)",
    "pausing": "signal.pause()",
    "waiting": "threading.Event().wait()",
    "in a loop": "asyncio.run(asyncio.sleep(1000))",
    "computing": "while True: pass",
}


@pytest.mark.parametrize("main", IDLING.values(), ids=IDLING)
def test_the_holder_finishes_and_the_exit_status_stays(
    url: str, sessions: Callable[[], int], main: str
) -> None:
    with Program(HOLDER + START + main, url) as program:
        check_that_the_holder_finishes(program)
    until(lambda: sessions() == 0)


@pytest.mark.parametrize("main", ["time.sleep(1000)", "threading.Event().wait()"])
def test_then_the_previous_handler_is_called(url: str, main: str) -> None:
    previous = """
def previous(signum, frame):
    print("previous", signum, pool.total_count, frame is not None)
    sys.exit(7)
signal.signal(signal.SIGTERM, previous)
"""
    with Program(HOLDER + previous + START + main, url) as program:
        program.expect("held")
        program.terminate()
        program.expect("closed")
        program.terminate()  # once more, which changes nothing
        program.say()
        program.expect("done", "previous 15 0 True")

        assert program.end() == (7, [])
        assert program.errors == ""


def test_where_it_was_ignored_the_program_goes_on(url: str) -> None:
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ybsmart.close_on_sigterm(pool)
pool.query("SELECT 1")
print("ready")
while pool.total_count: time.sleep(0.001)
print(pool.closed, signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
"""
    with Program(HOLDER + code, url) as program:
        program.expect("ready")
        program.terminate()

        assert program.end() == (0, ["True True"])


def test_a_main_thread_with_a_connection_keeps_it_and_stops_at_its_next_request(url: str) -> None:
    code = """
ybsmart.close_on_sigterm(pool)
threading.Thread(target=ask, daemon=True).start()
while True:
    with pool.connection() as conn:
        print("held")
        input()
        conn.execute("SELECT 1")
        print("done")
"""
    with Program(HOLDER + code, url) as program:
        check_that_the_holder_finishes(program)


def test_a_main_thread_in_the_queue_is_served(url: str) -> None:
    code = """
pool.resize(0, 1)
ybsmart.close_on_sigterm(pool)
threading.Thread(target=hold, daemon=True).start()
while not pool.holders(): time.sleep(0.001)
def tell():
    while not pool.waiting_count: time.sleep(0.001)
    print("queued")
threading.Thread(target=tell, daemon=True).start()
with pool.connection() as conn:
    print("served", conn.execute("SELECT 1").fetchone())
while True: pool.query("SELECT 2")
"""
    with Program(HOLDER + code, url) as program:
        program.expect("held", "queued")
        program.terminate()
        program.say()

        assert sorted([program.line(), program.line()]) == ["done", "served (1,)"]
        assert program.end() == (KILLED, [])
        assert program.errors == ""


def test_a_main_thread_within_a_lock_of_logging_does_not_hold_it_up(url: str) -> None:
    code = """
class Slow(logging.Handler):
    def emit(self, record):
        if record.name == "mine":
            print("logging")
            input()
        else:
            print("logged:", record.getMessage())
logging.getLogger().addHandler(Slow())
ybsmart.close_on_sigterm(pool)
conn = pool.getconn()
conn.execute("SELECT 1")
threading.Thread(target=lambda: (threading.Event().wait(0.2), pool.putconn(conn))).start()
logging.getLogger("mine").error("hello")
time.sleep(1000)
"""
    with Program(HOLDER + code, url) as program:
        program.expect("logging")
        program.terminate()
        program.say()

        assert program.line().startswith("logged: rolling back returned connection")
        assert program.end() == (KILLED, [])


@pytest.mark.parametrize("main", ["time.sleep(1000)", "threading.Event().wait()"])
def test_it_does_not_wait_longer_than_it_was_told_to(url: str, main: str) -> None:
    code = HOLDER + START.replace("(pool)", "(pool, timeout=2)")
    with Program(code + main, url) as program:
        program.expect("held")
        program.terminate()
        program.expect("closed")

        assert program.end() == (KILLED, [])
        assert program.errors.startswith("SIGTERM: the pool 'pool-1' has not ended after 2 s")
        assert "Thread-1 (hold)" in program.errors


def test_pools_may_be_added_and_are_ended_together(url: str) -> None:
    code = """
others = [ybsmart.ConnectionPool(sys.argv[1], name=f"other-{n}") for n in range(2)]
for other in others: other.query("SELECT 1")
ybsmart.close_on_sigterm(*others, timeout=0)
before = signal.getsignal(signal.SIGTERM)
ybsmart.close_on_sigterm(pool, others[0])
assert signal.getsignal(signal.SIGTERM) is before
# Somebody else's handler, in front of ours and behind it.
def between(signum, frame):
    print("between", [p.total_count for p in (pool, *others)])
    before(signum, frame)
signal.signal(signal.SIGTERM, between)
ybsmart.close_on_sigterm(pool)
print("ready")
time.sleep(1000)
"""
    with Program(HOLDER + code, url) as program:
        program.expect("ready")
        program.terminate()

        assert program.end() == (KILLED, ["between [0, 1, 1]"])


@pytest.mark.parametrize("driver", sorted({psycopg.pq.__impl__, "python"}))
def test_a_main_thread_that_uses_the_pool_all_the_time(
    url: str, sessions: Callable[[], int], driver: str
) -> None:
    """Wherever in the pool it is interrupted, in whatever lock of it; also where the pool asks a
    psycopg that is made of bytecodes."""
    if driver == "python" and not find_library("pq"):
        pytest.skip("no libpq")
    code = """
import os, random, signal, sys, time, ybsmart
pool = ybsmart.ConnectionPool(sys.argv[1], max_size=1)
statuses = []
for n in range(int(sys.argv[2])):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        ybsmart.close_on_sigterm(pool)
        pool.query("SELECT 1")
        os.write(write, b".")
        while True:
            if n % 2: pool.putconn(pool.getconn())
            else:
                with pool.connection(): pool.get_stats()
    os.read(read, 1)
    time.sleep(random.uniform(0, 0.01))
    os.kill(child, signal.SIGTERM)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*statuses)
"""
    count = 12
    with Program(code, url, count, PSYCOPG_IMPL=driver) as program:
        assert program.end() == (0, [" ".join([str(KILLED)] * count)])
        assert program.errors == ""
    until(lambda: sessions() == 0)


def test_after_an_interrupt_of_its_handler_another_sigterm_ends_the_process(url: str) -> None:
    code = """
import _thread, signal, sys, ybsmart
from ybsmart import sigterm
sigterm._GRACE = 0.0
pool = ybsmart.ConnectionPool(sys.argv[1])
ybsmart.close_on_sigterm(pool, timeout=0)
start = _thread.start_new_thread
def interrupted(*_):
    _thread.start_new_thread = start
    raise KeyboardInterrupt
_thread.start_new_thread = interrupted
try: signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt: print("interrupted")
signal.raise_signal(signal.SIGTERM)
print("still there")
"""
    with Program(code, url) as program:
        assert program.end() == (KILLED, ["interrupted"])


def test_a_forked_child_ends_its_own_pool(url: str) -> None:
    code = """
pool.query("SELECT 1")
ybsmart.close_on_sigterm(pool)
child = os.fork()
if not child:
    pool.query("SELECT 1")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1000)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pool.closed, pool.total_count)
pool.query("SELECT 1")
"""
    with Program(HOLDER + code, url) as program:
        assert program.end() == (0, [f"{KILLED} False 1"])


def test_greenlets_finish_too(url: str) -> None:
    pytest.importorskip("gevent")
    code = """
import gevent.monkey; gevent.monkey.patch_all()
import gevent, signal, sys, ybsmart
pool = ybsmart.ConnectionPool(sys.argv[1], max_size=2)
ybsmart.close_on_sigterm(pool)
def hold(n):
    with pool.connection() as conn:
        held.append(n)
        while not pool.closed: gevent.sleep(0.001)
        conn.execute("SELECT 1")
        print("done")
held = []
greenlets = [gevent.spawn(hold, n) for n in range(3)]
while len(held) < 2 or not pool.waiting_count: gevent.sleep(0.001)
print("held")
MAIN
"""
    for main in ("gevent.sleep(1000)", "gevent.wait(); gevent.sleep(1000)"):
        with Program(code.replace("MAIN", main), url) as program:
            program.expect("held")
            program.terminate()

            assert program.end() == (KILLED, ["done"] * 3), program.errors
            assert program.errors == ""


# Called as it should not be


@pytest.fixture
def as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_what_it_does_not_take() -> None:
    pool = ConnectionPool("host=nowhere")
    before = signal.getsignal(signal.SIGTERM)
    wrong: list[tuple[tuple[Any, ...], Any, type[Exception], str]] = [
        ((), 10, TypeError, "at least one pool"),
        (([pool],), 10, TypeError, "pools: expected ConnectionPool, not list"),
        ((pool, None), 10, TypeError, "pools: expected ConnectionPool, not NoneType"),
        ((pool,), -1, ValueError, "timeout: must be 0 or more"),
        ((pool,), None, TypeError, "timeout: expected a number"),
        ((pool,), float("nan"), ValueError, "timeout: expected a number"),
    ]
    for pools, timeout, kind, message in wrong:
        with pytest.raises(kind, match=message):
            ybsmart.close_on_sigterm(*pools, timeout=timeout)
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_it_is_an_error() -> None:
    pool = ConnectionPool("host=nowhere")
    errors: list[BaseException] = []

    def call() -> None:
        try:
            ybsmart.close_on_sigterm(pool)
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


@pytest.mark.usefixtures("as_before")
def test_it_keeps_no_pool_alive() -> None:
    pool = ConnectionPool("host=nowhere")
    ybsmart.close_on_sigterm(pool)
    gone = weakref.ref(pool)
    del pool
    gc.collect()

    assert gone() is None


def test_it_is_not_imported_before_it_is_asked_for() -> None:
    code = "import sys, ybsmart; print('ybsmart.sigterm' in sys.modules, ybsmart.close_on_sigterm)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False <function close_on_sigterm")
