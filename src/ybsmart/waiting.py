"""Wait for what `dialing.dial` yields: in a thread or greenlet, or on an event loop.

Decides nothing. However the wait ends, also by Ctrl-C or by cancellation, the generator is closed,
and with it every connection that it had begun.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from typing import Any

from psycopg import pq

from .addresses import is_address
from .dialing import Resolve, Steps, Wait

EVENT_READ = selectors.EVENT_READ


def run(steps: Steps) -> pq.abc.PGconn:
    """Carry out the steps, blocking this thread."""
    # Looked up now, and not when this module was imported: gevent may have replaced it.
    with selectors.DefaultSelector() as selector:
        try:
            request = next(steps)
            while True:
                if isinstance(request, Wait):
                    for fd, events in request.on:
                        selector.register(fd, events)
                    ready = {key.fd for key, _ in selector.select(request.timeout)}
                    # Before libpq goes on, as it may close one and open another of its number.
                    for fd, _ in request.on:
                        selector.unregister(fd)
                    request = steps.send(ready)
                else:
                    request = steps.send(resolve(request))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            steps.close()


async def run_async(steps: Steps) -> pq.abc.PGconn:
    """Carry out the steps on the running event loop, never blocking it."""
    loop = asyncio.get_running_loop()
    try:
        request = next(steps)
        while True:
            if isinstance(request, Wait):
                request = steps.send(await _ready(loop, request))
            else:
                request = steps.send(await _resolve_async(loop, request))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()


async def _ready(loop: asyncio.AbstractEventLoop, wait: Wait) -> set[int]:
    ready: set[int] = set()
    done = loop.create_future()

    def wake(fd: int | None = None) -> None:
        if fd is not None:
            ready.add(fd)
        if not done.done():
            done.set_result(None)

    timer = loop.call_later(wait.timeout, wake)
    try:
        for fd, events in wait.on:
            add = loop.add_reader if events == EVENT_READ else loop.add_writer
            add(fd, wake, fd)
        await done
    finally:
        timer.cancel()
        for fd, events in wait.on:
            (loop.remove_reader if events == EVENT_READ else loop.remove_writer)(fd)
    return ready


_STREAM: dict[str, Any] = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}


def resolve(request: Resolve) -> list[str] | OSError:
    """The IP addresses of a name, or why there are none."""
    if is_address(request.host):
        return [request.host]
    try:
        return _addresses(socket.getaddrinfo(request.host, request.port or None, **_STREAM))
    except (OSError, UnicodeError) as exc:
        return _as_os_error(exc)


async def _resolve_async(loop: asyncio.AbstractEventLoop, request: Resolve) -> list[str] | OSError:
    if is_address(request.host):
        return [request.host]
    try:
        return _addresses(await loop.getaddrinfo(request.host, request.port or None, **_STREAM))
    except (OSError, UnicodeError) as exc:
        return _as_os_error(exc)


def _addresses(answers: list[Any]) -> list[str]:
    return list(dict.fromkeys(answer[4][0] for answer in answers))


def _as_os_error(exc: Exception) -> OSError:
    # A label that is too long or empty is refused by Python's codec for names, not looked up.
    return exc if isinstance(exc, OSError) else OSError(str(exc))
