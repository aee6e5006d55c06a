"""The faults under load, ours beside others: a table and a picture.

    python -m bench.faults [--rival-python PATH] [--only NAME ...] [--fault NAME ...] [--publish]

PATH is an interpreter with `psycopg-yugabytedb[binary]`, which takes the place of psycopg, and
`psycopg_pool`. What was seen is kept in .benchmarks/; `--publish` writes what there is into
docs/failure_behaviour.md and docs/failures.svg. Black holes need root and nftables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path

from bench import report
from bench.measure import ROOT
from tests.faults.client import Request
from tests.faults.load import BY_NAME, FAULTS, Outcome, can_drop, observe

KEPT = ROOT / ".benchmarks"
PAGE, PICTURE = ROOT / "docs" / "failure_behaviour.md", ROOT / "docs" / "failures.svg"
LABELS = {
    "ybsmart": "ybsmart",
    "yugabytedb": "psycopg_pool on psycopg-yugabytedb",
    "yugabytedb-check": "the same, with `check`",
    "psycopg": "psycopg_pool on psycopg, all hosts",
}
TRIED = {
    "killed": "node killed, started after 6 s",
    "stopped": "node stopped (SIGSTOP) for 15 s",
    "black-holed": "node black-holed for 20 s",
    "restarted": "node restarted",
    "all restarted": "all restarted, one by one",
    "drained": "node taken off the list for 6 s",
    "added": "node added",
}

Results = dict[str, dict[str, Outcome]]  # by contender and fault


def keep(contender: str, outcome: Outcome) -> None:
    KEPT.mkdir(exist_ok=True)
    about = {
        "requests": [list(r) for r in outcome.requests],
        "times": [outcome.began, outcome.begun, outcome.ended],
        "spread": outcome.spread,
        "victims": outcome.victims,
    }
    _file(contender, outcome.fault.name).write_text(json.dumps(about))


def kept() -> Results:
    results: Results = {}
    for contender in LABELS:
        for fault in FAULTS:
            file = _file(contender, fault.name)
            if file.exists():
                about = json.loads(file.read_text())
                requests = [Request(*r) for r in about["requests"]]
                spread = [(at, counts) for at, counts in about["spread"]]
                began, begun, ended = about["times"]
                outcome = Outcome(fault, requests, began, begun, ended, spread, about["victims"])
                results.setdefault(contender, {})[fault.name] = outcome
    return results


def _file(contender: str, fault: str) -> Path:
    return KEPT / f"fault-{fault.replace(' ', '-')}-{contender}.json"


# The table


def table(results: Results) -> str:
    head = "| fault | pool | requests | failed | longest wait | slowest second | even again |"
    lines = [head, "| --- " * 7 + "|"]
    for fault in FAULTS:
        for contender, outcomes in results.items():
            outcome = outcomes.get(fault.name)
            if outcome is not None:
                first = contender == next(iter(results))
                lines.append(_row(TRIED[fault.name] if first else "", contender, outcome))
    return "\n".join(lines)


def _row(fault: str, contender: str, outcome: Outcome) -> str:
    hanging = any("still waiting" in r.error for r in outcome.failed)
    after = outcome.even_after
    if after is None:
        even = f"no: {'/'.join(map(str, outcome.final))}"
    else:
        even = f"{after:.1f} s"
    if outcome.fault.name == "drained":
        left = outcome.empty_after
        even = (f"left after {left:.1f} s; " if left is not None else "never left; ") + even
    cells = (
        fault,
        LABELS[contender] if contender != "ybsmart" else "**ybsmart**",
        f"{len(outcome.requests):,}".replace(",", " "),
        str(len(outcome.failed)),
        f"{outcome.longest:.2f} s" + (", and not over" if hanging else ""),
        f"{100 * outcome.slowest_second:.0f} %",
        even,
    )
    return f"| {' | '.join(cells)} |"


def errors(results: Results) -> str:
    """What the failed requests were told, for whoever looks into it."""
    lines = []
    for contender, outcomes in results.items():
        for name, outcome in outcomes.items():
            for text, count in Counter(
                r.error.split("\n")[0][:110] for r in outcome.failed
            ).items():
                lines.append(f"{contender:17} {name:14} {count:5} {text}")
    return "\n".join(lines)


# The picture

SHOWN = (("ybsmart", "ybsmart"), ("yugabytedb", "psycopg_pool on psycopg-yugabytedb"))
PLOTTED = (
    ("killed", "Node killed"),
    ("stopped", "Node stopped"),
    ("all restarted", "All restarted"),
)
WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM, STEP = 430, 120, 44, 54, 62, 34, 0.25

STYLE = """
  text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #57606a; }
  .title { font-size: 15px; font-weight: 600; fill: #1f2328; }
  .fault { fill: #d1242f; opacity: 0.10; }
  .axis { stroke: #afb8c1; }
  .line { fill: none; stroke: #afb8c1; stroke-width: 1.6; }
  .line.ours { stroke: #1a7f64; }
  .error { fill: #d1242f; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1; }
    .title { fill: #f0f6fc; }
    .fault { opacity: 0.22; }
    .axis { stroke: #545d68; }
    .line { stroke: #7d8590; }
    .line.ours { stroke: #3fb68f; }
    .error { fill: #f85149; }
  }
"""


def draw(results: Results) -> str:
    rows = [f for f, _ in PLOTTED if all(f in results.get(c, {}) for c, _ in SHOWN)]
    titles = dict(PLOTTED)
    high = TOP + HEIGHT + BOTTOM
    width = 2 * (LEFT + WIDTH) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {high * len(rows)}" '
        f'width="{width}" height="{high * len(rows)}" role="img">',
        "<title>Requests per second and failed requests while a node fails</title>",
        f"<style>{STYLE}</style>",
    ]
    for i, fault in enumerate(rows):
        most = max(max(_rates(results[c][fault])) for c, _ in SHOWN)
        for j, (contender, label) in enumerate(SHOWN):
            x, y = j * (LEFT + WIDTH + GAP), i * high
            parts += _panel(x, y, f"{titles[fault]}: {label}", results[contender][fault], most)
    return "\n".join([*parts, "</svg>\n"])


def _rates(outcome: Outcome) -> list[float]:
    """Requests per second that ended well, by step of time since the first."""
    first = min(r.started for r in outcome.requests)
    ends = [int((r.ended - first) / STEP) for r in outcome.requests if not r.error]
    count = Counter(ends)
    return [count[i] / STEP for i in range(max(ends))]  # the last step is not a whole one


def _panel(x: int, y: int, title: str, outcome: Outcome, most: float) -> list[str]:
    rates = _rates(outcome)
    first = min(r.started for r in outcome.requests)
    span = len(rates) * STEP
    bottom = y + TOP + HEIGHT

    def at(seconds: float) -> float:
        return x + LEFT + WIDTH * min(max(seconds / span, 0.0), 1.0)

    ours = " ours" if title.endswith(": ybsmart") else ""
    points = " ".join(
        f"{at((i + 0.5) * STEP):.1f},{bottom - HEIGHT * rate / most:.1f}"
        for i, rate in enumerate(rates)
    )
    begin, end = at(outcome.began - first), at(outcome.ended - first)
    failed = Counter(int((r.ended - first) / STEP) for r in outcome.failed)
    after = outcome.even_after
    even = "even again " + (f"after {after:.1f} s" if after is not None else "not at all")
    if after is None:
        even += f": {'/'.join(map(str, outcome.final))}"
    told = f"{len(outcome.failed)} failed, longest wait {outcome.longest:.1f} s, {even}"
    parts = [
        f'<text class="title" x="{x}" y="{y + 18}">{escape(title)}</text>',
        f'<text x="{x}" y="{y + 37}">{escape(told)}</text>',
        f'<rect class="fault" x="{begin:.1f}" y="{y + TOP}" width="{max(end - begin, 2):.1f}" '
        f'height="{HEIGHT}"/>',
        f'<line class="axis" x1="{x + LEFT}" y1="{bottom}" x2="{x + LEFT + WIDTH}" y2="{bottom}"/>',
        f'<polyline class="line{ours}" points="{points}"/>',
        f'<text x="{x + LEFT - 6}" y="{y + TOP + 8}" text-anchor="end">{most:.0f}/s</text>',
        f'<text x="{x + LEFT - 6}" y="{bottom}" text-anchor="end">0</text>',
    ]
    for i, count in failed.items():
        radius = min(2.5 + count / 3, 7)
        parts.append(
            f'<circle class="error" cx="{at((i + 0.5) * STEP):.1f}" cy="{bottom}" '
            f'r="{radius:.1f}"><title>{count} failed</title></circle>'
        )
    for seconds in range(0, int(span) + 1, 5):
        parts.append(
            f'<text x="{at(seconds):.1f}" y="{bottom + 16}" text-anchor="middle">{seconds} s</text>'
        )
    return parts


def publish(results: Results) -> None:
    report.publish(f"\n{table(results)}\n\n", "table", PAGE)
    PICTURE.write_text(draw(results))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="The faults under load, ours beside others.")
    parser.add_argument("--rival-python", help="an interpreter with psycopg-yugabytedb")
    parser.add_argument("--only", nargs="*", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--fault", nargs="*", choices=list(BY_NAME), default=list(BY_NAME))
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args(arguments)
    pythons: Mapping[str, str | None] = {
        "ybsmart": sys.executable,
        "psycopg": sys.executable,
        "yugabytedb": options.rival_python,
        "yugabytedb-check": options.rival_python,
    }
    for contender in options.only:
        python = pythons[contender]
        for fault in options.fault:
            if python is None or (fault == "black-holed" and not can_drop()):
                print(f"skipped: {contender}, {fault}", flush=True)
                continue
            keep(contender, observe(BY_NAME[fault], contender, python))
            print(_row(fault, contender, kept()[contender][fault]), flush=True)
    results = kept()
    print(table(results))
    print(errors(results))
    if options.publish:
        publish(results)


if __name__ == "__main__":
    main(sys.argv[1:])
