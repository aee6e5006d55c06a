"""The demo's views, on recorded snapshots: no servers, no terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from ybsmart.demo import texts
from ybsmart.demo.plain import PlainView
from ybsmart.demo.states import LoadState, NodeState, Phase, Progress, Snapshot

if TYPE_CHECKING:
    from rich.console import Console

EVIL = "\x1b]0;owned\x07\x1b[31m[bold]\u202e\r\n\x9b2J"

_NODE = NodeState("127.0.0.1:5433", "us-west-2a", True, False, 10, 10, None, 0)
_OTHERS = (("127.0.0.2:5433", "us-west-2a"), ("127.0.0.3:5433", "us-west-2b"))
_LOAD = LoadState(6, 817, 2, 0.0421, "server closed the connection unexpectedly\n\tThis means")


def nodes(*states: NodeState) -> tuple[NodeState, ...]:
    first, *rest = states
    places = zip(rest, _OTHERS, strict=True)
    return (first, *(replace(state, address=a, zone=z) for state, (a, z) in places))


_CONNECTED = nodes(_NODE, _NODE, _NODE)
_WORKING = replace(_NODE, connections=3, sessions=3, rate=284.4, served=300)
_DEAD = replace(_NODE, running=False, connections=0, sessions=None, rate=0.0)

STARTED = Snapshot(Phase.START, nodes(*[replace(_NODE, connections=0, sessions=0)] * 3))
UNIFORM = Snapshot(Phase.UNIFORM, _CONNECTED, 'ybsmart.connect("...?loadBalance=true")')
KILLED = Snapshot(
    Phase.KILLED,
    nodes(_DEAD, _WORKING, _WORKING),
    'ybsmart.ConnectionPool("...?loadBalance=true", max_size=12)',
    "127.0.0.1:5433",
    _LOAD,
)
CLOSED = Snapshot(Phase.CLOSED, load=_LOAD)

HOSTILE = replace(
    KILLED,
    nodes=tuple(replace(node, address=EVIL, zone=EVIL) for node in KILLED.nodes),
    call=EVIL,
    victim=EVIL,
    load=replace(_LOAD, error=EVIL),
)


def plainly(*steps: Progress) -> str:
    out = io.StringIO()
    view = PlainView(out)
    view.begin()
    for step in steps:
        view.update(step, False)
    view.end(steps[-1])
    return out.getvalue()


# Words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, as it is", "plain text, as it is"),
        ("two\n\tlines", "two lines"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("m\u00fcde \u202eback", "m\\xfcde \\u202eback"),
    ],
)
def test_nothing_that_a_terminal_might_obey_is_printed(text: str, shown: str) -> None:
    assert texts.printable(text) == shown


def test_every_phase_has_words() -> None:
    for phase in Phase:
        assert texts.headline(Snapshot(phase))
        assert texts.reason(Snapshot(phase)) or phase is Phase.CLOSED
    assert [*texts.SHORT, Phase.CLOSED] == list(Phase)


def test_a_long_error_is_cut_to_a_line() -> None:
    assert texts.last_error(_LOAD) == "server closed the connection unexpectedly"
    assert len(texts.last_error(replace(_LOAD, error="x" * 1000))) == 70


@pytest.mark.parametrize(
    ("node", "state"),
    [(_NODE, "up"), (replace(_NODE, passed_over=True), "passed over"), (_DEAD, "killed")],
)
def test_a_node_is_up_passed_over_or_killed(node: NodeState, state: str) -> None:
    assert texts.state(node) == state


# Plain lines


def test_a_phase_in_plain_lines() -> None:
    assert plainly(Progress(KILLED, (KILLED,))) == (
        "127.0.0.1:5433, the node in the URL, is killed (SIGKILL)\n"
        "  Requests that were on it fail once. The pool connects to the others instead.\n"
        '  ybsmart.ConnectionPool("...?loadBalance=true", max_size=12)\n'
        "                                                connections  server counts  requests/s\n"
        "    127.0.0.1:5433   us-west-2a  killed\n"
        "    127.0.0.2:5433   us-west-2a  ########                 3              3         280\n"
        "    127.0.0.3:5433   us-west-2b  ########                 3              3         280\n"
        "  6 threads, 817 requests, 2 failed, longest wait 42 ms\n"
        "  last error: server closed the connection unexpectedly\n"
    )


def test_plain_headline_comes_first_and_once() -> None:
    going_on = Progress(UNIFORM, (STARTED,))
    before = plainly(going_on)
    assert before.endswith('connect("...?loadBalance=true")\n')
    after = plainly(going_on, going_on, Progress(UNIFORM, (STARTED, UNIFORM)))
    assert after.startswith(before)
    assert after.count(texts.headline(UNIFORM)) == 1
    assert after.count("##########              10             10\n") == 3


def test_plain_misses_no_phase() -> None:
    """A view may be too slow to see each phase begin."""
    text = plainly(Progress(), Progress(CLOSED, (STARTED, UNIFORM, KILLED, CLOSED)))
    for snapshot in (STARTED, UNIFORM, KILLED, CLOSED):
        assert text.count(texts.headline(snapshot)) == 1


def test_plain_stays_silent_about_what_a_stopped_demo_did_not_do() -> None:
    out = io.StringIO()
    view = PlainView(out)
    view.update(Progress(UNIFORM, (STARTED,)), True)
    assert texts.headline(STARTED) in out.getvalue()
    assert texts.headline(UNIFORM) not in out.getvalue()


def test_plain_lines_are_printable() -> None:
    text = plainly(Progress(HOSTILE, (HOSTILE,)))
    assert "owned" in text
    assert all(line.isascii() and line.isprintable() for line in text.split("\n"))


# On a terminal


@pytest.fixture
def console() -> Callable[..., Console]:
    rich_console = pytest.importorskip("rich.console")

    def make(encoding: str = "utf-8", *, terminal: bool = True) -> Console:
        file = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
        made: Console = rich_console.Console(
            file=file, width=80, height=24, force_terminal=terminal, legacy_windows=False
        )
        return made

    return make


def written(console: Console) -> str:
    console.file.flush()
    file = console.file
    assert isinstance(file, io.TextIOWrapper)
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(file.encoding)


def drawn(console: Console, snapshot: Snapshot) -> str:
    from ybsmart.demo.view import frame

    console.print(frame(snapshot))
    return written(console)


@pytest.mark.parametrize("snapshot", [Snapshot(Phase.START), STARTED, UNIFORM, KILLED])
def test_a_frame_fits_on_the_smallest_terminal(
    snapshot: Snapshot, console: Callable[..., Console]
) -> None:
    lines = drawn(console(terminal=False), snapshot).split("\n")
    assert len(lines) < 24
    assert all(len(line.rstrip()) <= 80 for line in lines)
    for node in snapshot.nodes:
        assert any(node.address in line and texts.state(node) in line for line in lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)


def test_a_bar_is_as_long_as_its_number(console: Callable[..., Console]) -> None:
    numbers = (15, 10, 0)
    states = [replace(_NODE, connections=number) for number in numbers]
    text = drawn(console(terminal=False), replace(UNIFORM, nodes=nodes(*states)))
    rows = [line for line in text.split("\n") if "127.0.0." in line]
    bars = [row.count("\N{LOWER SEVEN EIGHTHS BLOCK}") for row in rows]
    assert bars[0] > 10
    assert bars == [bars[0], round(bars[0] * 10 / 15), 0]


def test_a_terminal_without_unicode_gets_ascii(console: Callable[..., Console]) -> None:
    assert re.search(r"#{5,}[^#]+10", drawn(console("ascii"), UNIFORM))


def test_no_color_is_respected(
    monkeypatch: pytest.MonkeyPatch, console: Callable[..., Console]
) -> None:
    colors = re.compile(r"\x1b\[(?:\d+;)*[34]\d")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colors.search(drawn(console(), KILLED))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colors.search(drawn(console(), KILLED))


def test_a_frame_shows_foreign_texts_as_they_are(console: Callable[..., Console]) -> None:
    text = drawn(console(terminal=False), HOSTILE)
    assert "[31m[bold]" in text  # neither obeyed by the terminal nor read as markup
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_live_ends_with_what_happened(console: Callable[..., Console]) -> None:
    from ybsmart.demo.view import LiveView

    screen = console()
    view = LiveView(screen)
    view.begin()
    view.update(Progress(KILLED, (STARTED, UNIFORM)), False)
    done = Progress(CLOSED, (STARTED, UNIFORM, KILLED, CLOSED))
    view.update(done, False)
    view.end(done)
    text = written(screen)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("30 connections") :])
    assert re.search(r"30 connections +10 +10 +10", last)
    assert re.search(r"node killed +killed +3  280/s +3  280/s +2", last)
    assert texts.headline(CLOSED) in last


def test_live_says_that_it_is_stopping(console: Callable[..., Console]) -> None:
    from ybsmart.demo.view import LiveView

    screen = console()
    view = LiveView(screen)
    view.begin()
    view.update(Progress(KILLED, (STARTED, UNIFORM)), True)
    view.end(Progress(KILLED, (STARTED, UNIFORM)))
    assert "Stopping" in written(screen)
    assert texts.headline(CLOSED) not in written(screen)


def test_the_picture_shows_the_frame_and_needs_nothing_from_the_network(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    from ybsmart.demo.view import draw

    path = tmp_path / "demo.svg"
    draw(KILLED, path)
    svg = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    text = "".join(root.itertext()).replace("\N{NO-BREAK SPACE}", " ")
    assert texts.headline(KILLED) in text
    assert "killed" in text
    assert len(svg) < 20_000
    # Nothing is loaded from anywhere.
    assert re.findall(r"\w+://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert "@font-face" not in svg
