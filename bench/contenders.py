"""The pools that are compared, each in the fastest form its own documentation gives.

All are set up alike: the same conninfo, the same number of connections, all of them opened before
anything is timed, and every check that a pool does by default left as it is. A method `pair`,
`block` or `query` is the loop that is timed, written out as a user of that pool would write it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import methodcaller
from typing import Any, ClassVar

SELECT = "SELECT 1"


class Contender:
    """One pool. Subclasses are imported in a child process, and import their library only there."""

    name: ClassVar[str]
    take: Callable[..., Any]
    give: Callable[[Any], Any]

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        """`conninfo`: one node of the cluster, with its nodes to be found through `yb_servers()`;
        `hosts`: all nodes, for whoever leaves the choice to libpq, or the same one node."""
        raise NotImplementedError

    def warm(self, size: int) -> None:
        """Have all connections open, and each of them used."""
        taken = [self.take() for _ in range(size)]
        for conn in taken:
            self.give(conn)

    def pair(self, n: int) -> None:
        """Borrow a connection and return it, `n` times."""
        raise NotImplementedError

    def block(self, n: int) -> None:
        """The same as a `with` block."""
        raise NotImplementedError

    def query(self, n: int) -> None:
        """Borrow, execute one statement, fetch its row, return."""
        raise NotImplementedError

    def scalar(self) -> Any:
        """The same once, for a request handler."""
        raise NotImplementedError

    def verify(self) -> None:
        """Raise if the books do not balance, with nothing on loan."""

    def close(self) -> None:
        raise NotImplementedError


class Ybsmart(Contender):
    """Ours. Which of the two cores it runs on is decided by YBSMART_IMPL in the child."""

    name = "ybsmart"

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        from ybsmart import ConnectionPool

        self.size = size
        balanced = {"load_balance": True} if hosts != conninfo else None
        # A minimum, as the others have one: what is idle for ten seconds would be closed.
        self.pool = ConnectionPool(conninfo, kwargs=balanced, min_size=size, max_size=size)
        self.take = self.pool.getconn
        self.give = self.pool.putconn

    def pair(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            conn = pool.getconn()
            pool.putconn(conn)

    def block(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            with pool.connection():
                pass

    def query(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            pool.query(SELECT)

    def scalar(self) -> Any:
        return self.pool.query(SELECT).scalar()

    def verify(self) -> None:
        pool = self.pool
        pool.check()
        counts = (pool.total_count, pool.idle_count, pool.waiting_count)
        if counts != (self.size, self.size, 0):
            raise AssertionError(f"total, idle, waiting are {counts} with a size of {self.size}")

    def close(self) -> None:
        self.pool.close()


class PsycopgPool(Contender):
    """psycopg_pool: fixed size, no `check` (its default)."""

    name = "psycopg_pool"
    autocommit = False

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        from psycopg_pool import ConnectionPool

        kwargs = {"autocommit": True} if self.autocommit else None
        self.pool = ConnectionPool(hosts, kwargs=kwargs, min_size=size, max_size=size, open=True)
        self.pool.wait()
        self.take = self.pool.getconn
        self.give = self.pool.putconn

    def pair(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            conn = pool.getconn()
            pool.putconn(conn)

    def block(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            with pool.connection():
                pass

    def query(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            with pool.connection() as conn:
                conn.execute(SELECT).fetchall()

    def scalar(self) -> Any:
        with self.pool.connection() as conn:
            row = conn.execute(SELECT).fetchone()
            return row and row[0]

    def close(self) -> None:
        self.pool.close()


class PsycopgPoolAutocommit(PsycopgPool):
    """The same with connections in autocommit: no BEGIN and COMMIT around a statement."""

    autocommit = True


class SQLAlchemyPool(Contender):
    """SQLAlchemy's engine on its QueuePool: no overflow, `reset_on_return` as by default."""

    name = "SQLAlchemy"

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        import psycopg
        from sqlalchemy import create_engine, text

        self.engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(hosts),
            pool_size=size,
            max_overflow=0,
        )
        self.statement = text(SELECT)
        self.take = self.engine.raw_connection
        self.give = methodcaller("close")

    def pair(self, n: int) -> None:
        engine = self.engine
        for _ in repeat(None, n):
            conn = engine.raw_connection()
            conn.close()

    def block(self, n: int) -> None:
        engine = self.engine
        for _ in repeat(None, n):
            with engine.connect():
                pass

    def query(self, n: int) -> None:
        engine, statement = self.engine, self.statement
        for _ in repeat(None, n):
            with engine.connect() as conn:
                conn.execute(statement).all()

    def scalar(self) -> Any:
        with self.engine.connect() as conn:
            return conn.execute(self.statement).scalar()

    def close(self) -> None:
        self.engine.dispose()


class DBUtilsPool(Contender):
    """DBUtils' PooledDB: `ping` and `reset` as by default, waiting instead of failing."""

    name = "DBUtils"

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        import psycopg
        from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped]

        self.pool = PooledDB(
            psycopg, size, maxcached=size, maxconnections=size, blocking=True, conninfo=hosts
        )
        self.take = self.pool.connection
        self.give = methodcaller("close")

    def pair(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            conn = pool.connection()
            conn.close()

    def block(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            with pool.connection():
                pass

    def query(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            with pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute(SELECT)
                cursor.fetchall()

    def scalar(self) -> Any:
        with self.pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute(SELECT)
            return cursor.fetchone()[0]

    def close(self) -> None:
        self.pool.close()


# Yardsticks: no pools, but what the parts cost that any pool is made of.


def _connect(hosts: str, size: int) -> list[Any]:
    import psycopg

    return [psycopg.connect(hosts) for _ in range(size)]


def _close(conns: Iterable[Any]) -> None:
    for conn in conns:
        conn.close()


class Queue(Contender):
    """`queue.SimpleQueue` with the connections in it. No order among waiters, no checks."""

    name = "SimpleQueue"

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        from queue import SimpleQueue

        self.conns = _connect(hosts, size)
        self.queue: SimpleQueue[Any] = SimpleQueue()
        for conn in self.conns:
            self.queue.put(conn)
        self.take = self.queue.get
        self.give = self.queue.put

    def pair(self, n: int) -> None:
        queue = self.queue
        for _ in repeat(None, n):
            conn = queue.get()
            queue.put(conn)

    def close(self) -> None:
        _close(self.conns)


class HandOver:
    """The least that hands connections over in strict order: a lock, two deques, and one lock for
    each waiter to sleep on. No time-out, no checks, and an interrupt loses a connection."""

    def __init__(self, conns: Iterable[Any]) -> None:
        self._lock = threading.Lock()
        self._idle = deque(conns)
        self._waiters: deque[tuple[threading.Lock, list[Any]]] = deque()

    def get(self) -> Any:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            parked = threading.Lock()
            parked.acquire()
            outcome: list[Any] = []
            self._waiters.append((parked, outcome))
        parked.acquire()
        return outcome[0]

    def put(self, conn: Any) -> None:
        with self._lock:
            if not self._waiters:
                self._idle.append(conn)
                return
            parked, outcome = self._waiters.popleft()
        outcome.append(conn)
        parked.release()


class LockHandOver(Contender):
    """`threading.Lock`, in thirty lines of Python."""

    name = "Lock hand-over"

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        self.conns = _connect(hosts, size)
        self.pool = HandOver(self.conns)
        self.take = self.pool.get
        self.give = self.pool.put

    def pair(self, n: int) -> None:
        pool = self.pool
        for _ in repeat(None, n):
            conn = pool.get()
            pool.put(conn)

    def close(self) -> None:
        _close(self.conns)


class Bare(Contender):
    """No pool: connections of one's own, one per thread, in autocommit."""

    name = "bare psycopg"

    def __init__(self, conninfo: str, hosts: str, size: int) -> None:
        import psycopg

        self._own = threading.local()
        self._open: deque[Any] = deque()
        self._connect: Callable[[], Any] = lambda: psycopg.connect(conninfo, autocommit=True)
        self.take = self._mine
        self.give = id

    def _mine(self) -> Any:
        try:
            return self._own.conn
        except AttributeError:
            self._own.conn = self._connect()
            self._open.append(self._own.conn)
            return self._own.conn

    def query(self, n: int) -> None:
        conn = self._mine()
        for _ in repeat(None, n):
            conn.execute(SELECT)

    def scalar(self) -> Any:
        return self._mine().execute(SELECT).fetchone()[0]

    def close(self) -> None:
        _close(self._open)


CLASSES: dict[str, type[Contender]] = {
    "ybsmart": Ybsmart,
    "ybsmart-pure": Ybsmart,
    "psycopg_pool": PsycopgPool,
    "psycopg_pool-autocommit": PsycopgPoolAutocommit,
    "sqlalchemy": SQLAlchemyPool,
    "dbutils": DBUtilsPool,
    "simplequeue": Queue,
    "lock": LockHandOver,
    "bare": Bare,
    "gil": Ybsmart,
    "no-gil": Ybsmart,
}

# What a child needs in its environment to become that contender.
ENVIRONMENT: dict[str, dict[str, str]] = {
    "ybsmart": {"YBSMART_IMPL": "c"},
    "ybsmart-pure": {"YBSMART_IMPL": "python"},
}
