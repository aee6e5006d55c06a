"""The thread that tidies up, where it is hard put to."""

from __future__ import annotations

from tests.programs import Program
from ybsmart.testing import LocalCluster


def test_finalisers_that_have_a_pool_watched_at_any_moment_disturb_no_sweep() -> None:
    code = """
    import gc, sys, threading
    from ybsmart import sweeper

    class Pool:
        tidied = 0

        def _tidy(self):
            self.tidied += 1

    def finaliser(frame, event, _):
        if event == "line" and len(pools) < 200:
            pools.append(Pool())
            sweeper.watch(pools[-1])
        return finaliser

    sweeper._thread = threading.current_thread()  # which sweeps itself
    pools = [Pool(), Pool(), Pool()]
    for pool in pools[:]:
        sweeper.watch(pool)
    sys.settrace(finaliser)
    while sweeper._sweep() is not None:
        pass
    sys.settrace(None)
    print(len(pools), all(pool.tidied for pool in pools))
    """
    with Program(code) as program:
        program.expect("200 True")


def test_where_there_can_be_no_such_thread_pools_work_without() -> None:
    code = """
    import os, signal, sys, threading, ybsmart

    start = threading.Thread.start
    refused = []

    def refuse(self):
        if self.name == "ybsmart-sweep":
            refused.append(self)
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = refuse
    with ybsmart.ConnectionPool(sys.argv[1], max_size=1, check_after=0) as pool:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        with ybsmart.connect(sys.argv[1]) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        with pool.connection() as conn:  # the lost one has its siblings looked at
            print(conn.info.backend_pid != pid)
        print(len(refused) > 2)
        threading.Thread.start = start
        pool.leak_detection_threshold = 1
        print(any(thread.name == "ybsmart-sweep" for thread in threading.enumerate()))
    """
    with LocalCluster(1) as cluster, Program(code, cluster.conninfo()) as program:
        program.expect("True", "True", "True")


def test_an_interrupt_while_the_thread_is_started_does_not_leave_two() -> None:
    code = """
    import threading
    from ybsmart import sweeper

    class Pool:
        def __init__(self):
            self.tidied = threading.Event()

        def _tidy(self):
            self.tidied.set()
            return 0.01

    start = threading.Thread.start

    def interrupted(self):
        start(self)
        raise KeyboardInterrupt

    def sweeping():
        return [thread for thread in threading.enumerate() if thread.name == "ybsmart-sweep"]

    pool = Pool()
    threading.Thread.start = interrupted
    try:
        sweeper.watch(pool)
    except KeyboardInterrupt:
        threading.Thread.start = start
    (first,) = sweeping()
    sweeper.watch(pool)
    first.join(10)
    print(first.is_alive(), len(sweeping()))
    pool.tidied.clear()
    print(pool.tidied.wait(10))
    """
    with Program(code) as program:
        program.expect("False 1", "True")
