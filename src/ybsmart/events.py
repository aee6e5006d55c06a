"""Listeners of a pool: who wants to know what, and telling them.

A listener cannot break the pool: what it raises is logged. It is called by the thread that caused
the event, outside every critical section, so it may use the pool itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

logger = logging.getLogger("ybsmart.pool")

EVENTS = ("connect", "acquire", "release", "error", "remove")

Listener: TypeAlias = Callable[..., object]

# For type-checkers: what is called with a connection, with an error before it, or with either.
ConnEvent: TypeAlias = Literal["connect", "acquire", "remove"]
ErrorEvent: TypeAlias = Literal["release", "error"]
ConnListener: TypeAlias = Callable[[Any], object]
ErrorListener: TypeAlias = Callable[[Any, Any], object]


class AnyListener(Protocol):
    def __call__(self, *args: object) -> object: ...


class Listeners:
    """The listeners of one pool. Each joins and leaves in one step, so that no lock is needed."""

    def __init__(self) -> None:
        self._by_event: dict[str, list[Listener]] = {event: [] for event in EVENTS}  # latest first

    def add(self, event: str, listener: Listener) -> None:
        self._check(event)
        if not callable(listener):
            raise TypeError(f"fn: expected a callable, not {type(listener).__name__}")
        self._by_event[event].insert(0, listener)

    def remove(self, event: str, listener: Listener) -> None:
        """Remove the listener that was added last; `ValueError` if it is none."""
        self._check(event)
        try:
            self._by_event[event].remove(listener)
        except ValueError:
            raise ValueError(f"fn: {listener!r} does not listen to {event!r}") from None

    def of(self, event: str) -> list[Listener]:
        """Those that there are now, in the order in which they were added."""
        return self._by_event[event][::-1]

    def tell(self, event: str, *arguments: Any) -> None:
        for listener in self.of(event):
            try:
                listener(*arguments)
            except Exception:
                logger.warning("a listener of %r failed: %r", event, listener, exc_info=True)

    @staticmethod
    def _check(event: str) -> None:
        if event not in EVENTS:
            raise ValueError(f"event: must be one of {', '.join(map(repr, EVENTS))}, not {event!r}")
