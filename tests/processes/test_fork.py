"""Forks after use: children that begin anew, and a parent that notices nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs import Program
from tests.support import until
from tests.tls import OPENSSL, programs, tls_servers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# How programs fork: Python tells its modules of its own forks. That of the C library is what a
# server does that is written in C and does not care (uWSGI). Threads that wait for the interpreter
# at that moment would leave it unusable in the child, so there are none.
FORKS = {"python": "os.fork", "c": "ctypes.PyDLL(None).fork"}

PARENT = """
import ctypes, gc, os, socket, stat, struct, sys, threading, time, warnings, ybsmart.cluster
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)

if "{FORK}" != "os.fork":
    ybsmart.sweeper.watch = lambda pool: None
# A node that is slow on a busy machine would be passed over, and get its share afterwards from a
# thread that may be connecting at a fork: what it has locked in OpenSSL, the child has for ever.
ybsmart.cluster.HEDGE_DELAY = 10.0
pool = ybsmart.ConnectionPool(sys.argv[1], max_size=4, max_idle=0, check_after=0,
    kwargs={"autocommit": True})
held = [pool.getconn() for _ in range(4)]
before = [conn.info.backend_pid for conn in held]
sockets = [conn.pgconn.socket for conn in held]
lent = held.pop()

# Down to the end of its last C function: OpenSSL has some for threads that end, and locks in them.
while (any(thread.name != "ybsmart-sweep" for thread in threading.enumerate()[1:])
       or "gevent" not in sys.modules
       and len(os.listdir("/proc/self/task")) != threading.active_count()):
    time.sleep(0.001)
for conn in held:
    pool.putconn(conn)

def sent():
    "How many bytes have gone out on each connection, by the kernel's own count."
    counts = []
    for fd in sockets:
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            counts.append(struct.unpack_from("=Q", info, 120)[0])  # tcpi_bytes_acked
    return counts

def in_child(action, *args):
    child = {FORK}()
    if child:
        return child
    status = 1
    try:
        action(*args)
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(status)

def check_parent():
    assert lent.execute("SELECT 1").fetchone() == (1,)
    pool.putconn(lent)
    assert (pool.total_count, pool.idle_count) == (4, 4), pool
    conns = [pool.getconn(30) for _ in range(4)]
    assert sorted(conn.info.backend_pid for conn in conns) == sorted(before)
    for conn in conns:
        assert conn.execute("SELECT pg_backend_pid()").fetchone() == (conn.info.backend_pid,)
        pool.putconn(conn)
    pool.end(30)
"""

CHILDREN = """
def child():
    assert pool.get_stats()["requests_num"] == 0
    assert (pool.total_count, pool.idle_count, pool.waiting_count) == (0, 0, 0)
    assert set(ybsmart.connection_counts().values()) <= {0}
    for fd in sockets:
        assert not stat.S_ISSOCK(os.fstat(fd).st_mode)
    try:
        pool.putconn(lent)
    except ybsmart.DoubleRelease:
        pass
    else:
        raise AssertionError("the parent's connection was returned")
    errors = []
    def work():
        try:
            for _ in range(50):
                assert pool.query("SELECT pg_backend_pid()").scalar() not in before
        except BaseException as exc:
            errors.append(exc)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert errors == [], errors
    globals()["lent"] = None
    gc.collect()
    pool.end(10)
    pool.close()

acked = sent()
children = [in_child(child) for _ in range(4)]
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
assert sent() == acked, (sent(), acked)
check_parent()
print("fine")
"""


def program(body: str, fork: str) -> str:
    return PARENT.replace("{FORK}", FORKS[fork]) + body


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes")


@linux
@pytest.mark.parametrize("fork", FORKS)
def test_four_children_with_two_hundred_queries_each(
    url: str, sessions: Callable[[], int], fork: str
) -> None:
    with Program(program(CHILDREN, fork), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors
        assert parent.errors == ""
    until(lambda: sessions() == 0)


@linux
@pytest.mark.skipif(
    programs() is None or OPENSSL is None, reason="no PostgreSQL with TLS, or no openssl"
)
def test_four_children_of_a_parent_that_uses_tls() -> None:
    with tls_servers() as servers:
        stem = servers.certificate("all", "IP:127.0.0.1,IP:127.0.0.2,IP:127.0.0.3")
        with servers.running([stem] * 3):
            url = (
                f"postgresql://yugabyte:sesame@127.0.0.1:{servers.port}/postgres"
                f"?load_balance=true&sslmode=verify-full&sslrootcert={servers.root}"
            )
            for fork in FORKS:
                with Program(program(CHILDREN, fork), url) as parent:
                    assert parent.end() == (0, ["fine"]), parent.errors
                    assert parent.errors == ""


# What the system says to a wish for memory that is empty in a forked child.
ANSWERS = {"no": "raise OSError(22, 'Invalid argument')", "yes, without granting it": "pass"}


@linux
@pytest.mark.parametrize("answer", ANSWERS)
def test_children_of_a_system_without_memory_that_is_wiped_for_them(url: str, answer: str) -> None:
    system = f"""
import mmap
class Memory(mmap.mmap):
    def madvise(self, *_):
        {ANSWERS[answer]}
mmap.mmap = Memory
"""
    with Program(system + program(CHILDREN, "c"), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


# Whatever a child does first.
FIRST = {
    "get a connection": "pool.putconn(pool.getconn(10))",
    "return the parent's": "refused(ybsmart.DoubleRelease, pool.putconn, lent)",
    "close": "pool.close()",
    "end": "pool.end(10)",
    "drain": "pool.drain()",
    "evict": "refused(ValueError, pool.evict, label)",
    "check": "pool.check()",
    "resize": "pool.resize(1, 1); pool.query('SELECT 1')",
    "open": "pool.open()",
    "wait": "pool.wait(10)",
    "report": "assert pool.get_stats()['pool_size'] == 0",
    "holders": "assert pool.holders() == []",
    "tidy": "pool._tidy()",
    "leave a block": "refused(ybsmart.DoubleRelease, block.__exit__, None, None, None)",
    "counts": "assert ybsmart.connection_counts() == {}",
    "clusters": "assert ybsmart.clusters() == ()",
    "connect": "ybsmart.connect(sys.argv[1]).close()",
    "fork": """
pid = pool.query("SELECT pg_backend_pid()").scalar()
grandchild = in_child(exec, f"assert pool.query('SELECT pg_backend_pid()').scalar() != {pid}")
assert os.waitpid(grandchild, 0)[1] == 0
""",
}

ONE_BY_ONE = f"""
FIRST = {FIRST!r}
def refused(kind, action, *args):
    try: action(*args)
    except kind: pass
    else: raise AssertionError("accepted")
label = before and next(iter(pool.get_stats()["nodes"]))
block = pool.connection()
block.__enter__()
acked = sent()
for name, code in FIRST.items():
    status = os.waitpid(in_child(exec, code), 0)[1]
    assert status == 0, name
    assert sent() == acked, name
block.__exit__(None, None, None)
check_parent()
print("fine")
"""


@linux
@pytest.mark.parametrize("fork", FORKS)
def test_whatever_a_child_does_first_its_parent_hears_nothing_of_it(url: str, fork: str) -> None:
    with Program(program(ONE_BY_ONE, fork), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


def test_a_child_that_uses_its_parents_connection_gets_an_error(url: str) -> None:
    body = """
import psycopg
def child():
    try:
        lent.execute("SELECT 1")
    except psycopg.OperationalError:
        lent.close()
    else:
        raise AssertionError("no error")
assert os.waitpid(in_child(child), 0)[1] == 0
check_parent()
print("fine")
"""
    with Program(program(body, "python"), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


def test_a_block_that_spans_the_fork_does_not_commit_in_the_child(url: str) -> None:
    body = """
pool.putconn(lent)
with pool.connection() as conn:
    block = pool.connection()
    with block as other:
        other.execute("CREATE TEMP TABLE there (x int)")
        other.autocommit = False
        other.execute("INSERT INTO there VALUES (1)")
        def leave():
            try: block.__exit__(None, None, None)
            except ybsmart.DoubleRelease: pass
            else: raise AssertionError("accepted")
        assert os.waitpid(in_child(leave), 0)[1] == 0
        assert other.execute("SELECT count(*) FROM there").fetchone() == (1,)
        other.rollback()
        assert other.execute("SELECT count(*) FROM there").fetchone() == (0,)
print("fine")
"""
    with Program(program(body, "python"), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


def test_a_closed_pool_stays_closed_in_the_child(url: str) -> None:
    body = """
pool.putconn(lent)
pool.close()
def child():
    assert pool.closed
    try: pool.getconn()
    except ybsmart.PoolClosed: pass
    else: raise AssertionError("open")
assert os.waitpid(in_child(child), 0)[1] == 0
print("fine")
"""
    with Program(program(body, "python"), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


KILLED = """
def child():
    pool.query("SELECT 1")
    os.write(1, b"%d\\n" % os.getpid())  # at once: `print` may write the line's end by itself
    time.sleep(1000)
for _ in range(2): in_child(child)
input()
check_parent()
print("fine")
"""


def test_a_child_that_is_killed_leaves_the_others_untouched(
    url: str, sessions: Callable[[], int]
) -> None:
    with Program(program(KILLED, "python"), url) as parent:
        children = [int(parent.line()), int(parent.line())]
        until(lambda: sessions() == 6)
        os.kill(children[0], signal.SIGKILL)
        until(lambda: sessions() == 5)
        parent.say()
        parent.expect("fine")
        until(lambda: sessions() == 1)


def test_a_parent_that_is_killed_takes_its_sessions_along(
    url: str, sessions: Callable[[], int]
) -> None:
    with Program(program(KILLED, "python"), url) as parent:
        assert [parent.line().isdigit() for _ in range(2)] == [True, True]
        parent.process.kill()
        until(lambda: sessions() == 2)


def test_a_fork_while_others_use_the_pool_and_the_list_of_nodes(url: str) -> None:
    body = """
stop = threading.Event()
def work():
    while not stop.is_set():
        pool.query("SELECT 1")
        ybsmart.connect(sys.argv[1]).close()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for _ in range(10):
    assert os.waitpid(in_child(pool.query, "SELECT 1"), 0)[1] == 0
stop.set()
for thread in threads: thread.join()
pool._check_invariants()
check_parent()
print("fine")
"""
    with Program(program(body, "python"), url + "&yb_servers_refresh_interval=0") as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


def test_a_child_of_greenlets(url: str) -> None:
    pytest.importorskip("gevent")
    body = """
import gevent
def child():
    greenlets = [gevent.spawn(pool.query, "SELECT pg_backend_pid()") for _ in range(50)]
    gevent.joinall(greenlets, raise_error=True)
    assert pool.total_count == 4
    assert not {greenlet.get().scalar() for greenlet in greenlets} & set(before)
    pool.end(10)
children = [in_child(child) for _ in range(2)]
for child in children: assert os.waitpid(child, 0)[1] == 0
check_parent()
print("fine")
"""
    patch = "import gevent.monkey; gevent.monkey.patch_all()\n"
    with Program(patch + program(body, "python"), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors


# multiprocessing

MULTIPROCESSING = """
import multiprocessing, os, sys, threading, ybsmart

pool = ybsmart.ConnectionPool(sys.argv[2], max_size=2)

def work(_):
    return pool.query("SELECT pg_backend_pid()").scalar(), os.getpid()

def refused(context):
    try:
        process = context.Process(target=print, args=(pool,))
        process.start()
    except TypeError as exc:
        return str(exc)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    mine = work(0)
    with context.Pool(4) as workers:
        done = workers.map(work, range(200), chunksize=5)
    assert mine[0] not in {backend for backend, _ in done}
    assert len({backend for backend, _ in done}) >= len({process for _, process in done})
    assert work(0) == mine
    if sys.argv[1] != "fork":
        print(refused(context))
    print("fine")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_has_a_pool_for_each_process(
    url: str, sessions: Callable[[], int], tmp_path: Path, method: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    refusal = ["a connection pool cannot be pickled: make one in each process"]
    with Program(script, method, url) as parent:
        status, lines = parent.end()

        assert (status, lines) == (0, [*(refusal if method != "fork" else []), "fine"])
    until(lambda: sessions() == 0)


@linux
@pytest.mark.parametrize("fork", FORKS)
def test_a_finaliser_in_the_middle_of_beginning_anew_may_use_a_pool(url: str, fork: str) -> None:
    body = """
import signal
class Uses:
    def __init__(self):
        self.myself = self
    def __del__(self):
        pool.get_stats()
def child():
    signal.alarm(50)
    pool.query("SELECT 1")
    assert pool.total_count == 1
gc.collect()
gc.disable()
Uses()
ybsmart.forks._actions.insert(0, gc.collect)  # as if it ran by itself, before all is done
assert os.waitpid(in_child(child), 0)[1] == 0
check_parent()
print("fine")
"""
    with Program(program(body, fork), url) as parent:
        assert parent.end() == (0, ["fine"]), parent.errors
