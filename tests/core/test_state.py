"""The pool's numbers, and what of its state a forked child has."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest

from tests.core.shell import (
    IN_TRANSACTION,
    MakePool,
    NotLent,
)

# Invariants


def test_the_reports_are_of_the_same_numbers(make_pool: MakePool) -> None:
    pool = make_pool(3)
    held = pool.grow("a", "b")
    pool.request()

    assert pool._snapshot() == {
        "total": 3,
        "idle": 0,
        "lent": 2,
        "connecting": 1,
        "waiting": 1,
        "closing": False,
        "shelves": {"a": (0, 1), "b": (0, 1)},
    }
    assert (pool.total_count, pool.idle_count) == (3, 0)
    assert (pool.connecting_count, pool.waiting_count) == (1, 1)
    assert len(held) == 2


def test_a_core_without_a_shell_has_no_hooks(core: Any) -> None:
    pool = core.pool.PoolCore(0, 1, 1, 1.0, 9, 0, 1.0, 0.0, True, 0)

    waiter = core.pool.Waiter(lambda: None)
    for hook, args in {
        "_must_be_seconds": (None,),
        "_new_waiter": (None,),
        "_sleep": (waiter, None),
        "_open": (None,),
        "_retry_later": (),
        "_is_alive": (None,),
        "_passes": (None, False),
        "_vet": (None,),
        "_pause": (None, 0.0, 0),
        "_failed_with": (None, None),
        "_clean": (None,),
        "_close_conn": (None, None),
        "_trace": (None,),
        "_untrace": (None,),
        "_notify": ("remove", None, None),
        "_progressed": (),
        "_lost_one": (None,),
        "_too_many": (),
        "_not_lent": (None,),
        "_closed_error": (),
    }.items():
        with pytest.raises(NotImplementedError):
            getattr(pool, hook)(*args)


# Numbers


def test_numbers_that_are_reset_begin_at_zero_and_the_peak_at_what_there_is(
    make_pool: MakePool, clock: Any
) -> None:
    pool = make_pool(3)
    conns = pool.grow("a", "a")
    clock.now += 2
    for conn in conns:
        pool.putconn(conn)
    pool.putconn(pool.getconn(), discard=True)

    first = pool._numbers(True)
    second = pool._numbers(False)

    assert (first["requests"], first["queued"], first["peak"]) == (3, 2, 2)
    assert first["usage"] == 4.0
    assert sum(first["usage_buckets"]) == 3
    assert (second["requests"], second["queued"], second["peak"]) == (0, 0, 1)
    assert (second["usage"], sum(second["usage_buckets"])) == (0.0, 0)


# Forked children


def test_a_forked_child_starts_empty_and_owns_nothing_of_its_parents(make_pool: MakePool) -> None:
    pool = make_pool(3, min_size=1)
    lent, idle = pool.grow("a", "b")
    pool.putconn(idle)
    block = pool.connection()
    in_block = block.__enter__()

    inheritance = pool._inheritance(RuntimeError())
    pool._start_empty()
    pool.open.clear()
    assert len(inheritance[0]) == 2
    assert pool._snapshot() == {
        **dict.fromkeys(("total", "idle", "lent", "connecting", "waiting"), 0),
        "closing": False,
        "shelves": {},
    }

    for conn in (lent, idle):
        with pytest.raises(NotLent):
            pool.putconn(conn)
    in_block.pgconn.transaction_status = IN_TRANSACTION
    with pytest.raises(NotLent):
        block.__exit__(None, None, None)
    assert in_block.exits == []  # neither committed nor rolled back
    assert pool.closed == []
    pool.nodes = repeat("c")
    assert pool.getconn() not in (lent, idle)
    pool.nodes = None


def test_a_closing_pool_is_closing_in_the_child_too(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.close()

    pool._start_empty()

    assert pool._is_closing()
