"""What a forked child has to begin anew, whoever forked it.

Python says so when it has forked. A server written in C need not have told Python (uWSGI does not,
unless it is asked to), so whoever has state of the process also calls `notice` before using it.
Never closes a connection of the parent: that would end the parent's session.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from contextlib import suppress

import psycopg
from psycopg import pq

_actions: list[Callable[[], object]] = []
_pid = os.getpid()
# A finaliser that runs in the middle of it comes here as well.
_lock = _thread.RLock()


def in_child(action: Callable[[], object]) -> None:
    """Have the action done in each forked child, before the child uses anything."""
    _actions.append(action)


def notice() -> None:
    """Do the actions if this is a child in which they have not been done.

    Safe for any number of threads: it returns when they have been done.
    """
    if os.getpid() != _pid:
        with _lock:
            if os.getpid() != _pid:
                _begin_anew()


def _begin_anew() -> None:
    global _pid
    for action in _actions:
        action()
    _pid = os.getpid()


def _after_fork() -> None:
    global _lock
    _lock = _thread.RLock()
    _begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cut_off(pgconn: pq.abc.PGconn) -> None:
    """Put nothing in the place of a connection's socket, in this process alone.

    Whatever is done to the parent's connection here, the parent and its server will not hear of
    it, and the session can end when the parent does.
    """
    with suppress(OSError, psycopg.Error):  # closed
        socket = pgconn.socket
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nothing, socket, inheritable=False)
        finally:
            os.close(nothing)
