"""Runs the demo: the scenario in a thread of its own, a view of it in this one.

Decides what a signal does, and what the process looks like to libpq meanwhile. Must never let a
signal interrupt what starts or ends servers: it is noted, and acted upon where nothing can get
lost. Must never be imported by `import ybsmart`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO

import psycopg

from . import texts
from .plain import PlainView
from .scenario import Scenario
from .states import Phase, Progress, Snapshot

LIVE_SECONDS = 18.0
PLAIN_SECONDS = 3.0


class Failed(Exception):
    """The demo could not go on. The text is fit for a terminal."""


class View(Protocol):
    """Shows the demo. Called from one thread only; may raise OSError."""

    INTERVAL: float
    """Seconds between two updates."""

    def begin(self) -> None: ...

    def update(self, progress: Progress, stopping: bool) -> None:
        """Show how far it is. `stopping`: it has been told to close everything."""
        ...

    def end(self, progress: Progress) -> None:
        """Show nothing more: it is over, or was stopped."""
        ...


def is_terminal(out: TextIO | None) -> bool:
    """Whether a live view has a place there."""
    return out is not None and out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def run(
    *,
    live: bool,
    seconds: float | None = None,
    picture: str | None = None,
    ends_process: bool = False,
) -> int:
    """Run the demo on standard output and return the exit status.

    0 at the end and after SIGINT, 143 after SIGTERM. Raises `Failed`.

    live: the view of `view.py`, which needs rich, or plain lines.
    seconds: how long to take, roughly; None is for what suits the view.
    picture: a file for the moment after the kill, as SVG; needs rich.
    ends_process: the caller is about to exit. Signals are ignored from then on, so that none can
        disturb the clean-up at exit.
    """
    with _Signals(restore=not ends_process) as signals:
        view = _view(live)
        if seconds is None:
            seconds = LIVE_SECONDS if live else PLAIN_SECONDS
        scenario = Scenario(seconds)
        try:
            with _undisturbed():
                finished = _show(scenario, view, signals)
            if not finished:
                print("stopped", flush=True)
        except OSError as error:
            # Whoever read the output has gone, or the disk is full.
            raise Failed(f"cannot write the output: {texts.printable(str(error))}") from error
        if finished and picture is not None:
            _draw(scenario.progress.completed, picture)
        return 128 + signal.SIGTERM if signals.received == signal.SIGTERM else 0


def _view(live: bool) -> View:
    if not live:
        return PlainView()
    from .view import LiveView

    return LiveView()


def _show(scenario: Scenario, view: View, signals: _Signals) -> bool:
    """Run the scenario and show it. False if it was stopped."""
    work = _Work(scenario)
    work.start()
    try:
        view.begin()
        while True:
            over = not work.is_alive()
            stopping = signals.received is not None
            if stopping:
                scenario.stop()
            view.update(scenario.progress, stopping)
            if over:
                break
            work.join(view.INTERVAL)
    finally:
        scenario.stop()
        work.join()
        view.end(scenario.progress)
    return work.outcome()


class _Work(threading.Thread):
    """The scenario, running."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(name="ybsmart-demo")
        self._scenario = scenario
        self._finished = False
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._finished = self._scenario.run()
        except Exception as error:
            self._error = error

    def outcome(self) -> bool:
        """Whether it ran to its end. Raises what it raised."""
        if isinstance(self._error, (OSError, RuntimeError, psycopg.Error)):
            lines = map(texts.printable, str(self._error).splitlines())
            raise Failed("\n".join(lines)) from self._error
        if self._error is not None:
            raise self._error
        return self._finished


class _Signals:
    """Notes SIGINT and SIGTERM, and afterwards restores what was, or ignores them for good.

    Anything more than a note, such as setting an event, could meet itself in the thread that the
    signal interrupts.
    """

    def __init__(self, *, restore: bool) -> None:
        self.received: int | None = None
        self._restore = restore
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if self._restore else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received != signal.SIGTERM:
            self.received = number


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the user's environment out of the demo's connections, and logs out of its output."""
    ours = {"PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
    theirs = {k: v for k, v in os.environ.items() if k.startswith("PG") or k == "DATABASE_URL"}
    # Without any handler, warnings would go to the terminal, with what servers say in them.
    silent = logging.NullHandler()
    loggers = [logging.getLogger(name) for name in ("ybsmart", "psycopg")]
    try:
        for name in theirs:
            del os.environ[name]
        os.environ.update(ours)
        for logger in loggers:
            logger.addHandler(silent)
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(theirs)
        for logger in loggers:
            logger.removeHandler(silent)


def _draw(completed: Sequence[Snapshot], picture: str) -> None:
    from .view import draw

    (killed,) = [snapshot for snapshot in completed if snapshot.phase is Phase.KILLED]
    try:
        draw(killed, Path(picture))
    except OSError as error:
        raise Failed(f"cannot write the picture: {texts.printable(str(error))}") from error
