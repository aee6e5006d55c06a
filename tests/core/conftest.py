"""Fixtures for tests of the core. `core` itself is in tests/conftest.py."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import EAGER, IMPLS, load_core, parts_of
from tests.core.shell import make_shell


@pytest.fixture(scope="session")
def cores(request: pytest.FixtureRequest) -> list[Any]:
    """The builds under test side by side, for tests that drive them in step."""
    impl = request.config.option.impl
    return [load_core(name) for name in IMPLS if impl in ("all", name)]


@pytest.fixture(scope="session")
def stress_seconds() -> float:
    """How long a test with real threads goes on; from 10 on, others are more thorough as well."""
    return float(os.environ.get("YBSMART_STRESS_SECONDS", "1"))


@pytest.fixture
def make_pool(core: Any) -> Iterator[Callable[..., Any]]:
    """Makes pools; after the test they are checked, and no actor is left behind."""
    shell = make_shell(core)
    pools: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        pools.append(shell(*args, **options))
        return pools[-1]

    yield make
    for pool in pools:
        for actor in pool.actors:
            actor.abandon()
        pool.check()


class Clock:
    """The pool's clock; it stands still unless `now` is set."""

    def __init__(self, stop: Callable[[float], object]) -> None:
        self._stop = stop
        self.now = 1000.0

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        self._stop(now)


@pytest.fixture
def clock(core: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """See there. For both builds."""

    def stop(at: float) -> None:
        for part in parts_of(core.pool):
            monkeypatch.setattr(part, "monotonic", lambda: at, raising=False)

    if not core.pool.is_compiled():
        yield Clock(stop)
        return
    yield Clock(core.pool._stop_clock)
    core.pool._stop_clock(-1.0)


@pytest.fixture
def eager_gc() -> Iterator[None]:
    """The garbage collector runs at every occasion."""
    # What the session has accumulated would make each of these runs slow. It stays frozen: to
    # unfreeze it would unfreeze what `pytest_collection_finish` has, too.
    gc.collect()
    gc.freeze()
    threshold = gc.get_threshold()
    gc.set_threshold(EAGER)
    yield
    gc.set_threshold(*threshold)
