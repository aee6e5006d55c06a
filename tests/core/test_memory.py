"""Memory that is not to be had: one allocation fails, wherever that may be, and nothing is lost."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.core.shell import Conn, MakePool

testcapi = pytest.importorskip("_testcapi", reason="this Python cannot be made to lack memory")


@pytest.fixture(autouse=True)
def compiled_only(core: Any) -> None:
    if core.name == "python":
        pytest.skip("each of its bytecodes may allocate")


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """The collector has allocations of its own, and reports those that fail as errors."""
    gc.disable()
    yield
    gc.enable()


def every_failure(make: Callable[[], Callable[[], object]]) -> Iterator[bool]:
    """Do what `make` returns, each time with another of its allocations failing, until none does.

    Yield after each whether there was an error."""
    make()()  # once before: Python 3.10 keeps the frame of a first call for the next ones
    for allocation in count():
        action = make()
        failed = False
        testcapi.set_nomemory(allocation, allocation + 1)
        try:
            action()
        except MemoryError:
            failed = True
        finally:
            testcapi.remove_mem_hooks()
        yield failed
        if not failed and allocation > 50:
            return


def test_a_new_connection_that_finds_no_memory_leaves_nothing_behind(make_pool: MakePool) -> None:
    made: list[tuple[Any, list[Conn]]] = []

    def make() -> Callable[[], object]:
        pool = make_pool(9)
        made.append((pool, pool.grow(*"aaaa")))  # the next one makes the set of them grow
        request = pool.request()
        opening, conn = pool.asked.pop(), Conn(9)
        del request
        return lambda: pool._opened(opening, conn, "b", "b", 1e18)

    failures = 0
    for failed in every_failure(make):
        pool, held = made.pop()
        failures += failed
        assert pool.connecting_count == len(pool.asked)
        assert failed or pool.total_count == 5
        pool.check()
        assert len(held) == pool._snapshot()["shelves"]["a"][1] == 4
    assert failures


def test_a_connection_that_is_closed_without_memory_gives_its_place_back(
    make_pool: MakePool,
) -> None:
    pools: list[Any] = []

    def make() -> Callable[[], object]:
        pool = make_pool(1)
        pools.append(pool)
        (conn,) = pool.grow("a")
        putconn = pool.putconn  # before that, too, which Python 3.10 makes an object for
        return lambda: putconn(conn, discard=True)

    failures = 0
    for failed in every_failure(make):
        pool = pools.pop()
        failures += failed
        assert pool.total_count == 0
        pool.check()
    assert failures
