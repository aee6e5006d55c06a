"""The demo as plain lines, for pipes, files and terminals that can do no better.

Decides how a phase's outcome is laid out. Must never write anything but printable ASCII, nor go
back to change what it has written.
"""

from __future__ import annotations

import sys
import textwrap
from typing import TextIO

from . import texts
from .states import NodeState, Phase, Progress, Snapshot

_NAME = 28
_BAR = 15


class PlainView:
    """A headline when a phase begins, its numbers when it is over."""

    INTERVAL = 0.05

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._begun: Phase | None = None
        self._reported = 0
        self._call = ""

    def begin(self) -> None:
        pass

    def update(self, progress: Progress, stopping: bool) -> None:
        for past in progress.completed[self._reported :]:
            self._begin(past)
            self._report(past)
            self._reported += 1
        if not stopping:
            self._begin(progress.now)

    def end(self, progress: Progress) -> None:
        pass

    def _begin(self, snapshot: Snapshot) -> None:
        if self._begun is snapshot.phase:
            return
        if self._begun is not None:
            self._write("")
        self._begun = snapshot.phase
        self._write(texts.headline(snapshot))
        if why := texts.reason(snapshot):
            self._write(*textwrap.wrap(why, 78, initial_indent="  ", subsequent_indent="  "))
        if snapshot.call not in ("", self._call):
            self._call = snapshot.call
            self._write(f"  {texts.printable(snapshot.call)}")

    def _report(self, snapshot: Snapshot) -> None:
        if snapshot.phase is Phase.START:
            self._write(*(_row(node, texts.state(node)) for node in snapshot.nodes))
        elif snapshot.nodes:
            rates = "" if snapshot.load is None else "requests/s"
            self._write(f"    {'':{_NAME + _BAR}} connections  server counts  {rates}".rstrip())
            full = texts.full_bar(snapshot)
            self._write(*(_row(node, _numbers(node, full)) for node in snapshot.nodes))
        if snapshot.load is not None:
            self._write(f"  {texts.totals(snapshot.load)}")
            if snapshot.phase is Phase.KILLED and (error := texts.last_error(snapshot.load)):
                self._write(f"  last error: {error}")

    def _write(self, *lines: str) -> None:
        self._out.write("".join(f"{line}\n" for line in lines))
        # Whoever reads a pipe wants to see it happen.
        self._out.flush()


def _row(node: NodeState, numbers: str) -> str:
    name = f"{texts.printable(node.address):16} {texts.printable(node.zone):11}"
    return f"    {name:{_NAME}} {numbers}".rstrip()


def _numbers(node: NodeState, full: int) -> str:
    if not node.running:
        return texts.state(node)
    bar = "#" * round(_BAR * node.connections / full)
    sessions = "" if node.sessions is None else str(node.sessions)
    return f"{bar:{_BAR}} {node.connections:>10}  {sessions:>13}  {texts.rate(node):>10}"
