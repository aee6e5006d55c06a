"""What one thread sleeps on until its time is over or another wakes it.

`threading.Event` has a lock within: a finaliser, or a signal's handler, would wait for it in vain
if its own thread were in a method of that event, and an interrupt there could leave it locked.
Here, each method is one step.
"""

from __future__ import annotations

import threading


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
