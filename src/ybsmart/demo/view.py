"""The demo on a terminal: a table with bars that moves, drawn with rich.

Decides what a frame looks like, on the screen and as a picture. Must never put a foreign text on
the screen as it came, nor interpret it as markup. Needs rich, so only `demo.run` imports it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from . import texts
from .states import NodeState, Phase, Progress, Snapshot

_STATES = {"up": "green", "passed over": "yellow", "killed": "bold red"}


class LiveView:
    """One frame after the other in the same place; at the end, what happened in each phase."""

    INTERVAL = 1 / 15

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(), auto_refresh=False)

    def begin(self) -> None:
        self._live.start()

    def update(self, progress: Progress, stopping: bool) -> None:
        self._live.update(frame(progress.now, stopping=stopping), refresh=True)

    def end(self, progress: Progress) -> None:
        if progress.now.phase is Phase.CLOSED:
            self._live.update(summary(progress.completed))
        self._live.stop()


def frame(snapshot: Snapshot, *, stopping: bool = False) -> RenderableType:
    """What there is to see at one moment."""
    headline = "Stopping: closing everything" if stopping else texts.headline(snapshot)
    parts: list[RenderableType] = [
        _steps(snapshot.phase),
        Text(),
        Text(headline, style="bold"),
        Text("" if stopping else texts.reason(snapshot)),
        Text(texts.printable(snapshot.call), style="cyan"),
    ]
    if snapshot.nodes:
        parts.append(_nodes(snapshot))
    if snapshot.load is not None:
        parts.append(Text(texts.totals(snapshot.load)))
        if error := texts.last_error(snapshot.load):
            parts.append(Text(f"last error: {error}", style="dim"))
    return Group(*parts)


def _steps(current: Phase) -> Text:
    """The phases in one line, with the current one marked."""
    line = Text(overflow="fold")
    before = True
    for phase, words in texts.SHORT.items():
        if phase is current:
            before = False
            style = "bold reverse"
        else:
            style = "green" if before else "dim"
        line.append(f" {words} ", style)
    return line


def _nodes(snapshot: Snapshot) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim"
    )
    table.add_column("node", no_wrap=True)
    table.add_column("zone", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=11)
    table.add_column("connections", ratio=1, no_wrap=True)
    table.add_column("server\ncounts", justify="right")
    table.add_column("requests\nper second", justify="right")
    for node in snapshot.nodes:
        state = texts.state(node)
        table.add_row(
            Text(texts.printable(node.address)),
            Text(texts.printable(node.zone)),
            Text(state, _STATES[state]),
            _Bar(node.connections, texts.full_bar(snapshot)),
            Text("-" if node.sessions is None else str(node.sessions)),
            Text(texts.rate(node)),
        )
    return table


class _Bar:
    """A number, and in front of it a bar that is as wide as there is room for a full one."""

    def __init__(self, number: int, full: int) -> None:
        self._number = number
        self._share = min(number / full, 1.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Not the full block: bars below each other would grow together.
        cell = "#" if options.ascii_only else "\N{LOWER SEVEN EIGHTHS BLOCK}"
        number = f" {self._number}" if self._number else "0"
        bar = cell * round(self._share * max(options.max_width - 3, 0))
        yield Segment(bar, Style.parse("green"))
        yield Segment(number, Style.parse("bold"))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(3, options.max_width)


def summary(completed: Sequence[Snapshot]) -> RenderableType:
    """What came of each phase: connections per node, requests per second below."""
    last = completed[-1]
    nodes = completed[0].nodes
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("")
    for node in nodes:
        table.add_column(f"{texts.printable(node.address)}\n{texts.printable(node.zone)}")
    table.add_column("failed", justify="right")
    for snapshot in completed:
        if snapshot.phase not in (Phase.START, Phase.CLOSED):
            failed = "" if snapshot.load is None else str(snapshot.load.failed)
            cells = [_outcome(node) for node in snapshot.nodes]
            table.add_row(Text(texts.SHORT[snapshot.phase]), *cells, Text(failed))
    parts: list[RenderableType] = [Text(texts.TITLE, style="bold"), table]
    if last.load is not None:
        parts.append(Text(texts.totals(last.load)))
    return Group(*parts, Text(texts.headline(last), style="bold green"))


def _outcome(node: NodeState) -> Text:
    if not node.running:
        return Text("killed", _STATES["killed"])
    text = Text(f"{node.connections:2}", "bold")
    if node.rate is not None:
        text.append(f"  {texts.rate(node)}/s", "not bold")
    return text


# As a picture


def draw(snapshot: Snapshot, path: Path) -> None:
    """Write a frame as SVG. OSError if that fails."""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=90,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        legacy_windows=False,
    )
    console.print(frame(snapshot))
    svg = console.export_svg(title=texts.TITLE, code_format=_SVG, unique_id="demo")
    path.write_text(svg, encoding="utf-8")


# rich's own format loads its font from the network; this one uses what the reader has.
_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix, .{unique_id}-title {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}
.{unique_id}-matrix {{ font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
