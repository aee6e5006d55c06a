"""`with pool.connection()`."""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import partial
from itertools import repeat
from operator import methodcaller
from typing import Any

import pytest

from tests.core.shell import (
    IN_TRANSACTION,
    Conn,
    Interrupt,
    MakePool,
    make_shell,
)


def test_a_block_returns_its_connection(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")

    with pool.connection() as got:
        assert got is conn
        assert pool.idle_count == 0

    assert pool.idle_count == 1
    assert conn.exits == []


def test_a_block_settles_a_transaction_as_the_connection_s_own_block_does(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")

    with pool.connection():
        conn.pgconn.transaction_status = IN_TRANSACTION

    assert conn.exits == [(None, None, None)]
    assert pool.idle_count == 1


def test_a_block_passes_its_error_to_the_connection_and_on(make_pool: MakePool) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")
    error = ValueError()

    with pytest.raises(ValueError) as caught, pool.connection():
        conn.pgconn.transaction_status = IN_TRANSACTION
        raise error

    assert caught.value is error
    ((exc_type, exc, _),) = conn.exits
    assert (exc_type, exc) == (ValueError, error)
    assert pool.idle_count == 1


def test_a_block_whose_transaction_cannot_be_ended_returns_the_connection(
    make_pool: MakePool,
) -> None:
    class Broken(Conn):
        def __exit__(self, *_: object) -> None:
            raise OSError

    pool = make_pool()
    pool.new_conn = lambda: Broken(1)
    pool.nodes = repeat("a")

    with pytest.raises(OSError), pool.connection() as conn:
        conn.pgconn.transaction_status = IN_TRANSACTION
        conn.cleanable = False

    assert pool.closed == [1]
    assert pool.total_count == 0


def test_a_block_that_ends_no_transaction_leaves_cleaning_to_the_pool(
    core: Any, make_pool: MakePool
) -> None:
    pool = make_pool()
    (conn,) = pool.stock("a")

    with core.pool.Checkout(pool, None, False):
        conn.pgconn.transaction_status = IN_TRANSACTION

    assert conn.exits == []
    assert pool.idle_count == 1


def test_a_block_passes_its_timeout_on(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.nodes = repeat("a")

    with pool.connection(1.5), pool.connection():
        pass

    assert pool.timeouts == [1.5, None]


def test_a_block_cannot_be_entered_twice(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.nodes = repeat("a")

    with pool.connection() as conn:
        pass
    block = pool.connection()
    with block:
        with pytest.raises(RuntimeError, match="entered already"):
            block.__enter__()
        assert pool.total_count == 1

    assert pool.getconn() is conn


def test_a_block_that_is_dropped_frees_its_place(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.nodes = repeat("a")

    pool.connection().__enter__()

    assert pool.is_whole()


def test_an_interruption_while_a_block_begins_loses_no_place(
    core: Any, make_pool: MakePool
) -> None:
    if core.name == "python":
        pytest.skip("it is delivered between two bytecodes of the pool itself")
    shell = make_shell(core)
    entered = []

    # A hook with no bytecode of its own, at whose end the interruption would be delivered.
    interrupting = type("Interrupting", (shell,), {"_restore": methodcaller("interrupt")})
    interrupt = partial(
        ctypes.pythonapi.PyThreadState_SetAsyncExc,
        ctypes.c_ulong(threading.get_ident()),
        ctypes.py_object(Interrupt),
    )
    pool = interrupting(1)
    conn: Any
    (conn,) = pool.grow("a")
    conn.interrupt = interrupt
    slot = conn._ybsmart_slot
    slot.altered = True
    pool.putconn(conn)
    del conn

    with pytest.raises(Interrupt), pool.connection():
        entered.append("first")
        entered.append("second")

    # CPython 3.14 raises it as `__enter__` returns, so that nobody calls `__exit__`, and the
    # connection is dropped; before that, in the block, which returns it.
    assert entered == ([] if sys.version_info >= (3, 14) else ["first"])
    slot.altered = False
    assert pool.is_whole()
