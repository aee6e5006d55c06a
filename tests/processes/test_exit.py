"""The end of the interpreter, and its beginning: no close, no message, no delay."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import Program

# What is left open, and what is going on.
LEFT = {
    "idle": "pool.query('SELECT 1')",
    "lent": "conn = pool.getconn(); conn.execute('SELECT 1')",
    "a block of a daemon": """
def block():
    with pool.connection(): ready.set(); threading.Event().wait()
threading.Thread(target=block, daemon=True).start()
ready.wait()
""",
    "a queue": """
conns = [pool.getconn() for _ in range(4)]
for _ in range(8): threading.Thread(target=pool.getconn, daemon=True).start()
while pool.waiting_count < 8: time.sleep(0.001)
""",
    "connects under way": """
taken = []  # or what a thread gets is dropped, and reported
def take(): taken.append(pool.getconn())
for _ in range(4): threading.Thread(target=take, daemon=True).start()
while not pool.connecting_count: time.sleep(0)
""",
    "a pool that cannot connect": """
import logging; logging.disable()
other = ybsmart.ConnectionPool("host=127.0.0.1 port=1", min_size=2, open=True)
while not other.get_stats()["connections_errors"]: time.sleep(0.001)
""",
    "a cycle": """
class Holder: pass
holder = Holder()
holder.me, holder.conn, holder.pool = holder, pool.getconn(), pool
del pool
""",
    "close_on_sigterm": "ybsmart.close_on_sigterm(pool); pool.query('SELECT 1')",
    "an exit": "pool.query('SELECT 1'); print(time.monotonic_ns()); sys.exit()",
    "an exit within an import": """
import importlib.util
class Left:  # a module, and its finder and loader
    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "left" else None
    def create_module(self, spec): return None
    def exec_module(self, module):
        pool.query("SELECT 1")
        print(time.monotonic_ns())
        sys.exit()
sys.meta_path.append(Left())
import left
""",
}

# What CPython 3.10 may crash of, without ybsmart too: it ends while one daemon starts another.
CRASHES = ["connects under way"] if sys.version_info < (3, 11) else []

CASES = [
    pytest.param(
        left,
        id=name,
        marks=[pytest.mark.skipif(name in CRASHES, reason="CPython 3.10 may crash of that")],
    )
    for name, left in LEFT.items()
]

EXIT = """
import sys, threading, time, ybsmart
ready = threading.Event()
pool = ybsmart.ConnectionPool(sys.argv[1], min_size=2, max_size=4)
pool.wait(20)
{left}
print(time.monotonic_ns())
"""

BARE = "import time, psycopg, threading, logging\nprint(time.monotonic_ns())"


def seconds_to_exit(code: str, *arguments: str) -> float:
    """From its last line until the process is gone; everything but silence is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    now = time.monotonic_ns()
    assert (done.returncode, done.stderr) == (0, "")
    return (now - int(done.stdout)) / 1e9


@pytest.mark.parametrize("left", CASES)
def test_a_program_that_closes_nothing_ends_at_once_and_in_silence(url: str, left: str) -> None:
    took = seconds_to_exit(EXIT.format(left=left), url)

    # It is a few hundredths, with the interpreter's own. Whoever waited for a thread would take
    # seconds; the bound is for machines that are busy.
    assert took < 2


@functools.cache
def seconds_without() -> float:
    """What the interpreter itself needs, with psycopg."""
    return min(seconds_to_exit(BARE) for _ in range(5))


EXIT_LIMIT = os.environ.get("YBSMART_EXIT_LIMIT")


@pytest.mark.skipif(EXIT_LIMIT is None, reason="YBSMART_EXIT_LIMIT=0.05 on a quiet machine")
@pytest.mark.parametrize("left", CASES)
def test_it_ends_within_its_limit(url: str, left: str) -> None:
    took = min(seconds_to_exit(EXIT.format(left=left), url) for _ in range(5))

    assert took - seconds_without() < float(EXIT_LIMIT or 0)


def test_a_pool_used_while_a_module_is_imported(url: str, tmp_path: Path) -> None:
    """The thread that connects must not need the lock of the import that waits for it."""
    (tmp_path / "imported.py").write_text(
        "import sys, ybsmart\n"
        "pool = ybsmart.ConnectionPool(sys.argv[1], min_size=2, open=True)\n"
        "pool.wait(20)\n"
        "answer = pool.query('SELECT 1').scalar()\n"
        "try: pool.query('SELECT 1 FROM nowhere', timeout=5)\n"
        "except Exception as error: kind = type(error).__name__\n"
        "conns = [pool.getconn(5) for _ in range(2)]\n"
        "try: pool.getconn(0.01)\n"
        "except ybsmart.PoolTimeout: pass\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import imported; print(imported.kind)"
    )
    with Program(code, url) as program:
        assert program.end() == (0, ["UndefinedTable"]), program.errors
        assert program.errors == ""


def test_one_loop_after_the_other_and_two_at_a_time(url: str) -> None:
    code = """
import asyncio, sys, threading, ybsmart

async def ask(n):
    async with await ybsmart.AsyncConnection.connect(sys.argv[1]) as conn:
        return (await (await conn.execute("SELECT %s::int", [n])).fetchone())[0]

async def many():
    return sum(await asyncio.gather(*(ask(n) for n in range(12))))

print(asyncio.run(many()), asyncio.run(many()))
answers = []
threads = [threading.Thread(target=lambda: answers.append(asyncio.run(many()))) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*answers, sum(ybsmart.connection_counts().values()))
"""
    with Program(code, url + "&yb_servers_refresh_interval=0") as program:
        assert program.end() == (0, ["66 66", "66 66 0"]), program.errors
        assert program.errors == ""


REENTRANT = """
import logging, sys, threading, ybsmart
used = []
inside = threading.Lock()

def use(*_):
    "Whatever calls this, it uses the pool; but not again on its own account, in other threads."
    if inside.acquire(False):
        try:
            pool.get_stats(); pool.holders(); repr(pool)
            used.append(pool.query("SELECT 1", timeout=10).scalar())
        finally:
            inside.release()

class Handler(logging.Handler):
    def emit(self, record): use()

{install}
pool = ybsmart.ConnectionPool(sys.argv[1], max_size=4, timeout=10, {options})
{more}

def work():
    for n in range(10):
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            if n == 5: conn.execute("SET application_name = 'x'")
        conn = pool.getconn()
        conn.execute("SELECT 1")  # returned in a transaction, which is logged
        pool.putconn(conn)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
pool.end(10)
print(len(used) > 0, pool.total_count)
"""


@pytest.mark.parametrize(
    ("install", "options", "more"),
    [
        ("logging.getLogger().addHandler(Handler())", "", ""),
        ("", "", "for event in ('connect', 'acquire', 'release', 'remove'): pool.on(event, use)"),
        ("", "configure=use", ""),
        ("", "check=use", ""),
        ("", "reset=lambda conn: (conn.rollback(), use())", ""),
    ],
    ids=["logging handler", "listeners", "configure", "check", "reset"],
)
def test_what_the_pool_calls_may_use_the_pool(
    url: str, install: str, options: str, more: str
) -> None:
    code = REENTRANT.format(install=install, options=options, more=more)
    with Program(code, url) as program:
        assert program.end() == (0, ["True 0"]), program.errors
