"""The same for asyncio: `AsyncConnection` spreads, counts and fails over as `Connection` does."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.smart.conftest import NewClient
from tests.smart.scenario import Client, sessions_so_far, states, stop
from tests.support import in_threads, until
from ybsmart.testing import LocalCluster

PROMPT = 4.0  # as in test_failures.py


async def connect(app: Client, **params: Any) -> ybsmart.AsyncConnection[Any]:
    return await ybsmart.AsyncConnection.connect(app.url, **{**app.params, **params})


async def close(connections: list[ybsmart.AsyncConnection[Any]]) -> None:
    for conn in connections:
        await conn.close()


def test_thirty_tasks_at_once_spread_exactly_after_one_look(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    before = sum(sessions_so_far(three))

    async def main() -> None:
        connections = await asyncio.gather(*(connect(app) for _ in range(30)))
        assert app.counts() == [10, 10, 10]
        until(app.sessions, [10, 10, 10])
        await close(connections)

    asyncio.run(main())

    app.check([0, 0, 0])
    until(lambda: sum(sessions_so_far(three)) - before, 31)


def test_sync_and_async_connections_of_one_process_are_counted_together(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)

    async def main() -> None:
        connections = []
        for _ in range(3):
            connections.append(await connect(app))
            await asyncio.to_thread(app.open, 1)
        assert app.counts() == [2, 2, 2]
        until(app.sessions, [2, 2, 2])
        await close(connections)

    asyncio.run(main())

    assert sum(app.counts()) == 3
    assert len(ybsmart.clusters()) == 1


@pytest.mark.parametrize("interval", [0, 300])
def test_four_event_loops_in_one_process_do_not_disturb_each_other(
    three: LocalCluster, client: NewClient, interval: int
) -> None:
    app = client(three, yb_servers_refresh_interval=interval)

    async def main() -> None:
        for _ in range(15):
            connections = await asyncio.gather(*(connect(app) for _ in range(3)))
            await close(connections)

    before = time.monotonic()
    errors = in_threads(4, lambda: asyncio.run(main()))

    assert not errors
    assert time.monotonic() - before < 30
    app.check([0, 0, 0])
    assert states(three) == ["up", "up", "up"]


def test_a_loop_that_ended_leaves_nothing_that_the_next_one_needs(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0)

    async def main() -> None:
        connections = [await connect(app) for _ in range(3)]
        assert app.counts() == [1, 1, 1]
        await close(connections)

    for _ in range(3):
        asyncio.run(main())
    app.check([0, 0, 0])


@pytest.mark.parametrize(
    ("mode", "keys", "down", "expected"),
    [
        ("any", None, (), [2, 2, 2, 2, 2, 2]),
        ("only-rr", None, (), [0, 0, 0, 4, 4, 4]),
        ("prefer-primary", None, (1, 2, 3), [0, 0, 0, 4, 4, 4]),
        ("any", "cloud.region.dc2:1,cloud.region.dc3:2", (), [0, 6, 0, 6, 0, 0]),
        ("any", "cloud.region.dc2:1,cloud.region.dc3:2", (2, 4), [0, 0, 6, 0, 6, 0]),
        ("prefer-rr", "cloud.region.dc2:1,cloud.region.dc3:2", (4, 5), [0, 0, 0, 0, 0, 12]),
    ],
)
def test_modes_keys_and_fallback_are_the_same(
    six: LocalCluster,
    client: NewClient,
    mode: str,
    keys: str | None,
    down: tuple[int, ...],
    expected: list[int],
) -> None:
    app = client(six, load_balance=mode, topology_keys=keys)
    app.touch()
    stop(six, *down)

    async def main() -> None:
        connections = [await connect(app) for _ in range(12)]
        assert app.counts() == expected
        until(app.sessions, expected)
        await close(connections)

    asyncio.run(main())
    app.check([0] * 6)


def test_a_connection_knows_its_node_and_closing_twice_counts_once(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)

    async def main() -> None:
        async with await connect(app) as conn:
            assert conn.node is not None
            assert conn.node.host == conn.info.host
            assert conn.node.connections == 1
        await conn.close()
        assert app.counts() == [0, 0, 0]

    asyncio.run(main())


def test_a_cancelled_connect_counts_nothing_wherever_it_is_cancelled(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.touch()

    async def main() -> None:
        for turns in range(25):
            task = asyncio.create_task(connect(app))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                conn = await task
            except asyncio.CancelledError:
                continue
            await conn.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # psycopg's own, on some of the turns
        asyncio.run(main())
        gc.collect()

    app.check([0, 0, 0])


@pytest.mark.usefixtures("impatient")
def test_a_connect_that_is_cancelled_at_a_frozen_node_counts_nothing(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.touch()
    for node in three.nodes:
        three.pause(node)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(connect(app), 0.5)
        assert app.counts() == [0, 0, 0]

    before = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - before < PROMPT


@pytest.mark.usefixtures("impatient")
def test_a_frozen_node_blocks_neither_the_caller_nor_the_loop(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three, yb_servers_refresh_interval=0)
    app.touch()
    three.pause(0)

    async def main() -> None:
        ticks = beats = 0
        over = threading.Event()

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        def beat() -> None:
            nonlocal beats
            while not over.wait(0.01):
                beats += 1

        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        ticking = asyncio.create_task(tick())
        before = time.monotonic()
        connections = [await connect(app) for _ in range(4)]
        took = time.monotonic() - before
        ticking.cancel()
        over.set()
        beating.join()
        assert app.counts() == [0, 2, 2]
        assert took < 4 * PROMPT
        # A loop that is held up for the time of a connect ticks hardly at all, whatever else the
        # machine does.
        assert ticks > beats / 10
        await close(connections)

    asyncio.run(main())


def test_a_wrong_password_is_raised_at_once_and_hurts_nobody(
    three: LocalCluster, client: NewClient
) -> None:
    app = client(three)
    app.touch()

    async def main() -> None:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            await connect(app, password="wrong")

    asyncio.run(main())
    assert states(three) == ["up", "up", "up"]


def test_without_balancing_it_is_psycopg(three: LocalCluster, client: NewClient) -> None:
    app = client(three)

    async def main() -> None:
        async with await connect(app, load_balance=False) as conn:
            assert isinstance(conn, psycopg.AsyncConnection)
            assert conn.node is None

    asyncio.run(main())
    assert ybsmart.clusters() == ()


def test_plain_postgresql_gives_a_plain_connection(client: NewClient) -> None:
    with LocalCluster(1, yugabyte=False, first_address="127.0.75.1") as server:
        app = client(server)

        async def main() -> None:
            async with await connect(app) as conn:
                assert conn.node is None

        asyncio.run(main())
