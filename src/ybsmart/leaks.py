"""Who has which connection of a pool, for how long, and where it was taken.

Decides what is reported of a loan; whoever calls logs it. What is noted is the slot's `note`, of
the present loan.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

from ._core import pool as core


class Holder(NamedTuple):
    """Who holds a connection of a pool."""

    thread: str
    """Name of the thread that took it."""
    thread_id: int
    """That thread's `ident`."""
    age: float
    """Seconds since it was lent."""
    node: str
    """`host:port`; empty if that is not known."""
    taken_at: str | None
    """The lines of code that took it; None without leak detection."""


class _Reported:
    """The note of a loan that has been reported as a leak."""

    def __init__(self, note: traceback.StackSummary | None) -> None:
        self.note = note


def note_place(slot: core.Slot) -> None:
    """Note where a connection is being taken: only what is needed to find the lines later, if
    anybody wants to know."""
    frames = traceback.walk_stack(sys._getframe(1))
    users = ((f, line) for f, line in frames if not _is_own(f))
    slot.note = traceback.StackSummary.extract(users, limit=8, lookup_lines=False)


def _is_own(frame: FrameType) -> bool:
    """Whether it is the package's: of no interest to who looks for a leak."""
    module: str = frame.f_globals.get("__name__", "")
    return module.partition(".")[0] == "ybsmart"


def place(slot: core.Slot) -> str | None:
    """The lines that lead to where a connection was taken, if that was noted."""
    note: Any = slot.note
    if isinstance(note, _Reported):
        note = note.note
    return "".join(note.format()) if note else None


def was_reported(slot: core.Slot) -> bool:
    """Whether the present loan is one that `overdue` has given."""
    return isinstance(slot.note, _Reported)


def overdue(slots: Iterable[core.Slot], threshold: float) -> Iterator[tuple[core.Slot, float]]:
    """Those lent for `threshold` seconds or more, with their ages; each loan once."""
    now = time.monotonic()
    for slot in slots:
        lent_at = slot.lent_at  # once: it may be lent at any moment
        age = now - lent_at
        if slot.lent and lent_at and age >= threshold and not was_reported(slot):
            slot.note = _Reported(slot.note)
            yield slot, age


def _threads() -> Mapping[int, threading.Thread]:
    """By their identity. Python's own table, if it is where it has always been, because thousands
    that time out at once should not make a list of all of them each."""
    table = getattr(threading, "_active", None)
    if isinstance(table, dict):
        return table
    return {thread.ident or 0: thread for thread in threading.enumerate()}


def holders(slots: Iterable[core.Slot]) -> list[Holder]:
    """Who has those that are lent, the longest first."""
    now = time.monotonic()
    threads = _threads()
    found = [
        Holder(
            thread=thread.name if (thread := threads.get(slot.holder)) else "?",
            thread_id=slot.holder,
            age=now - lent_at,
            node=slot.shelf.label,
            taken_at=place(slot),
        )
        for slot in slots
        if (lent_at := slot.lent_at) and slot.lent  # once: it may be lent at any moment
    ]
    return sorted(found, key=lambda holder: -holder.age)
