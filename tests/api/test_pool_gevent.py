"""The pool and greenlets, after gevent's `patch_all()`: each test in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed"
)

BEGINNING = """
    from gevent import monkey

    monkey.patch_all()

    import gc, logging, random, sys
    import gevent
    import ybsmart

    logging.disable()  # of the connections that were in the middle of something when killed
    conninfo = sys.argv[1]


    def until(condition):
        with gevent.Timeout(30):
            while not condition():
                gevent.sleep(0)

"""


def run(program: str, conninfo: str, beginning: str = textwrap.dedent(BEGINNING)) -> None:
    """Run it under gevent; it is to end well and to say nothing."""
    done = subprocess.run(
        [sys.executable, "-c", beginning + textwrap.dedent(program), conninfo],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_full_pool_blocks_nobody_but_those_who_wait_for_it(balanced: str) -> None:
    program = """
        pool = ybsmart.ConnectionPool(conninfo, max_size=3, timeout=20)
        held = [pool.getconn() for _ in range(3)]
        order = []


        def use(number):
            with pool.connection() as conn:
                conn.execute("SELECT 1")
                order.append(number)


        waiters = [gevent.spawn(use, number) for number in range(20)]
        until(lambda: pool.waiting_count == 20)
        rounds = 0
        while rounds < 100:  # all others go on
            gevent.sleep(0)
            rounds += 1
        assert pool.waiting_count == 20

        def late(timeout, limit):
            try:
                with gevent.Timeout(limit):
                    pool.getconn(timeout)
            except BaseException as error:
                return type(error)


        assert gevent.spawn(late, 0.05, None).get() is ybsmart.PoolTimeout
        assert gevent.spawn(late, None, 0.05).get() is gevent.Timeout
        assert pool.waiting_count == 20

        pool.putconn(held.pop())
        gevent.joinall(waiters, raise_error=True)
        assert order == list(range(20))  # one connection serves all, in the order of arrival
        for conn in held:
            pool.putconn(conn)
        pool._check_invariants()
        pool.end(10)
    """
    run(program, balanced)


def test_greenlets_killed_at_random_lose_nothing(balanced: str) -> None:
    program = """
        pool = ybsmart.ConnectionPool(conninfo, max_size=3, timeout=20)
        lots = random.Random(7)
        worked = 0


        def use():
            global worked
            while True:
                with pool.connection() as conn:
                    conn.execute("SELECT pg_sleep(0.001)")
                    gevent.sleep(0)
                worked += 1


        users = [gevent.spawn(use) for _ in range(12)]
        for _ in range(200):
            gevent.sleep(lots.random() * 0.004)
            victim = lots.randrange(12)
            users[victim].kill()  # in the queue, in a query, between two
            users[victim] = gevent.spawn(use)
        gevent.killall(users)
        gc.collect()
        until(lambda: pool.connecting_count == 0)

        assert worked > 0
        assert pool.idle_count == pool.total_count
        assert pool.waiting_count == 0
        assert pool.get_stats()["removed_leak"] == 0
        pool._check_invariants()
        conns = [pool.getconn() for _ in range(3)]
        for conn in conns:
            assert conn.execute("SELECT 1").fetchone() == (1,)
            pool.putconn(conn)
        pool.end(10)
        until(lambda: sum(ybsmart.connection_counts().values()) == 0)
    """
    run(program, balanced)


def test_connecting_blocks_nobody(balanced: str) -> None:
    program = """
        import threading

        gate = threading.Event()


        class Slow(ybsmart.Connection):
            @classmethod
            def connect(cls, *args, **kwargs):
                gate.wait()
                return super().connect(*args, **kwargs)


        pool = ybsmart.ConnectionPool(conninfo, max_size=3, connection_class=Slow)
        users = [gevent.spawn(pool.query, "SELECT 1") for _ in range(6)]
        until(lambda: pool.connecting_count == 3 and pool.waiting_count == 6)
        gate.set()
        gevent.joinall(users, raise_error=True)
        assert pool.total_count <= 3
        pool.close()
        assert pool.total_count == 0
    """
    run(program, balanced)


def test_looking_at_sockets_lets_no_other_greenlet_run(balanced: str) -> None:
    """It might close one that is being watched, which ends the process."""
    program = """
        from ybsmart.liveness import any_has_news, is_alive

        conns = [ybsmart.connect(conninfo) for _ in range(3)]
        ran = []
        gevent.spawn(ran.append, 1)
        assert not any_has_news(conns)
        assert all(map(is_alive, conns))
        assert ran == []
        for conn in conns:
            conn.close()
    """
    run(program, balanced)


def test_patching_after_the_import_stops_nobody_who_connects(balanced: str) -> None:
    """As in a worker of `gunicorn --preload`: the locks of ybsmart's modules are not gevent's."""
    program = """
        pool = ybsmart.ConnectionPool(conninfo, max_size=6, max_connecting=6)
        with gevent.Timeout(30):
            gevent.joinall([gevent.spawn(pool.getconn) for _ in range(6)], raise_error=True)
        pool.close()
    """
    run(program, balanced, beginning="import ybsmart\n" + textwrap.dedent(BEGINNING))
