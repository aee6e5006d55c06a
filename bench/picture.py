"""The picture: a few cases as bars, in an SVG that follows the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from bench.cases import CASES, LABELS
from bench.measure import Samples
from bench.report import duration

# case, metric, heading, what is plotted
PANELS = (
    ("pair", "time", "Borrow and return", "one thread, time"),
    ("block", "time", "with pool.connection()", "one thread, empty block, time"),
    ("hammer", "time", "32 threads, 8 connections", "no hold, time per loan"),
    ("hold", "cpu", "64 threads, 16 connections", "1 ms hold, CPU per loan"),
    ("query", "time", "SELECT 1 through the pool", "one thread, time"),
    ("http", "time", "A request with one query", "gunicorn, 16 threads, time per request"),
)
SHOWN = ("ybsmart", "ybsmart-pure", "psycopg_pool", "sqlalchemy", "dbutils")
COLUMNS, WIDTH, GAP, TOP, ROW, LABEL, VALUE = 2, 430, 30, 58, 24, 120, 130

STYLE = """
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #57606a; }
  .title { font-size: 15px; font-weight: 600; fill: #1f2328; }
  .ours { font-weight: 600; fill: #1f2328; }
  .value { font-variant-numeric: tabular-nums; }
  rect { fill: #afb8c1; }
  rect.ours { fill: #1a7f64; }
  rect.pure { fill: #7cc4ae; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1; }
    .title, text.ours { fill: #f0f6fc; }
    rect { fill: #545d68; }
    rect.ours { fill: #3fb68f; }
    rect.pure { fill: #24755c; }
  }
"""


def draw(results: Mapping[str, Samples]) -> str:
    panels = [panel for panel in PANELS if panel[0] in results and results[panel[0]]]
    names = {case.name for case in CASES}
    height = TOP + len(SHOWN) * ROW + 26
    rows = -(-len(panels) // COLUMNS)
    total_width = COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {rows * height}" '
        f'width="{total_width}" height="{rows * height}" role="img">',
        "<title>What a loan costs, compared with other pools; shorter is better</title>",
        f"<style>{STYLE}</style>",
    ]
    for i, (case, metric, title, what) in enumerate(panels):
        assert case in names
        x, y = (i % COLUMNS) * (WIDTH + GAP), (i // COLUMNS) * height
        values = {
            name: value
            for name in SHOWN
            if (value := results[case].value(name, metric)) is not None
        }
        # Fast because a few threads have it all: not without saying so.
        fairness = {name: results[case].value(name, "fairness") for name in values}
        unfair = {name for name, value in fairness.items() if value is not None and value < 0.5}
        parts += _panel(x, y, title, what, values, unfair)
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    x: int, y: int, title: str, what: str, values: dict[str, float], unfair: set[str]
) -> list[str]:
    longest = max(values.values())
    room = WIDTH - LABEL - VALUE
    parts = [
        f'<text class="title" x="{x}" y="{y + 18}">{escape(title)}</text>',
        f'<text x="{x}" y="{y + 37}">{escape(what)}</text>',
    ]
    for i, (name, value) in enumerate(values.items()):
        middle = y + TOP + i * ROW
        kind = {"ybsmart": ' class="ours"', "ybsmart-pure": ' class="pure"'}.get(name, "")
        text = ' class="ours"' if name == "ybsmart" else ""
        width = max(2.0, room * value / longest)
        label = LABELS[name].replace("ybsmart, ", "")
        figure = duration(value) + (", starving" if name in unfair else "")
        parts += [
            f'<text{text} x="{x}" y="{middle + 4}">{escape(label)}</text>',
            f'<rect{kind} x="{x + LABEL}" y="{middle - 7}" width="{width:.1f}" height="15" '
            'rx="2"/>',
            f'<text class="value{" ours" if name == "ybsmart" else ""}" '
            f'x="{x + LABEL + width + 6:.1f}" y="{middle + 4}">{figure}</text>',
        ]
    return parts
