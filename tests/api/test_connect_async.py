"""`AsyncConnection`: as `Connection`, on any number of event loops, cancelled anywhere."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import errors

import ybsmart
from tests.api.support import states
from tests.servers import by_node, by_server
from tests.support import in_threads, until
from tests.wire import hangs_up, listening, silent
from ybsmart import registry
from ybsmart.testing import LocalCluster

PATIENT = 60


async def close(connections: list[Any]) -> None:
    for conn in connections:
        await conn.close()


def test_thirty_tasks_that_start_cold_spread_exactly_after_one_look(
    cluster: LocalCluster, balanced: str
) -> None:
    async def main() -> None:
        connections = await asyncio.gather(
            *[ybsmart.AsyncConnection.connect(balanced) for _ in range(30)]
        )
        assert by_node(cluster) == [10, 10, 10]
        assert ybsmart.clusters()[0].refreshes == 1
        await close(connections)

    asyncio.run(main())
    assert by_node(cluster) == [0, 0, 0]


def test_it_is_a_connection_of_psycopg_with_a_node(cluster: LocalCluster, balanced: str) -> None:
    async def main() -> None:
        conn = await ybsmart.AsyncConnection.connect(
            balanced, autocommit=True, row_factory=psycopg.rows.dict_row
        )
        async with conn:
            assert isinstance(conn, psycopg.AsyncConnection)
            assert conn.autocommit
            assert conn.node is not None
            cursor = await conn.execute("SELECT host(inet_server_addr()) AS host")
            row: Any = await cursor.fetchone()
            assert row == {"host": conn.node.host}

    asyncio.run(main())


def test_without_load_balancing_it_is_psycopg(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with await ybsmart.AsyncConnection.connect(cluster.conninfo()) as conn:
            assert conn.node is None

    asyncio.run(main())
    assert ybsmart.clusters() == ()


def test_plain_postgresql_gives_a_plain_connection() -> None:
    registry.forget()

    async def main(url: str) -> None:
        for _ in range(2):
            async with await ybsmart.AsyncConnection.connect(url) as conn:
                assert conn.node is None

    with LocalCluster(1, yugabyte=False) as server:
        asyncio.run(main(server.conninfo(load_balance=True)))


def test_sync_and_async_share_the_counts(cluster: LocalCluster, balanced: str) -> None:
    sync = [ybsmart.connect(balanced) for _ in range(4)]

    async def main() -> None:
        connections = [await ybsmart.AsyncConnection.connect(balanced) for _ in range(5)]
        assert by_node(cluster) == [3, 3, 3]
        await close(connections)

    asyncio.run(main())
    assert sum(by_node(cluster)) == 4
    for conn in sync:
        conn.close()


def test_several_loops_at_the_same_time(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, yb_servers_refresh_interval=0)

    async def main() -> None:
        for _ in range(5):
            await close(
                await asyncio.gather(*[ybsmart.AsyncConnection.connect(url) for _ in range(6)])
            )

    assert not in_threads(4, lambda: asyncio.run(main()))

    assert by_node(own_cluster) == [0, 0, 0]
    assert states() == ["up", "up", "up"]
    until(lambda: by_server(own_cluster) == [0, 0, 0])


def test_it_works_under_psycopg_pool(cluster: LocalCluster, balanced: str) -> None:
    async def main() -> None:
        async with psycopg_pool.AsyncConnectionPool(
            balanced, connection_class=ybsmart.AsyncConnection, min_size=6, max_size=6, open=False
        ) as pool:
            await pool.wait()
            assert by_node(cluster) == [2, 2, 2]

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_a_silent_node_holds_nobody_up(own_cluster: LocalCluster) -> None:
    url = own_cluster.conninfo(load_balance=True, connect_timeout=PATIENT)

    async def main() -> None:
        await (await ybsmart.AsyncConnection.connect(url)).close()
        own_cluster.pause(own_cluster.nodes[0])
        connections = [await ybsmart.AsyncConnection.connect(url) for _ in range(4)]
        assert by_node(own_cluster) == [0, 2, 2]
        await close(connections)

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < PATIENT / 2
    own_cluster.resume(own_cluster.nodes[0])


def test_errors_are_those_of_the_sync_one(cluster: LocalCluster, balanced: str) -> None:
    async def main() -> None:
        with pytest.raises(ybsmart.InvalidProperty):
            await ybsmart.AsyncConnection.connect(balanced, topology_keys="a.b")
        for _ in range(2):  # cold and warm
            with pytest.raises(errors.InvalidPassword) as caught:
                await ybsmart.AsyncConnection.connect(balanced, password="wrong")
            assert caught.value.sqlstate == "28P01"
            await (await ybsmart.AsyncConnection.connect(balanced)).close()
        with pytest.raises(psycopg.OperationalError, match="no read replicas"):
            await ybsmart.AsyncConnection.connect(balanced, load_balance="only-rr")
        with pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.9:1: .*refused"):
            await ybsmart.AsyncConnection.connect("host=127.0.0.9 port=1 load_balance=true")

    asyncio.run(main())
    assert states() == ["up", "up", "up"]


def cancelled_at(step: int, make: Callable[[], Awaitable[Any]]) -> bool:
    """Cancel what is made after so many turns of the loop. True if it had come to its end."""

    async def main() -> bool:
        async def connect() -> None:
            await (await make()).close()

        task = asyncio.ensure_future(connect())
        for _ in range(step):
            await asyncio.sleep(0.0002)
        if task.done():
            return True
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return False

    return asyncio.run(main())


def test_cancelled_at_any_point_it_gives_its_place_back(
    cluster: LocalCluster, balanced: str
) -> None:
    for cold in (True, False):
        for step in range(400):
            if cold:
                registry.forget()
            done = cancelled_at(step, lambda: ybsmart.AsyncConnection.connect(balanced))
            assert set(by_node(cluster)) == {0}
            if done:
                break
        assert done
    assert states() == ["up", "up", "up"]
    until(lambda: by_server(cluster) == [0, 0, 0])


def test_a_cancelled_first_look_goes_on_for_the_others(own_cluster: LocalCluster) -> None:
    own_cluster.discovery(delay=0.5)
    url = own_cluster.conninfo(load_balance=True)

    async def main() -> None:
        first = asyncio.ensure_future(ybsmart.AsyncConnection.connect(url))
        second = asyncio.ensure_future(ybsmart.AsyncConnection.connect(url))
        await asyncio.sleep(0)
        first.cancel()
        await (await second).close()
        assert first.cancelled()

    asyncio.run(main())
    assert ybsmart.clusters()[0].refreshes == 1


@pytest.mark.usefixtures("impatient")
def test_the_loop_is_never_blocked(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything that may block runs elsewhere: seen from the threads in which it happens."""
    in_loop: list[str] = []
    loops_thread = threading.current_thread()

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is loops_thread:
                in_loop.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(socket, "getaddrinfo")
    watch(ybsmart.discovery, "ask")
    watch(ybsmart.waiting, "run")
    with listening(silent) as hole, listening(hangs_up) as broken:
        own_cluster.update(0, advertised_host="localhost")
        own_cluster.update(1, advertised_host=hole.host, advertised_port=hole.port)
        own_cluster.update(2, advertised_host=broken.host, advertised_port=broken.port)
        url = own_cluster.conninfo(load_balance=True, yb_servers_refresh_interval=0)
        url = url.replace("127.0.0.1", "localhost")

        async def main() -> None:
            for _ in range(3):
                await (await ybsmart.AsyncConnection.connect(url)).close()

        asyncio.run(main())

    assert in_loop == []


def test_connections_on_different_loops_close_independently(
    cluster: LocalCluster, balanced: str
) -> None:
    async def connect() -> ybsmart.AsyncConnection[Any]:
        return await ybsmart.AsyncConnection.connect(balanced)

    first = asyncio.Runner() if hasattr(asyncio, "Runner") else None
    if first is None:
        pytest.skip("asyncio.Runner is of Python 3.11")
    with first, asyncio.Runner() as second:
        one, two = first.run(connect()), second.run(connect())
        assert sum(by_node(cluster)) == 2
        first.run(one.close())
        assert sum(by_node(cluster)) == 1
        second.run(two.close())
    assert sum(by_node(cluster)) == 0
