"""What threads sleep on until their time is over or another wakes them.

`threading.Event` and `Future` have a lock within: a finaliser, or a signal's handler, would wait
for it in vain if its own thread were in one of their methods, and an interrupt there could leave
it locked, so that all others wait for ever. Here, each access is one step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Alarm:
    """For one sleeper, and any number of others."""

    def __init__(self) -> None:
        # Looked up now, and not when this module was imported: gevent may have replaced it.
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake who sleeps, or who does so next."""
        try:
            self._lock.release()
        except RuntimeError:  # it has rung, and nobody has heard it yet
            pass

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, at most."""
        self._lock.acquire(True, max(seconds, 0.0))


class Completion:
    """The end of something, for any number of threads and event loops that wait for it."""

    def __init__(self) -> None:
        self.is_over = False
        self._calls: list[Callable[[], object]] = []

    def tell(self, call: Callable[[], object]) -> None:
        """Call this when it is over, or at once if it is; perhaps twice."""
        self._calls.append(call)
        if self.is_over:
            call()

    def end(self) -> None:
        """It is over. May be said again."""
        self.is_over = True
        for call in list(self._calls):
            call()

    def wait(self, seconds: float) -> None:
        """Wait until it is over, for so long at most."""
        alarm = Alarm()
        self.tell(alarm.ring)
        alarm.sleep(seconds)
