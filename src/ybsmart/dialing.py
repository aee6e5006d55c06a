"""Connect to the first of several addresses that answers, without waiting for the dead.

Decides when the next address is tried: at once when one has failed, and after a short delay when
one is silent. The first to succeed wins; the others are dropped. `dial` is a generator that never
waits: it yields what it waits for, so that the same decisions serve threads, greenlets and event
loops, and `waiting.py` waits. It knows no clusters, counts or health: these are the business of the
`Source` that hands out the candidates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Generator, Sequence
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, Protocol, TypeAlias

import psycopg
from psycopg import errors, pq

from . import forks, libpq
from .faults import Fault, classify, failure
from .named_tuples import LeanNamedTuple

HEDGE_DELAY = 0.25  # seconds of silence after which the next address is tried as well

_BAD, _STARTED = pq.ConnStatus.BAD, pq.ConnStatus.STARTED
_OK, _FAILED, _WRITING = pq.PollingStatus.OK, pq.PollingStatus.FAILED, pq.PollingStatus.WRITING


class Target(LeanNamedTuple):
    """Where a connection goes, as libpq's parameters."""

    host: str
    """The name: for messages, certificates and password files."""
    hostaddr: str
    """The address; empty where the name is a socket's directory or has yet to be resolved."""
    port: str

    def needs_resolving(self) -> bool:
        return not self.hostaddr and bool(self.host) and not self.host.startswith(("/", "@"))


class Trial:
    """One candidate of a request: the targets that lead to it, and how it is doing."""

    def __init__(self, name: str, targets: Sequence[Target], hedge_delay: float) -> None:
        self.name = name  # in messages
        self.targets = deque(targets)
        self.hedge_delay = hedge_delay
        self.started = time.monotonic()
        self.calls = 0  # connections under way
        self.reached = False  # somebody has taken the connection
        self.error: psycopg.OperationalError | None = None

    def silent(self) -> bool:
        """It has had its time, and has not answered."""
        return time.monotonic() - self.started >= self.hedge_delay


class Source(Protocol):
    """Hands out the candidates of a request, best first, and is told how they did."""

    raises_callers_fault: bool
    """Whether the caller's own fault ends the request, as it should unless there is no caller."""

    def next(self) -> Trial | None:
        """The next candidate, None when there are no more."""

    def conninfo(self, target: Target) -> bytes:
        """All parameters of a connection to the target."""

    def other_name(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> Target | None:
        """The target under another name, if that may help where `target` has failed."""

    def won(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> bool:
        """It is connected. False: go on with the others."""

    def failed(self, trial: Trial, error: psycopg.OperationalError, fault: Fault) -> None:
        """No target of the candidate could be connected to."""

    def dropped(self, trial: Trial) -> None:
        """It was under way when another one won, or when the request was given up."""

    def exhausted(self) -> psycopg.Error:
        """All have failed: the error to raise."""


class Wait(LeanNamedTuple):
    """Go on with the file descriptors that are ready, or after so many seconds with none."""

    on: list[tuple[int, int]]  # with EVENT_READ or EVENT_WRITE
    timeout: float


class Resolve(LeanNamedTuple):
    """Go on with the IP addresses of a name, or with the OSError of looking it up."""

    host: str
    port: str


Steps: TypeAlias = Generator[Wait | Resolve, Any, pq.abc.PGconn]


class _Call:
    """A connection being made."""

    __slots__ = ("events", "pgconn", "target", "trial")

    def __init__(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> None:
        self.trial = trial
        self.target = target
        self.pgconn = pgconn
        self.events = EVENT_WRITE


def _is_callers(error: psycopg.OperationalError, trial: Trial) -> bool:
    return classify(error, reached=trial.reached) is Fault.CALLER


def dial(source: Source, deadline: float) -> Steps:
    """Connect to the first candidate that answers before `deadline` (of the monotonic clock).

    Raises at once when the caller is at fault, and what the source says when all have failed.
    """
    dialer = _Dialer(source)
    try:
        _under_way.add(dialer)
        return (yield from dialer.steps(deadline))
    finally:
        _under_way.discard(dialer)
        dialer.hang_up()


_under_way: set[_Dialer] = set()  # adding and discarding are one step each


def under_way() -> int:
    """How many requests of this process are dialling."""
    return len(_under_way)


def forget() -> None:
    """In a forked child: nobody is. What the parent has begun is not gone on with here, should a
    greenlet be left that would."""
    for dialer in list(_under_way):
        dialer.cut_off()
    _under_way.clear()


class _Dialer:
    """One request under way: the calls it has made, and whom it may yet call."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._calls: list[_Call] = []
        self._trials: list[Trial] = []  # begun, and neither won nor failed
        self._dialled: set[tuple[str, str]] = set()  # addresses, with ports
        self._more = True
        self._next_start = 0.0

    def steps(self, deadline: float) -> Steps:
        while True:
            now = time.monotonic()
            if now >= deadline:
                self._time_out()
                raise self._source.exhausted()
            if self._more and (now >= self._next_start or not self._calls):
                yield from self._start_next(now)
                continue
            if not self._calls:
                raise self._source.exhausted()
            until = min(deadline, self._next_start) if self._more else deadline
            ready = yield Wait([(c.pgconn.socket, c.events) for c in self._calls], until - now)
            winner = self._go_on(ready)
            if winner is not None:
                return winner

    def _start_next(self, now: float) -> Generator[Resolve, Any, None]:
        """Begin a connection to one more address."""
        trial = next((t for t in self._trials if t.targets), None)
        if trial is None:
            trial = self._source.next()
            if trial is None:
                self._more = False
                return
            self._trials.append(trial)
        self._next_start = now + trial.hedge_delay
        target = trial.targets.popleft() if trial.targets else None
        if target is not None and target.needs_resolving():
            target = yield from self._resolve(trial, target)
        if target is not None:
            self._call(trial, target)
        self._conclude(trial)

    def _resolve(self, trial: Trial, target: Target) -> Generator[Resolve, Any, Target | None]:
        """The target's first address; the others are put in line. None if there are none."""
        addresses = yield Resolve(target.host, target.port)
        if isinstance(addresses, OSError):
            text = f"failed to resolve host {target.host!r}: {addresses}"
            trial.error = psycopg.OperationalError(text)
            return None
        found = [target._replace(hostaddr=address) for address in addresses]
        # What this request has tried under another name would only fail again.
        fresh = [t for t in found if (t.hostaddr, t.port) not in self._dialled] or found[:1]
        trial.targets.extendleft(reversed(fresh[1:]))
        return fresh[0]

    def _call(self, trial: Trial, target: Target) -> None:
        self._dialled.add((target.hostaddr, target.port))
        pgconn = pq.PGconn.connect_start(self._source.conninfo(target))
        if pgconn.status == _BAD:
            message = pgconn.error_message
            pgconn.finish()
            trial.error = failure(message)
            # libpq names the address if it got as far as that; else it dislikes a parameter.
            place = (target.hostaddr or target.host).encode()
            if place and place not in message:
                raise trial.error
            return
        libpq.say_sqlstate(pgconn)
        trial.calls += 1
        self._calls.append(_Call(trial, target, pgconn))

    def _go_on(self, ready: Collection[int]) -> pq.abc.PGconn | None:
        """Let libpq continue where it can; return the connection that won."""
        for call in [c for c in self._calls if c.pgconn.socket in ready]:
            if call not in self._calls:
                continue  # hung up meanwhile
            status = call.pgconn.connect_poll()
            if status == _OK:
                if self._finish(call):
                    return call.pgconn
            elif status == _FAILED:
                self._fail(call)
            else:
                call.events = EVENT_WRITE if status == _WRITING else EVENT_READ
                call.trial.reached |= call.pgconn.status != _STARTED
        return None

    def _finish(self, call: _Call) -> bool:
        """Hand a connection over. True: the request has got what it wants."""
        libpq.speak_normally(call.pgconn)
        call.pgconn.nonblocking = 1
        done = self._source.won(call.trial, call.target, call.pgconn)
        self._calls.remove(call)
        self._trials.remove(call.trial)
        for other in [c for c in self._calls if c.trial is call.trial]:
            self._calls.remove(other)
            other.pgconn.finish()
        return done

    def _fail(self, call: _Call) -> None:
        trial, pgconn = call.trial, call.pgconn
        self._calls.remove(call)
        trial.calls -= 1
        trial.error = error = failure(pgconn.error_message)
        other = self._source.other_name(trial, call.target, pgconn) if trial.reached else None
        pgconn.finish()
        if other is not None:
            trial.targets.appendleft(other)
        elif self._source.raises_callers_fault and _is_callers(error, trial):
            raise error
        self._next_start = 0.0
        self._more = True
        self._conclude(trial)

    def _conclude(self, trial: Trial) -> None:
        """Tell the source if nothing of the trial is left."""
        if trial.calls or trial.targets:
            return
        error = trial.error or psycopg.OperationalError("it has no address")
        self._trials.remove(trial)
        self._next_start = 0.0
        self._source.failed(trial, error, classify(error, reached=trial.reached))

    def _time_out(self) -> None:
        """The request's time is up: for the candidates too, unless they had next to none."""
        for call in self._calls:
            call.pgconn.finish()
        self._calls.clear()
        while self._trials:
            trial = self._trials.pop(0)
            error = errors.ConnectionTimeout("connection timeout expired")
            self._source.failed(trial, error, Fault.NODE if trial.silent() else Fault.BUSY)

    def cut_off(self) -> None:
        """In a forked child: let nothing that is done here reach those that are called."""
        for call in self._calls:
            forks.cut_off(call.pgconn)

    def hang_up(self) -> None:
        """End what is still under way."""
        for call in self._calls:
            call.pgconn.finish()
        self._calls.clear()
        while self._trials:
            self._source.dropped(self._trials.pop(0))
