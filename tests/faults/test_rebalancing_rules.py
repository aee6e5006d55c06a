"""What is moved where, on paper: from any state to balance, in as few moves as that takes."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ybsmart.rebalancing import FIRST_DOUBT, LAST_DOUBT, PAUSE, NodeLoad, Pace, surplus
from ybsmart.tending import Tending


@dataclass
class Node:
    """One node: what each pool has there, and what nobody can move."""

    pools: list[int]
    foreign: int
    up: bool
    cap: int | None = None

    @property
    def total(self) -> int:
        return sum(self.pools) + self.foreign

    def takes_more(self, pool: int) -> bool:
        return self.up and (self.cap is None or self.pools[pool] < self.cap)


@dataclass
class World:
    tiers: list[list[Node]]
    lots: random.Random = field(default_factory=lambda: random.Random(1))

    def seen_by(self, pool: int) -> list[list[NodeLoad]]:
        return [
            [
                NodeLoad(f"{i}.{j}", node.total, node.pools[pool], node.takes_more(pool))
                for j, node in enumerate(tier)
            ]
            for i, tier in enumerate(self.tiers)
        ]

    def node(self, key: str) -> Node:
        i, j = key.split(".")
        return self.tiers[int(i)][int(j)]

    def connect(self, pool: int) -> Node:
        """Where a new connection goes: as `HostTable.reserve` decides, ties at random."""
        for tier in self.tiers:
            takers = [node for node in tier if node.takes_more(pool)]
            if takers:
                fewest = min(node.total for node in takers)
                return self.lots.choice([node for node in takers if node.total == fewest])
        raise AssertionError("nowhere to go")

    def move(self, pool: int) -> bool:
        """One step of rebalancing; False when there is nothing to do."""
        key = surplus(self.seen_by(pool))
        if key is None:
            return False
        source = self.node(key)
        source.pools[pool] -= 1
        target = self.connect(pool)
        assert target is not source
        target.pools[pool] += 1
        return True

    def level(self, pool: int) -> int | None:
        return next(
            (i for i, tier in enumerate(self.tiers) if any(n.takes_more(pool) for n in tier)), None
        )


@st.composite
def worlds(draw: st.DrawFn, pools: int = 1, capped: bool = False) -> World:
    counts = st.lists(st.integers(0, 8), min_size=pools, max_size=pools)
    cap = draw(st.integers(1, 8)) if capped else None
    node = st.builds(Node, counts, st.integers(0, 4), st.booleans(), st.just(cap))
    tiers = draw(st.lists(st.lists(node, min_size=1, max_size=4), min_size=1, max_size=3))
    return World(tiers, random.Random(draw(st.integers(0, 2**32))))


def fewest_moves(world: World) -> int:
    """All from below the level; then, as water finds its own level, those above it."""
    level = world.level(0)
    if level is None:
        return 0
    moves = sum(n.pools[0] for tier in world.tiers[level + 1 :] for n in tier)
    totals = {id(n): n.total for n in world.tiers[level]}
    own = {id(n): n.pools[0] for n in world.tiers[level]}
    open_ = [n for n in world.tiers[level] if n.up]
    for _ in range(moves):
        least = min(open_, key=lambda n: totals[id(n)])
        totals[id(least)] += 1
        own[id(least)] += 1
    while True:
        least = min(open_, key=lambda n: totals[id(n)])
        movable = [n for n in world.tiers[level] if own[id(n)]]
        if not movable:
            return moves
        most = max(movable, key=lambda n: totals[id(n)])
        if totals[id(most)] - totals[id(least)] < 2:
            return moves
        for node, step in ((most, -1), (least, 1)):
            totals[id(node)] += step
            own[id(node)] += step
        moves += 1


@given(worlds())
def test_from_any_state_to_balance_in_as_few_moves_as_it_takes(world: World) -> None:
    before = sum(n.pools[0] for tier in world.tiers for n in tier)
    expected = fewest_moves(world)
    moves = 0
    while world.move(0):
        moves += 1
        assert moves <= expected
    assert moves == expected
    assert sum(n.pools[0] for tier in world.tiers for n in tier) == before
    level = world.level(0)
    if level is not None:
        assert not any(n.pools[0] for tier in world.tiers[level + 1 :] for n in tier)
        fewest = min(n.total for n in world.tiers[level] if n.up)
        assert all(n.total <= fewest + 1 for n in world.tiers[level] if n.pools[0])


@given(worlds(capped=True))
def test_max_per_node_is_kept_to(world: World) -> None:
    full = {id(n): n.pools[0] for tier in world.tiers for n in tier}
    for _ in range(200):
        if not world.move(0):
            break
    else:
        raise AssertionError("it goes on for ever")
    for tier in world.tiers:
        for n in tier:
            assert n.cap is None or n.pools[0] <= max(n.cap, full[id(n)])


@given(worlds(pools=3), st.randoms(use_true_random=False))
def test_several_pools_come_to_rest_in_any_order(world: World, order: random.Random) -> None:
    total = sum(n.total for tier in world.tiers for n in tier)
    moves = 0
    while True:
        pools = [0, 1, 2]
        order.shuffle(pools)
        moved = [pool for pool in pools if world.move(pool)]
        if not moved:
            break
        moves += len(moved)
        assert moves <= 2 * total


@given(worlds(pools=4))
def test_pools_that_decide_at_the_same_moment_come_to_rest_too(world: World) -> None:
    """Each closes its surplus before any of the new connections counts: they may go too far once,
    but never back and forth."""
    rounds = 0
    while True:
        closed = []
        for pool in range(4):
            key = surplus(world.seen_by(pool))
            if key is not None:
                world.node(key).pools[pool] -= 1
                closed.append(pool)
        for pool in closed:
            world.connect(pool).pools[pool] += 1
        if not closed:
            break
        rounds += 1
        assert rounds <= 200


def test_no_node_in_service_or_nothing_to_gain_moves_nothing() -> None:
    assert surplus([]) is None
    assert surplus([[NodeLoad("a", 9, 9, False), NodeLoad("b", 0, 0, False)]]) is None
    assert surplus([[NodeLoad("a", 5, 5, True), NodeLoad("b", 4, 4, True)]]) is None
    # The surplus is somebody else's.
    assert surplus([[NodeLoad("a", 9, 0, True), NodeLoad("b", 0, 0, True)]]) is None


def test_a_better_level_that_is_down_keeps_what_it_has() -> None:
    better, worse = NodeLoad("a", 3, 3, False), NodeLoad("b", 0, 0, True)
    assert surplus([[better], [worse]]) is None


def test_the_pace_is_bounded() -> None:
    pace = Pace()
    assert pace.begin(10.0, "a", 6) == 0.0
    assert pace.begin(10.0, "b", 6) == pytest.approx(PAUSE)
    assert pace.begin(10.0 + PAUSE, "b", 6) == 0.0
    assert pace.begin(10.1 + 2 * PAUSE, "a", 5) == 0.0
    assert pace.begin(10.1 + 2 * PAUSE, "a", 4) == pytest.approx(PAUSE)


def test_moves_in_vain_become_rare_and_those_that_help_do_not() -> None:
    pace, now, times = Pace(), 0.0, []
    while now < 300:
        wait = pace.begin(now, "a", 6)
        if wait:
            now += wait
        else:
            times.append(now)
    pauses = [round(after - before, 3) for before, after in itertools.pairwise(times)]
    assert pauses[:4] == [PAUSE, FIRST_DOUBT, 2 * FIRST_DOUBT, 4 * FIRST_DOUBT]
    assert max(pauses) == LAST_DOUBT
    now += LAST_DOUBT
    assert pace.begin(now, "a", 5) == 0.0
    assert pace.begin(now, "a", 4) == pytest.approx(PAUSE)
    pace.rest()
    assert pace.begin(now + PAUSE, "a", 6) == 0.0
    assert pace.begin(now + PAUSE, "a", 6) == pytest.approx(PAUSE)


@pytest.mark.parametrize("trouble", ["failing", "on a detour", "closed", "switched off"])
def test_in_trouble_no_connection_is_awaited_any_more_to_be_moved(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = [[NodeLoad("a", 4, 4, True), NodeLoad("b", 0, 0, True)]]
    monkeypatch.setattr(Tending, "_loads", lambda *_: loads)
    shed: list[str | None] = []
    pool: Any = SimpleNamespace(
        name="pool",
        rebalance=True,
        closed=False,
        connecting_count=0,
        _backoff=SimpleNamespace(failures=0),
        _shed=shed.append,
    )
    detour: list[str] = []
    cluster: Any = SimpleNamespace(on_detour=lambda: bool(detour))
    host = SimpleNamespace(count=4, last_error="", info=SimpleNamespace(address="a:1"))
    nodes: Any = {"a": host}
    tending, request = Tending(), Any
    tending._rebalance(pool, cluster, request, nodes)  # type: ignore[arg-type]
    assert shed == ["a"]

    pool._backoff.failures = int(trouble == "failing")
    detour += ["b"] if trouble == "on a detour" else []
    pool.closed = trouble == "closed"
    pool.rebalance = trouble != "switched off"
    tending._rebalance(pool, cluster, request, nodes)  # type: ignore[arg-type]
    assert shed == ["a", None]
