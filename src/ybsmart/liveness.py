"""Whether an idle connection still has its server, from what its socket already knows.

No round trip, and never waits: a server that ended the connection has said so by closing it.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import pq

_READABLE = getattr(select, "POLLIN", 0)
# Linux alone reports the end of the stream apart from data in front of it.
_HUNG_UP = getattr(select, "POLLRDHUP", 0)
_GONE = _HUNG_UP | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


def is_alive(conn: psycopg.Connection[Any]) -> bool:
    """True unless the connection is closed, broken, or closed by its server."""
    pgconn = conn.pgconn
    if pgconn.status != pq.ConnStatus.OK:
        return False
    try:
        # Data is no bad sign by itself: it may be a notification. Read until there is none; at
        # the end of the stream libpq finds out and says so.
        while _readable(pgconn.socket):
            pgconn.consume_input()
            if pgconn.status != pq.ConnStatus.OK:
                return False
    except (psycopg.Error, OSError, ValueError):
        return False
    return True


def any_has_news(conns: Iterable[psycopg.Connection[Any]]) -> bool:
    """Whether the socket of any idle connection has something to read, be it its end.

    Reads nothing, so the connections may be used by others at the same time.
    """
    fds = []
    for conn in conns:
        try:
            fds.append(conn.pgconn.socket)
        except psycopg.Error:  # closed
            return True
    if not hasattr(select, "poll"):  # Windows
        try:
            return bool(fds and select.select(fds, [], [], 0)[0])
        except (OSError, ValueError):  # one has been closed meanwhile
            return True
    poller = _poll()
    for fd in fds:
        poller.register(fd, _READABLE | _HUNG_UP)
    return bool(poller.poll(0))


def _poll() -> Any:
    """The system's own `poll`, also after gevent's monkey patching: gevent's would let other
    greenlets run even without time to wait, and one of them may close what is being watched."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original("select", "poll")() if monkey is not None else select.poll()


class _HungUp(OSError):
    """The other side has closed the connection."""


def _readable(fd: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([fd], [], [], 0)[0])
    poller = _poll()
    poller.register(fd, _READABLE | _HUNG_UP)
    events = poller.poll(0)
    if not events:
        return False
    if events[0][1] & _GONE:
        raise _HungUp
    return True
