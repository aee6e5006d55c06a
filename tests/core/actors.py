"""Actors: threads that run one at a time, and only as far as a test lets them."""

from __future__ import annotations

import sys
import threading
import traceback
from _thread import allocate_lock
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

# Seconds after which an actor is taken to be in a deadlock, on a machine that is busy.
STUCK = 60.0


class Abandoned(BaseException):
    """Ends an actor that the test has no further use for."""


class Stage:
    """A thread on which one actor after the other acts: many are needed, and threads are dear."""

    free: ClassVar[list[Stage]] = []

    def __init__(self) -> None:
        self.go = allocate_lock()
        self.go.acquire()
        self.stopped = allocate_lock()
        self.stopped.acquire()
        self.actor: Actor | None = None
        self.thread = threading.Thread(target=self._run, name="stage", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            assert self.actor is not None
            self.actor.act()
            self.actor = None
            self.stopped.release()

    def continue_(self) -> bool:
        """Let the actor go on to its next stop. False: it has not got there."""
        self.go.release()
        return self.stopped.acquire(True, STUCK)

    def wait(self) -> None:
        """Called on this thread: stop until it is to go on."""
        self.stopped.release()
        self.go.acquire()


class Actor:
    """Something that is done from one stop to the next when told to, and not otherwise."""

    _now = threading.local()

    def __init__(
        self, action: Callable[[], Any], name: str = "request", stops: Iterable[str] = ("sleep",)
    ) -> None:
        """`stops`: the labels, as passed to `stop`, at which it stops."""
        self.name = name
        self.stops = frozenset(stops)
        self.at = "start"
        self.error: BaseException | None = None
        self.waiter: Any = None  # until its end, as it refers to what it was granted
        self._action: Callable[[], Any] | None = action
        self._value: Any = None
        self._pending: BaseException | None = None
        self._time_is_up = False
        self._stage: Stage | None = None

    @classmethod
    def running(cls) -> Actor | None:
        """The actor whose thread this is."""
        return getattr(cls._now, "actor", None)

    @property
    def ended(self) -> bool:
        return self.at == "end"

    def act(self) -> None:
        """Called on its stage, once."""
        Actor._now.actor = self
        assert self._action is not None
        try:
            self._value = self._action()
        except BaseException as exc:
            self.error = exc
        Actor._now.actor = self._action = self.waiter = None
        self.at = "end"

    def stop(self, label: str) -> None:
        """Called on its own thread: wait for the next `step`."""
        if label not in self.stops or isinstance(self._pending, Abandoned):
            return
        self.at = label
        assert self._stage is not None
        self._stage.wait()
        if isinstance(self._pending, Abandoned):
            raise self._pending

    def step(self) -> None:
        """Run it to its next stop, or its end."""
        assert not self.ended
        if self._stage is None:
            self._stage = Stage.free.pop() if Stage.free else Stage()
            self._stage.actor = self
        if not self._stage.continue_():
            frame = sys._current_frames()[self._stage.thread.ident or 0]
            stack = "".join(traceback.format_stack(frame))
            raise AssertionError(f"{self!r} is in a deadlock:\n{stack}")
        if self.ended:
            Stage.free.append(self._stage)
            self._stage = None

    def sleep(self) -> bool:
        """Called on its own thread: sleep until woken. False: its time was up first."""
        while True:
            self.stop("sleep")
            if self._pending is not None:
                pending, self._pending = self._pending, None
                raise pending
            if self.waiter.parked_on.wakes:
                return True
            if self._time_is_up:
                # Between the end of its time and its withdrawal it may be served yet.
                self.stop("withdraw")
                return False
            if "sleep" not in self.stops:
                raise AssertionError("would sleep for ever")

    @property
    def can_run(self) -> bool:
        """Neither at its end nor asleep with nothing to wake it."""
        if self.ended:
            return False
        if self.at != "sleep" or self._time_is_up or self._pending is not None:
            return True
        return bool(self.waiter.parked_on.wakes)

    @property
    def asleep(self) -> bool:
        """In the queue, and nothing has come."""
        return not self.ended and not self.can_run

    # What happens to sleepers

    def time_is_up(self) -> Actor:
        """From now on its sleep ends by itself, unless it has been woken."""
        self._time_is_up = True
        return self

    def interrupt(self, error: BaseException) -> Actor:
        """The error is raised in its sleep."""
        self._pending = error
        return self

    def run(self) -> Actor:
        """Let it run as far as it gets."""
        while self.can_run:
            self.step()
        return self

    def result(self) -> Any:
        """What its action returned or raised. It is not kept: the caller has it alone."""
        self.run()
        assert self.ended, f"{self!r} still waits"
        value, self._value = self._value, None
        if self.error is not None:
            raise self.error
        return value

    def abandon(self) -> None:
        """End it, wherever it is."""
        if self.at == "start":
            self.at = "end"
        if not self.ended:
            self._pending = Abandoned()
            self.step()
            assert self.ended

    def __repr__(self) -> str:
        return f"<Actor {self.name} at {self.at}>"


def stop(label: str) -> None:
    """A stop of the actor that gets here, if it is one and stops at these."""
    actor = Actor.running()
    if actor is not None:
        actor.stop(label)
