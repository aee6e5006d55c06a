"""One driver in a process of its own, which does what it is told: see scenarios.py.

Needs nothing but the driver, whichever it is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Worker:
    """Obeys one command per line, with either driver."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.driver: Any
        try:
            import ybsmart

            self.driver = ybsmart
        except ModuleNotFoundError:
            import psycopg

            self.driver = psycopg

    def open(
        self, conninfo: str, params: dict[str, Any], count: int, threads: bool = False
    ) -> dict[str, Any]:
        """Open connections; tell how many came, the errors and the longest wait."""
        errors: list[str] = []
        waits: list[float] = []

        def one() -> None:
            before = time.monotonic()
            try:
                self.held.append(self.driver.connect(conninfo, **params))
            except Exception as exc:
                errors.append(f"{type(exc).__name__}: {exc}".partition("\n")[0])
            waits.append(time.monotonic() - before)

        if threads:
            with ThreadPoolExecutor(count) as executor:
                for _ in range(count):
                    executor.submit(one)
        else:
            for _ in range(count):
                one()
        return {"opened": count - len(errors), "errors": errors, "slowest": max(waits)}

    def close(self) -> None:
        while self.held:
            self.held.pop().close()

    def close_broken(self) -> int:
        """Use each connection, and close those that are found broken."""
        broken = 0
        for conn in list(self.held):
            try:
                conn.execute("SELECT 1")
                conn.rollback()
            except Exception:
                conn.close()
                self.held.remove(conn)
                broken += 1
        return broken

    def drop(self) -> None:
        warnings.simplefilter("ignore", ResourceWarning)
        self.held.clear()
        gc.collect()

    def counts(self) -> dict[str, int]:
        """What the driver believes, by host."""
        found: dict[str, int] = {}
        if hasattr(self.driver, "connection_counts"):
            for where, number in self.driver.connection_counts().items():
                host = where.rpartition(":")[0]
                found[host] = found.get(host, 0) + number
        else:
            registry = self.driver.yb.registry.ClusterRegistry.instance()
            for state in registry._clusters.values():
                for host, node in state.nodes.items():
                    found[host] = found.get(host, 0) + node.connection_count
        return found

    def loops(self, conninfo: str, params: dict[str, Any], loops: int, rounds: int) -> int:
        """So many event loops, each in a thread, connect and close; how many connects failed."""
        failed: list[str] = []

        async def main() -> None:
            for _ in range(rounds):
                try:
                    conn = await self.driver.AsyncConnection.connect(conninfo, **params)
                except Exception as exc:
                    failed.append(str(exc))
                else:
                    await conn.close()

        threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(loops)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(failed)

    def gather(self, conninfo: str, params: dict[str, Any], count: int) -> dict[str, int]:
        """So many tasks at once; the counts while all are open."""

        async def main() -> dict[str, int]:
            connect = self.driver.AsyncConnection.connect
            opened = await asyncio.gather(*(connect(conninfo, **params) for _ in range(count)))
            found = self.counts()
            for conn in opened:
                await conn.close()
            return found

        return asyncio.run(main())

    def fork(self) -> dict[str, int]:
        """What a forked child believes of its connections: it has none."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, json.dumps(self.counts()).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as file:
            found: dict[str, int] = json.load(file)
        os.wait()
        return found

    def obey(self) -> None:
        for line in sys.stdin:
            name, arguments = json.loads(line)
            try:
                answer: Any = [True, getattr(self, name)(**arguments)]
            except BaseException as exc:
                answer = [False, f"{type(exc).__name__}: {exc}".partition("\n")[0]]
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    Worker().obey()
