"""What tests of several folders need: waiting for a condition, threads that start together.

Imports only the standard library, because the tests of the core also run inside a bare wheel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, overload

T = TypeVar("T")

PATIENCE = 60.0  # seconds, for a machine that is busy with something else


@overload
def until(look: Callable[[], bool], *, limit: float = PATIENCE) -> None: ...
@overload
def until(look: Callable[[], T], expected: T, *, limit: float = PATIENCE) -> None: ...
def until(look: Callable[[], object], expected: object = True, *, limit: float = PATIENCE) -> None:
    """Look again and again until what is seen is as expected; fail with the difference.

    For states that announce themselves to nobody.
    """
    deadline = time.monotonic() + limit
    pause = 0.0005  # most come about at once
    while (seen := look()) != expected:
        if time.monotonic() > deadline:
            assert seen == expected, f"still not so after {limit:.0f} s"
        time.sleep(pause)
        pause = min(0.05, pause * 1.3)


def asleep(thread: threading.Thread) -> bool:
    """Whether the thread is blocked in the kernel, or has been and is over. For Linux."""
    try:
        with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "S"
    except FileNotFoundError:
        return True


class Threads:
    """Threads that run these actions, from the same moment on; `errors` is what they raised."""

    def __init__(self, actions: Iterable[Callable[[], object]]) -> None:
        actions = list(actions)
        self.errors: list[BaseException] = []
        self._start = threading.Barrier(len(actions))
        # Daemons: one that is stuck must fail its test, not keep the run from ending.
        self._threads = [
            threading.Thread(target=self._run, args=(action,), daemon=True) for action in actions
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, action: Callable[[], object]) -> None:
        self._start.wait()
        try:
            action()
        except BaseException as exc:
            self.errors.append(exc)

    def __iter__(self) -> Iterator[threading.Thread]:
        return iter(self._threads)

    def wait(self, limit: float = 240.0) -> None:
        """Until all have ended."""
        deadline = time.monotonic() + limit
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a thread is stuck"

    def join(self) -> None:
        """Wait, and raise what the first of them to fail has raised."""
        self.wait()
        if self.errors:
            raise self.errors[0]


def in_threads(count: int, action: Callable[[], object]) -> list[BaseException]:
    """Run an action in that many threads which start together; return what they raised."""
    threads = Threads([action] * count)
    threads.wait()
    return threads.errors
