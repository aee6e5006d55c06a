"""Every case with every contender, for pytest-benchmark: `pytest bench`, see README.md.

A case is measured as a whole, in rounds that alternate between the contenders, when the first of
its tests runs. The tests then hand each contender's rounds to pytest-benchmark, on a clock that
stands still except for what was measured, so that its statistics, files and comparisons apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bench.cases import CASES, LABELS, Case

if TYPE_CHECKING:
    from bench.conftest import Suite

TIMED = [
    pytest.param(case, contender, id=f"{case.name}-{contender}")
    for case in CASES
    for contender in case.contenders
    if case.workload != "callgrind"
]
COUNTED = [
    pytest.param(case, contender, id=contender)
    for case in CASES
    for contender in case.contenders
    if case.workload == "callgrind"
]


class Clock:
    """Goes on by what a round took, per operation, and not otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


def _figures(suite: Suite, case: Case, contender: str) -> list[dict[str, float]]:
    if suite.quick and not case.quick:
        pytest.skip("not part of a quick run")
    samples = suite.samples(case)
    if contender in samples.missing:
        pytest.skip(samples.missing[contender])
    return samples[contender]


@pytest.mark.parametrize(("case", "contender"), TIMED)
@pytest.mark.benchmark(timer=clock)
@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # where a round failed
def test_time(benchmark: Any, suite: Suite, case: Case, contender: str) -> None:
    rounds = _figures(suite, case, contender)
    times = iter([figures["time"] for figures in rounds])

    def replay() -> None:
        clock.now += next(times, 0.0)

    benchmark.group = case.title
    benchmark.name = LABELS[contender]
    for metric in rounds[0]:
        if metric != "time":
            benchmark.extra_info[metric] = suite.samples(case).value(contender, metric)
    benchmark.pedantic(replay, rounds=len(rounds))


@pytest.mark.parametrize(("case", "contender"), COUNTED)
def test_instructions(suite: Suite, case: Case, contender: str) -> None:
    (figures,) = _figures(suite, case, contender)

    assert figures["pair"] > 0
