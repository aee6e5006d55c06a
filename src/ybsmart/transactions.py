"""Whole transactions, repeated when the server asks for it.

YugabyteDB and PostgreSQL give up a transaction that conflicts with another (40001) or is in a
deadlock (40P01), at any statement or at the COMMIT, and expect the client to run it again from the
beginning. Never repeats anything for another reason: it may have had its effect.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

import psycopg

from .hygiene import IDLE, close

T = TypeVar("T")
C = TypeVar("C", bound=psycopg.Connection[Any])

REPEATED = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


def run(
    lend: Callable[[], AbstractContextManager[C]],
    fn: Callable[[C], T],
    *,
    isolation_level: psycopg.IsolationLevel | None,
    read_only: bool | None,
    deferrable: bool | None,
    max_retries: int,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """Run `fn(conn)` in a transaction of its own until it is through; return what it returned.

    Each attempt borrows a connection anew, so that none is held while waiting between attempts.
    """
    failures = 0
    while True:
        try:
            with lend() as conn, _characteristics(conn, isolation_level, read_only, deferrable):
                result: Any = None  # if the transaction is left by `psycopg.Rollback`
                with conn.transaction():
                    result = fn(conn)
                return cast(T, result)
        except REPEATED:
            failures += 1
            if failures > max_retries:
                raise
        # Exponential from 10 ms to a second, and random in full, so that those who met do not
        # meet again.
        sleep(random.uniform(0.001, min(0.01 * 2 ** min(failures - 1, 16), 1.0)))


@contextmanager
def _characteristics(
    conn: C,
    isolation_level: psycopg.IsolationLevel | None,
    read_only: bool | None,
    deferrable: bool | None,
) -> Iterator[None]:
    """Set what is not None, for the transaction that follows."""
    before = conn.isolation_level, conn.read_only, conn.deferrable
    after = (
        before[0] if isolation_level is None else isolation_level,
        before[1] if read_only is None else read_only,
        before[2] if deferrable is None else deferrable,
    )
    if after == before:
        yield
        return
    try:
        conn.isolation_level, conn.read_only, conn.deferrable = after
        yield
    except psycopg.errors.ReadOnlySqlTransaction as exc:
        if conn.read_only:
            # Asked for: it says nothing about the node, which is what the pool would think.
            exc.ybsmart_read_only = True  # type: ignore[attr-defined]
        raise
    finally:
        if conn.pgconn.transaction_status == IDLE:
            conn.isolation_level, conn.read_only, conn.deferrable = before
        elif (conn.isolation_level, conn.read_only, conn.deferrable) != before:
            # Broken, or an interrupt has kept the transaction from being ended: they cannot be set
            # back, and nobody else is to get it as it is.
            close(conn)
