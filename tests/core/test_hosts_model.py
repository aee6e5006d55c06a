"""Any sequence of operations on a table of hosts, beside a dictionary."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.tables import NOW, counts


def all_of(tiers: Any) -> list[Any]:
    return [host for tier in tiers for host in tier.hosts]


class HostMachine(RuleBasedStateMachine):
    """Both builds, and the obvious: a dictionary of counts."""

    def __init__(self, cores: list[Any]) -> None:
        super().__init__()
        self.cores = cores

    @initialize(seed=st.integers(1, 2**64 - 1))
    def begin(self, seed: int) -> None:
        self.tables = [core.hosts.HostTable(seed) for core in self.cores]
        self.hosts: list[dict[str, Any]] = [{} for _ in self.cores]  # all on record, by key
        self.counts: dict[str, int] = {}
        self.info: dict[str, int] = {}
        self.listed: list[str] = []
        self.down: dict[str, float] = {}
        self.now = NOW
        self.leases: list[tuple[str, list[Any]]] = []
        self.arranged: list[tuple[list[list[str]], list[Any]]] = []

    keys = st.sampled_from("abcde")

    @rule(listed=st.lists(keys, unique=True), info=st.integers())
    def update(self, listed: list[str], info: int) -> None:
        for table, hosts in zip(self.tables, self.hosts, strict=True):
            fresh = table.update([(key, info) for key in listed])
            assert [host.key for host in fresh] == listed
            for host in fresh:
                assert hosts.get(host.key, host) is host
                hosts[host.key] = host
        self.info.update((key, info) for key in listed)
        self.listed = listed
        self.forget()

    def forget(self) -> None:
        """Hosts that are not listed and have no count are no longer on record."""
        for key in "abcde":
            if key in self.listed:
                self.counts.setdefault(key, 0)
                self.down.setdefault(key, 0.0)
            elif not self.counts.get(key):
                records: list[dict[str, Any]] = [self.counts, self.down, self.info, *self.hosts]
                for record in records:
                    record.pop(key, None)
        self.arranged = [
            (tiers, arranged)
            for tiers, arranged in self.arranged
            if self.counts.keys() >= set().union(*tiers)
        ]

    @rule(tiers=st.lists(st.sets(keys), max_size=3))
    def arrange(self, tiers: list[set[str]]) -> None:
        """More often than tiers are kept in order; some are used after the next update only."""
        wanted = [sorted(tier.intersection(self.listed)) for tier in tiers]
        self.arranged.append(
            (
                wanted,
                [
                    table.arrange([[hosts[key] for key in tier] for tier in wanted])
                    for table, hosts in zip(self.tables, self.hosts, strict=True)
                ],
            )
        )

    @precondition(lambda self: self.arranged)
    @rule(data=st.data(), tried=st.none() | st.sets(keys))
    def reserve(self, data: st.DataObject, tried: set[str] | None) -> None:
        # By index, because Hypothesis would keep what it samples from, and with it the hosts.
        wanted, arranged = self.arranged[data.draw(st.integers(0, len(self.arranged) - 1))]
        leases = [
            table.reserve(
                tiers,
                None if tried is None else {host for host in all_of(tiers) if host.key in tried},
                self.now,
            )
            for table, tiers in zip(self.tables, arranged, strict=True)
        ]
        left = [[key for key in tier if key not in (tried or ())] for tier in wanted]
        up = [[key for key in tier if self.down[key] <= self.now] for tier in left]
        best: list[str] = next((tier for tier in up + left if tier), [])
        if not best:
            assert leases == [None] * len(leases)
            return
        (chosen,) = {lease.host.key for lease in leases}
        assert chosen in best
        assert self.counts[chosen] == min(self.counts[key] for key in best)
        self.counts[chosen] += 1
        self.leases.append((chosen, leases))

    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        if self.leases:
            which = data.draw(st.integers(0, len(self.leases) - 1))
            key, leases = self.leases.pop(which)
            for lease in leases:
                assert [lease.release() for _ in range(times)] == [True, False][:times]
            self.count_off(key)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.leases:
            which = data.draw(st.integers(0, len(self.leases) - 1))
            key, leases = self.leases.pop(which)
            del leases
            for table in self.tables:
                table.hosts()  # takes notice
            self.count_off(key)

    def count_off(self, key: str) -> None:
        self.counts[key] -= 1
        self.forget()

    @rule(key=keys, seconds=st.integers(-5, 5))
    def mark_down(self, key: str, seconds: int) -> None:
        if key in self.counts:
            self.down[key] = self.now + seconds
            for table, hosts in zip(self.tables, self.hosts, strict=True):
                table.mark_down(hosts[key], self.now + seconds, "down")

    @rule(key=keys)
    def mark_up(self, key: str) -> None:
        if key in self.counts:
            self.down[key] = 0.0
            for table, hosts in zip(self.tables, self.hosts, strict=True):
                table.mark_up(hosts[key])

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def agree(self) -> None:
        for table in getattr(self, "tables", ()):
            assert counts(table) == self.counts
            assert {host.key: host.info for host in table.hosts()} == self.info
            assert {host.key for host in table.hosts() if host.listed} == set(self.listed)
            assert {host.key: host.down_until for host in table.hosts()} == self.down
            table.check()


def test_any_sequence_of_operations_counts_as_a_dictionary_would(cores: list[Any]) -> None:
    run_state_machine_as_test(
        cast(Any, lambda: HostMachine(cores)),
        settings=settings(max_examples=100, stateful_step_count=40),
    )
