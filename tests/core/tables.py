"""Tables of hosts for tests, and their counts."""

from __future__ import annotations

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
