"""A load: threads that use one pool without a pause, and note how each request went.

Also a program, for pools that live in other interpreters: nothing is imported here but the
standard library, and the pool that is asked for.

    python client.py CONTENDER JSON     {"conninfo": ..., "hosts": ..., "size": ..., "threads": ...}

It says "ready" once its connections are open, and after a line on its standard input, or the end of
it, the requests there have been, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, NamedTuple

SLEEP = "SELECT pg_sleep(0.01)"


class Request(NamedTuple):
    """Times are of the monotonic clock, which all processes of a machine share."""

    kind: str
    started: float
    ended: float
    node: str
    """The host that served it; empty if it got no connection, or where that is not seen."""
    error: str
    """Empty for a success."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class Load:
    """Requests from many threads, until it is told to stop."""

    def __init__(self, pool: Any, threads: int = 16, kinds: str = "short transaction") -> None:
        self._pool = pool
        self._kinds = kinds.split()
        self._stop = threading.Event()
        self.requests: list[Request] = []
        self._begun: dict[int, tuple[str, float]] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, limit: float) -> list[Request]:
        """End it, and return all requests; those that do not end within `limit` seconds too, as
        failed."""
        self._stop.set()
        deadline = time.monotonic() + limit
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        now = time.monotonic()
        hanging = [
            Request(*self._begun[i], now, "", "still waiting at the end")
            for i, thread in enumerate(self._threads)
            if thread.is_alive()
        ]
        return [*self.requests, *hanging]

    def _run(self, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            kind = self._kinds[turn % len(self._kinds)]
            turn += 1
            on: list[str] = []
            error = ""
            started = time.monotonic()
            self._begun[number] = (kind, started)
            try:
                getattr(self, f"_{kind}")(on)
            except Exception as exc:
                error = f"{type(exc).__name__}: {exc}"
            ended = time.monotonic()
            self.requests.append(Request(kind, started, ended, on[-1] if on else "", error))
            if error and ended - started < 0.01:
                time.sleep(0.01)  # an application that fails at once is not to fill the list

    def _short(self, on: list[str]) -> None:
        with self._pool.connection() as conn:
            on.append(conn.info.hostaddr)
            conn.execute(SLEEP)

    def _transaction(self, on: list[str]) -> None:
        with self._pool.connection() as conn:
            on.append(conn.info.hostaddr)
            conn.execute("SELECT pg_current_xact_id()")
            conn.execute(SLEEP)
            conn.execute("SELECT 1")

    # What only ours has

    def _query(self, on: list[str]) -> None:
        self._pool.query(SLEEP)

    def _retried(self, on: list[str]) -> None:
        self._pool.query(SLEEP, retry=True)

    def _run_transaction(self, on: list[str]) -> None:
        def run(conn: Any) -> None:
            on.append(conn.info.hostaddr)
            conn.execute(SLEEP)
            conn.execute("SELECT 1")

        self._pool.run_transaction(run)


def ours(conninfo: str, hosts: str, size: int) -> Any:
    import ybsmart

    kwargs = {"load_balance": True, "yb_servers_refresh_interval": 2}
    pool = ybsmart.ConnectionPool(conninfo, kwargs=kwargs, max_size=size, timeout=10)
    for conn in [pool.getconn() for _ in range(size)]:
        pool.putconn(conn)
    return pool


def psycopg_pool(conninfo: str, size: int, kwargs: dict[str, Any], check: bool = False) -> Any:
    from psycopg_pool import ConnectionPool

    pool = ConnectionPool(
        conninfo,
        kwargs=kwargs,
        min_size=size,
        max_size=size,
        timeout=10,
        open=True,
        check=ConnectionPool.check_connection if check else None,
    )
    pool.wait()
    return pool


def yugabytedb(conninfo: str, hosts: str, size: int, check: bool = False) -> Any:
    # Where its driver is installed, in the place of psycopg.
    kwargs = {
        "load_balance_hosts": "true",
        "yb_servers_refresh_interval": "2",
        "connect_timeout": 10,
    }
    return psycopg_pool(conninfo, size, kwargs, check)


def yugabytedb_check(conninfo: str, hosts: str, size: int) -> Any:
    return yugabytedb(conninfo, hosts, size, check=True)


def psycopg(conninfo: str, hosts: str, size: int) -> Any:
    return psycopg_pool(hosts, size, {"load_balance_hosts": "random", "connect_timeout": 10})


CONTENDERS = {
    "ybsmart": ours,
    "yugabytedb": yugabytedb,
    "yugabytedb-check": yugabytedb_check,
    "psycopg": psycopg,
}


def main(contender: str, settings: str) -> None:
    setup = json.loads(settings)
    pool = CONTENDERS[contender](setup["conninfo"], setup["hosts"], setup["size"])
    load = Load(pool, setup["threads"])
    load.start()
    print("ready", flush=True)
    sys.stdin.readline()
    requests = load.stop(setup["patience"])
    json.dump([list(request) for request in requests], sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # whatever its threads still wait for


if __name__ == "__main__":
    main(*sys.argv[1:])
