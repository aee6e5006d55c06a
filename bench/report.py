"""The table: what everybody needs in each case, and which figures are reached."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.cases import CASES, LABELS, TIMES, Case, Target
from bench.measure import Samples

Results = Mapping[str, Samples]
# What is between such marks on a page is generated.
MARKS = ("<!-- {}: begin -->", "<!-- {}: end -->")

HEADS = {
    "time": "time",
    "cpu": "CPU",
    "fairness": "fewest/most",
    "median wait": "median wait",
    "p99 wait": "p99 wait",
    "p99/median": "p99/median",
    "p99 latency": "p99",
    "bytes": "bytes",
    "pair": "pair",
    "block": "with block",
}


@dataclass
class Outcome:
    """A target, and what became of it."""

    value: float | None
    spread: tuple[float, float] | None
    verdict: str


def outcome(case: Case, target: Target, results: Results) -> Outcome:
    mine = results.get(case.name)
    if mine is None:
        return Outcome(None, None, "not measured")
    rival_case, _, rival = (target.against or "").rpartition(":")
    theirs = results.get(rival_case) if rival_case else mine
    for name in (target.subject, rival):
        if name in mine.missing:
            return Outcome(None, None, f"not measured: {mine.missing[name]}")
    value = _value(target, mine, theirs, rival, None)
    if value is None:
        return Outcome(None, None, "not measured")
    spread = None
    if theirs is mine and not target.minus:
        number = len(mine[target.subject])
        values = [_value(target, mine, theirs, rival, i) for i in range(number)]
        paired = [v for v in values if v is not None]
        spread = (min(paired), max(paired))

    def reaches(bound: float) -> bool:
        return value >= bound if target.better == "higher" else value <= bound

    if target.aim is not None and reaches(target.aim):
        verdict = "yes, and the aim"
    else:
        verdict = "yes" if reaches(target.must) else "no"
    return Outcome(value, spread, verdict)


def _value(
    target: Target, mine: Samples, theirs: Samples | None, rival: str, i: int | None
) -> float | None:
    """The target's figure, of all rounds or of one."""

    def get(samples: Samples | None, who: str) -> float | None:
        if samples is None:
            return None
        if i is None:
            return samples.value(who, target.metric)
        rounds = samples.get(who, [])
        return rounds[i].get(target.metric) if i < len(rounds) else None

    ours = get(mine, target.subject)
    if ours is None or target.against is None:
        return None if ours is None else ours * target.scale
    other = get(theirs, rival)
    if other is None:
        return None
    if target.minus:
        base, other_base = (get(mine, who) for who in target.minus)
        if base is None or other_base is None:
            return None
        ours, other = max(0.0, ours - base), other - other_base
    top, bottom = (other, ours) if target.better == "higher" else (ours, other)
    return top / bottom if bottom > 0 else None


def duration(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if seconds >= scale:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{seconds / 1e-9:.1f} ns"


def _digits(value: float) -> str:
    """Three digits, and no more precision than there is."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric in ("pair", "block", "bytes"):
        return f"{value:,.0f}".replace(",", " ")
    if metric in ("fairness", "p99/median"):
        return f"{value:.2f}"
    return duration(value)


def target_rows(results: Results) -> list[list[str]]:
    rows = [["case", "figure", "must (aim)", "measured", "rounds", "reached"]]
    for case in CASES:
        for target in case.targets:
            if case.name not in results:
                continue
            got = outcome(case, target, results)
            sign = "≥" if target.better == "higher" else "≤"
            aim = f" ({_number(target.aim)})" if target.aim is not None else ""
            bounds = f"{sign} {_number(target.must)}{aim}{target.unit}"
            value = "" if got.value is None else f"{_digits(got.value)}{target.unit}"
            spread = "" if got.spread is None else "{} … {}".format(*map(_digits, got.spread))
            rows.append([case.title, target.text, bounds, value, spread, got.verdict])
    return rows


def _number(value: float) -> str:
    return f"{value:g}"


def case_rows(case: Case, samples: Samples) -> list[list[str]]:
    """All contenders of a case; the ratio is theirs to ours, of the first metric."""
    leading = case.metrics[0]
    rows = [["", *(HEADS[metric] for metric in case.metrics), "ratio"]]
    first = case.contenders[0]
    base = samples.value(first, leading)
    for contender in case.contenders:
        if contender not in samples:
            if contender in samples.missing:
                empty = [""] * len(case.metrics)
                rows.append([LABELS[contender], *empty, samples.missing[contender]])
            continue
        values = [samples.value(contender, metric) for metric in case.metrics]
        cells = [_cell(m, v) for m, v in zip(case.metrics, values, strict=True)]
        ratio = f"{_digits(values[0] / base)}{TIMES}" if base and values[0] else ""
        rows.append([LABELS[contender], *cells, ratio])
    return rows


def _measured(results: Results) -> Iterable[tuple[Case, Samples]]:
    return ((case, results[case.name]) for case in CASES if case.name in results)


def text(results: Results, where: Mapping[str, str]) -> str:
    parts = ["; ".join(f"{key}: {value}" for key, value in where.items())]
    for case, samples in _measured(results):
        parts.append(f"{case.title.replace('`', '')}\n{_aligned(case_rows(case, samples))}")
    rows = target_rows(results)
    if len(rows) > 1:
        parts.append(f"figures to reach\n{_aligned(rows)}")
    return "\n\n".join(parts) + "\n"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell + " " * (width - _width(cell)) if i == 0 else " " * (width - _width(cell)) + cell
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "   ".join(cells).rstrip())
    return "\n".join(lines)


def _width(cell: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in cell)


def markdown(results: Results, where: Mapping[str, str], *, brief: bool = False) -> str:
    """The table; `brief`: of the figures to reach alone."""
    parts = ["; ".join(f"{key}: {value}" for key, value in where.items()) + "."]
    rows = target_rows(results)
    if len(rows) > 1:
        parts.append(_markdown_table(rows, left=2))
    if brief:
        return "\n\n".join(parts) + "\n"
    for case, samples in _measured(results):
        parts.append(f"### {case.title}")
        parts.append(_markdown_table(case_rows(case, samples), left=1))
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: list[list[str]], left: int) -> str:
    rule = ["---" if i < left else "---:" for i in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def publish(table: str, name: str, path: Path) -> None:
    """Put a table between the marks with its name in a file."""
    begin, end = (mark.format(name) for mark in MARKS)
    before, _, rest = path.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{path} has no place for the table: no {begin} with {end} after it")
    path.write_text(f"{before}{begin}\n{table}{end}{after}")
