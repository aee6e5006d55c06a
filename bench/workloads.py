"""What one round of a case does, in the child process of one contender.

A round is a fraction of a second, and returns figures: `time` (wall seconds per operation), `cpu`
(processor seconds per operation, of all threads of the process), and what else the case is about.
The garbage collector stays on, as it is for users.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from itertools import repeat
from statistics import median, quantiles
from typing import Any

from bench.contenders import CLASSES

Figures = dict[str, float]
Setup = dict[str, Any]


class Workload:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.seconds: float = setup["seconds"]

    def round(self) -> Figures:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Loop(Workload):
    """A loop in one thread; its length is chosen once, to fill a round."""

    loop: Callable[[int], None]
    n = 0

    def round(self) -> Figures:
        if not self.n:
            self.n = self._fitting()
        return self._run(self.n)

    def _fitting(self) -> int:
        """Try longer and longer loops; this is the warm-up too."""
        n = 1
        while True:
            took = self._run(n)["time"] * n
            if took >= self.seconds / 4:
                return max(1, round(n * self.seconds / took))
            n *= 4 if took > self.seconds / 100 else 10

    def _run(self, n: int) -> Figures:
        loop = self.loop
        cpu = time.process_time()
        wall = time.perf_counter()
        loop(n)
        wall = time.perf_counter() - wall
        cpu = time.process_time() - cpu
        return {"time": wall / n, "cpu": cpu / n}


class PoolLoop(Loop):
    """One of the loops that the contenders bring along."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        size = setup["size"]
        self.pool = CLASSES[setup["contender"]](setup["conninfo"], setup["hosts"], size)
        self.pool.warm(size)
        self.loop = getattr(self.pool, setup["loop"])

    def close(self) -> None:
        self.pool.verify()
        self.pool.close()


class Threads(Workload):
    """Threads that all want a connection, all the time.

    They are new in each round, and find all connections taken: these are let go when every thread
    waits for one. Otherwise it would be left to chance, with some pools, for how long threads take
    turns in which each has the interpreter for itself, and nobody waits for a connection. Counted
    is only in a window in the middle, when they have been at it for a while.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        size = setup["size"]
        self.pool = CLASSES[setup["contender"]](setup["conninfo"], setup["hosts"], size)
        self.pool.warm(size)
        self.hold: float = setup.get("hold", 0.0)
        self.stop = False

    def round(self) -> Figures:
        number = self.setup["threads"]
        work = self._hold if self.hold else self._hammer
        self.stop = False
        self.counts = [0] * number
        self.waits: list[list[float]] = [[] for _ in range(number)]
        self.barrier = threading.Barrier(number + 1)
        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(number)]
        taken = [self.pool.take() for _ in range(self.setup["size"])]
        for thread in threads:
            thread.start()
        self.barrier.wait()
        time.sleep(0.05)
        for conn in taken:
            self.pool.give(conn)
        time.sleep(self.setup.get("settle", 0.1))
        before, wall, cpu = list(self.counts), time.perf_counter(), time.process_time()
        first = [len(waits) for waits in self.waits]
        time.sleep(self.seconds)
        after = list(self.counts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        last = [len(waits) for waits in self.waits]
        self.stop = True
        for thread in threads:
            thread.join()
        self.pool.verify()
        done = [b - a for a, b in zip(before, after, strict=True)]
        ops = max(1, sum(done))
        figures = {
            "time": wall / ops,
            "cpu": cpu / ops,
            "fairness": min(done) / max(1, *done),
        }
        waits = [
            wait for own, a, b in zip(self.waits, first, last, strict=True) for wait in own[a:b]
        ]
        if len(waits) > 1:
            figures["median wait"] = median(waits)
            figures["p99 wait"] = quantiles(waits, n=100, method="inclusive")[98]
            figures["p99/median"] = figures["p99 wait"] / figures["median wait"]
        return figures

    def _hammer(self, i: int) -> None:
        take, give, counts = self.pool.take, self.pool.give, self.counts
        self.barrier.wait()
        while not self.stop:
            conn = take()
            give(conn)
            counts[i] += 1

    def _hold(self, i: int) -> None:
        take, give, counts, waits = self.pool.take, self.pool.give, self.counts, self.waits[i]
        hold, sleep, clock = self.hold, time.sleep, time.perf_counter
        self.barrier.wait()
        while not self.stop:
            asked = clock()
            conn = take()
            waits.append(clock() - asked)
            sleep(hold)
            give(conn)
            counts[i] += 1

    def close(self) -> None:
        self.pool.close()


class Waiters(Workload):
    """Requests that queue up and give up again, in random order, without threads.

    Uses the pool's own queue and its own waiters, each with the lock that it sleeps on, because
    thousands of threads would mostly measure themselves (that is what `Crowd` does).
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        from ybsmart import ConnectionPool
        from ybsmart._core import pool as core

        self.pool = ConnectionPool(setup["conninfo"])
        self.new_queue = core.WaiterQueue
        self.number: int = setup["waiters"]
        self.order = list(range(self.number))
        random.Random(5).shuffle(self.order)
        self.repeats = max(1, round(setup.get("total", 10_000) / self.number))

    def round(self) -> Figures:
        new_waiter, order, number = self.pool._new_waiter, self.order, self.number
        wall = cpu = 0.0
        for _ in range(self.repeats):
            queue = self.new_queue()
            cpu -= time.process_time()
            wall -= time.perf_counter()
            waiters = []
            for _ in range(number):
                waiter = new_waiter(None)
                queue.append(waiter)
                waiters.append(waiter)
            for i in order:
                queue.cancel(waiters[i])
            waiters.clear()
            wall += time.perf_counter()
            cpu += time.process_time()
            if len(queue):
                raise AssertionError(f"{len(queue)} are left in the queue")
        total = number * self.repeats
        return {"time": wall / total, "cpu": cpu / total, "bytes": self._bytes()}

    def _bytes(self) -> float:
        """Memory per queued waiter, all that hangs on it included."""
        import tracemalloc

        waiters: list[Any] = [None] * self.number
        queue = self.new_queue()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for i in range(self.number):
                waiters[i] = self.pool._new_waiter(None)
                queue.append(waiters[i])
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for waiter in waiters:
            queue.cancel(waiter)
        return (after - before) / self.number


class Crowd(Workload):
    """Threads that queue up for a connection that never comes, and time out in random order.

    The processor time is that of the time-outs' span alone, when all threads are in the queue;
    it includes waking each thread, which costs the same for all contenders ("bare" shows it).
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.number: int = setup["waiters"]
        self.take: Callable[..., Any]
        if setup["contender"] == "bare":
            self.pool = None
            self.take = self._bare
        else:
            self.pool = CLASSES[setup["contender"]](setup["conninfo"], setup["hosts"], 1)
            self.take = self.pool.take  # of our pool and psycopg_pool, which takes a time-out
            self.held = self.pool.take()

    @staticmethod
    def _bare(timeout: float) -> None:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire(True, timeout)
        raise TimeoutError

    def round(self) -> Figures:
        lead = 0.5 + self.number / 4000
        while True:
            cpu = self._attempt(lead)
            if cpu is not None:
                return {"time": cpu / self.number, "cpu": cpu / self.number}
            lead *= 2  # the machine is slow: some gave up before others had come

    def _attempt(self, lead: float) -> float | None:
        """All have to be in the queue after `lead` seconds; then they leave at an even rate."""
        number = self.number
        span = max(1.0, number / 2500)
        draw = random.Random(7)
        waits = [lead + span * draw.random() for _ in range(number)]
        started = [0] * number
        failed = [0] * number
        start = 0.0
        gate = threading.Event()

        def wait(i: int) -> None:
            gate.wait()
            started[i] = 1
            try:
                self.take(max(0.01, waits[i] - (time.perf_counter() - start)))
            except Exception:
                failed[i] = 1

        size = threading.stack_size(256 * 1024)
        try:
            threads = [threading.Thread(target=wait, args=(i,)) for i in range(number)]
            for thread in threads:
                thread.start()
        finally:
            threading.stack_size(size)
        start = time.perf_counter()
        gate.set()
        time.sleep(max(0.0, start + lead - time.perf_counter()))
        in_time = all(started)
        cpu = time.process_time()
        for thread in threads:
            thread.join()
        cpu = time.process_time() - cpu
        if sum(failed) != number:
            raise AssertionError(f"{number - sum(failed)} of {number} did not time out")
        return cpu if in_time else None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.give(self.held)
            self.pool.close()


class Hosts(Loop):
    """Reserve a place on the best host and give it back. No network.

    Two or three connections per host are there already, so that half of the hosts are equally good.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        number = setup["nodes"]
        names = [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(number)]
        build = self._build_theirs if setup["contender"] == "yugabytedb" else self._build_ours
        self.loop = build(names, 2 * number + number // 2)

    def _build_ours(self, names: list[str], present: int) -> Callable[[int], None]:
        from ybsmart._core import hosts

        table = hosts.HostTable(20240229)
        tiers = table.arrange([table.update([(name, None) for name in names])])
        self.leases = [table.reserve(tiers, None) for _ in range(present)]
        reserve = table.reserve

        def loop(n: int) -> None:
            for _ in repeat(None, n):
                lease = reserve(tiers, None)
                lease.release()  # type: ignore[union-attr]

        return loop

    def _build_theirs(self, names: list[str], present: int) -> Callable[[int], None]:
        from psycopg.yb.node import NodeInfo, Placement  # type: ignore[import-not-found]
        from psycopg.yb.policy import ClusterAwarePolicy  # type: ignore[import-not-found]
        from psycopg.yb.registry import ClusterRegistry, ClusterState  # type: ignore[import-not-found]

        placement = Placement("aws", "us-west", "us-west-2a")
        nodes = {name: NodeInfo(name, None, 5433, placement, "primary") for name in names}
        state = ClusterState("u", nodes, threading.Lock(), time.monotonic())
        registry = ClusterRegistry.instance()
        registry._clusters["u"] = state
        policy = ClusterAwarePolicy()
        for _ in range(present):
            policy.get_least_loaded_server(state, set(), 5.0)
        reserve, decrement = policy.get_least_loaded_server, registry.decrement

        def loop(n: int) -> None:
            for _ in repeat(None, n):
                node = reserve(state, set(), 5.0)
                decrement("u", node.host)

        return loop


class Connect(Loop):
    """Open a connection and close it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        conninfo = setup["conninfo"]
        options: dict[str, Any] = {}
        if setup["contender"] in ("ybsmart", "ybsmart-pure"):
            import ybsmart

            connect: Callable[..., Any] = ybsmart.connect
            options["load_balance"] = True
        else:
            import psycopg

            connect = psycopg.connect
            if setup["contender"] == "yugabytedb":
                options["load_balance_hosts"] = "true"

        def loop(n: int) -> None:
            for _ in range(n):
                connect(conninfo, **options).close()

        self.loop = loop

    def _fitting(self) -> int:
        self._run(5)  # the first of them asks for the nodes
        return super()._fitting()


WORKLOADS: dict[str, type[Workload]] = {
    "loop": PoolLoop,
    "threads": Threads,
    "waiters": Waiters,
    "crowd": Crowd,
    "hosts": Hosts,
    "connect": Connect,
}
