"""What a pool says when it cannot do what it is asked: errors to be raised by it, in words.

Changes nothing. No message shows a password: a pool is known by its name.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import psycopg

from . import leaks
from .errors import DoubleRelease

if TYPE_CHECKING:
    from .pool_errors import PoolClosed, PoolDeadlock, PoolTimeout, TooManyRequests
    from .pool_hooks import PoolHooks


def _errors() -> Any:
    """The pool's errors, imported when one is raised: see there."""
    from . import pool_errors

    return pool_errors


def state(pool: PoolHooks) -> str:
    """The counters."""
    return (
        f"(total {pool.total_count} of {pool.max_size}, idle {pool.idle_count}, "
        f"connecting {pool.connecting_count}, waiting {pool.waiting_count})"
    )


def forked(pool: PoolHooks) -> psycopg.OperationalError:
    # No PoolError: importing these would hold up every fork.
    return psycopg.OperationalError(f"{title(pool)}: the process was forked during this request")


def title(pool: PoolHooks) -> str:
    return f"the pool {pool.name!r}"


def _in_use_by(pool: PoolHooks) -> str:
    held = leaks.holders(pool._list_slots())
    lines = [
        f"\n  {h.thread} for {h.age:.2f} s on {h.node or '?'}"
        + (f", taken at\n{textwrap.indent(h.taken_at, '    ')}" if h.taken_at else "")
        for h in held[:10]
    ]
    if len(held) > 10:
        lines.append(f"\n  and {len(held) - 10} more")
    return "; in use by" + "".join(lines) if lines else ""


def timed_out(pool: PoolHooks, waited: float) -> PoolTimeout:
    error: PoolTimeout = _errors().PoolTimeout(
        f"{title(pool)}: couldn't get a connection after {waited:.2f} sec {state(pool)}"
        f"{_in_use_by(pool)}"
    )
    return error


def not_ended(pool: PoolHooks, timeout: float) -> PoolTimeout:
    error: PoolTimeout = _errors().PoolTimeout(
        f"{title(pool)} has not ended after {timeout:g} s {state(pool)}{_in_use_by(pool)}"
    )
    return error


def deadlock(pool: PoolHooks) -> PoolDeadlock:
    error: PoolDeadlock = _errors().PoolDeadlock(
        f"{title(pool)}: every connection is held by a thread that waits for another one; return "
        f"a connection before asking for the next, or raise max_size {state(pool)}"
    )
    return error


def too_many(pool: PoolHooks) -> TooManyRequests:
    error: TooManyRequests = _errors().TooManyRequests(
        f"{title(pool)} has already {pool.waiting_count} requests waiting, of "
        f"{pool.max_waiting} that may {state(pool)}"
    )
    return error


def _closed(text: str) -> PoolClosed:
    error: PoolClosed = _errors().PoolClosed(text)
    return error


def closed(pool: PoolHooks) -> PoolClosed:
    return _closed(f"{title(pool)} is already closed")


def not_open(pool: PoolHooks) -> PoolClosed:
    return _closed(f"{title(pool)} is not open yet")


def ends_already(pool: PoolHooks) -> PoolClosed:
    return _closed(f"{title(pool)} is already closed or closing")


def not_again(pool: PoolHooks) -> PoolClosed:
    return _closed(f"{title(pool)} was closed and cannot be reused")


def not_lent(pool: PoolHooks, conn: Any) -> Exception:
    if not isinstance(conn, psycopg.Connection):
        return TypeError(f"expected a connection of {pool.name!r}, not {type(conn).__name__}")
    origin = getattr(conn, "_pool", None)
    if origin is pool:
        why = "only the block returns it that it is lent to"
    elif origin is not None:
        why = f"it comes from pool {origin.name!r}"
    else:
        why = "it doesn't come from any pool"
    return DoubleRelease(f"can't return connection to pool {pool.name!r}, {why}: {conn}")
