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
