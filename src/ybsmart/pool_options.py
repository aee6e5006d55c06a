"""The parameters of a pool, checked when it is made.

Every error names the parameter and what is allowed. Never connects.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_origin

import psycopg
from psycopg import pq

from . import malformed
from .params import split

RESETS = ("rollback", "discard", None)


def sizes(min_size: Any, max_size: Any) -> tuple[int, int]:
    """Both sizes; a maximum of None is the minimum, as in psycopg_pool, or 10 where there is
    neither."""
    least = whole("min_size", min_size, 0)
    most = (least or 10) if max_size is None else whole("max_size", max_size, 1)
    if most < least:
        raise ValueError(f"max_size: must be at least min_size, {least}, not {most}")
    return least, most


def limit(name: str, value: Any) -> float:
    """Seconds of which 0 and None mean that there is no limit."""
    return seconds(name, value) or math.inf if value is not None else math.inf


def optional_seconds(name: str, value: Any) -> float | None:
    return None if value is None else seconds(name, value)


def seconds(name: str, value: Any) -> float:
    time_left(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: must be 0 or more, not {value!r}")
    return float(value)


def time_left(name: str, value: Any) -> None:
    """Check a number of seconds, of which none may be left."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, not {value!r}")
    if value != value:  # NaN
        raise ValueError(f"{name}: expected a number of seconds, not {value!r}")


def whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, not {value!r}")
    if not least <= value < 2**31:
        raise ValueError(f"{name}: must be at least {least}, not {value}")
    return value


def optional_callable(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a callable, not {type(value).__name__}")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def connection_class(value: Any) -> None:
    plain = get_origin(value) or value  # `MyConnection[MyRow]` will do
    if not (isinstance(plain, type) and issubclass(plain, psycopg.Connection)):
        raise TypeError("connection_class: expected a subclass of psycopg.Connection")


Conninfo: TypeAlias = str | Callable[[], str]
Kwargs: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None


# Without these a connection whose other end is gone without a word (a machine that lost power, a
# firewall that forgot it) is found out after two hours of idleness, or 15 minutes into a query. The
# first probe comes early, as a sign to `silence.py` that the other end may be gone.
_TCP = {
    "keepalives_idle": 5,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 5,
    "tcp_user_timeout": 30_000,  # milliseconds for what was sent to be acknowledged
}


def connect_arguments(
    conninfo: Conninfo, kwargs: Kwargs, connect_timeout: float | None
) -> tuple[str, dict[str, Any]]:
    """What to call `connect` with, now: callables are asked each time, as credentials rotate.

    `connect_timeout` and TCP's limits are put in where nothing else says so. Raises what the
    callables raise, and psycopg's `ProgrammingError` for a malformed conninfo.
    """
    text = conninfo() if callable(conninfo) else conninfo
    options = dict((kwargs() if callable(kwargs) else kwargs) or {})
    if not isinstance(text, str):
        raise TypeError(f"conninfo: expected a string, not {type(text).__name__}")
    _, rest, _ = split(text, options)
    given = malformed.read(rest, {}).keys() | options.keys()
    if connect_timeout is not None and "connect_timeout" not in given:
        options["connect_timeout"] = max(1, round(connect_timeout))
    # What a service file says is not known here, and these would take precedence.
    if "service" not in given and "PGSERVICE" not in os.environ and pq.version() >= 120000:
        options |= {name: value for name, value in _TCP.items() if name not in given}
    return text, options


def check_arguments(conninfo: Any, kwargs: Any, connect_timeout: float | None) -> None:
    """Raise for what is wrong with conninfo and kwargs, as far as that shows without asking."""
    if not isinstance(conninfo, str) and not callable(conninfo):
        raise TypeError(f"conninfo: expected a string or callable, not {type(conninfo).__name__}")
    if kwargs is not None and not callable(kwargs) and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs: expected a dict or callable, not {type(kwargs).__name__}")
    if not callable(conninfo) and not callable(kwargs):
        connect_arguments(conninfo, kwargs, connect_timeout)
