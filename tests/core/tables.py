"""Tables of hosts for tests, and their counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

SEED = 20240229
NOW = 100.0


def make_table(core: Any, *keys: str, seed: int = SEED) -> tuple[Any, tuple[Any, ...]]:
    table = core.hosts.HostTable(seed)
    return table, table.update([(key, None) for key in keys])


def reserve(table: Any, tiers: Any, now: float = NOW, tried: set[Any] | None = None) -> Any:
    """Out of tiers that are arranged for this once; all but the first few are not kept in order."""
    return table.reserve(table.arrange(tiers), tried, now)


def counts(table: Any) -> dict[str, int]:
    return {host.key: host.count for host in table.hosts()}


def in_threads(actions: Iterable[Callable[[], object]]) -> None:
    """Run the actions at the same time, and raise what the first of them to fail raised."""
    actions = list(actions)
    start = threading.Barrier(len(actions))
    errors: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        start.wait()
        try:
            action()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
