"""The cases: who is compared at what, and which figures are to be reached. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TIMES = "\N{MULTIPLICATION SIGN}"
OURS = ("ybsmart", "ybsmart-pure")
POOLS = (*OURS, "psycopg_pool", "sqlalchemy", "dbutils")
YARDSTICKS = ("simplequeue", "lock")

LABELS = {
    "ybsmart": "ybsmart",
    "ybsmart-pure": "ybsmart, pure Python",
    "psycopg_pool": "psycopg_pool",
    "psycopg_pool-autocommit": "psycopg_pool, autocommit",
    "sqlalchemy": "SQLAlchemy",
    "dbutils": "DBUtils",
    "simplequeue": "queue.SimpleQueue",
    "lock": "Lock hand-over",
    "bare": "no pool",
    "psycopg": "psycopg, one host",
    "yugabytedb": "psycopg-yugabytedb",
    "yugabytedb-plain": "psycopg-yugabytedb, one host",
    "gil": "with the GIL",
    "no-gil": "without the GIL",
}


@dataclass(frozen=True)
class Target:
    """One figure to reach: `ybsmart`'s `metric`, by itself or as a ratio to somebody else's.

    `better` "higher": theirs divided by ours, how many times less we need; "lower": ours divided
    by theirs, or ours alone without `against`. `scale` is for values without `against`.
    """

    text: str
    metric: str
    must: float
    aim: float | None = None
    against: str | None = None
    better: Literal["higher", "lower"] = "lower"
    subject: str = "ybsmart"
    minus: tuple[str, str] | None = None  # (from subject, from against): what is the base of each
    unit: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """A row of the table, or a few that are measured together."""

    name: str
    title: str
    workload: str
    contenders: tuple[str, ...]
    params: dict[str, Any] = field(default_factory=dict)
    brief: dict[str, Any] = field(default_factory=dict)  # in place of those, to run it just once
    rounds: int = 15
    seconds: float = 0.1  # of a round
    quick_rounds: int = 5
    quick_seconds: float = 0.05
    # What disturbs one thread makes it slower, never faster: the best round says most. Where
    # threads compete, the course of a round is the matter itself: the median of rounds.
    best: bool = True
    metrics: tuple[str, ...] = ("time", "cpu")
    targets: tuple[Target, ...] = ()
    quick: bool = True  # part of a quick run


def _times(metric: str, against: str, must: float, aim: float | None, text: str) -> Target:
    return Target(text, metric, must, aim, against, "higher", unit=TIMES)


def _share(metric: str, against: str, must: float, aim: float | None, text: str) -> Target:
    return Target(text, metric, must, aim, against, "lower", unit=TIMES)


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


CASES = (
    Case(
        "pair",
        "`getconn` + `putconn`, one thread",
        "loop",
        (*POOLS, *YARDSTICKS),
        {"loop": "pair", "size": 4},
        targets=(
            _times("time", "psycopg_pool", 10, 16, "faster than psycopg_pool"),
            _times("time", "sqlalchemy", 20, 35, "faster than SQLAlchemy"),
            _share("time", "simplequeue", 5, 3, "the time of SimpleQueue get + put"),
        ),
    ),
    Case(
        "block",
        "`with pool.connection(): pass`, one thread",
        "loop",
        POOLS,
        {"loop": "block", "size": 4},
        targets=(_times("time", "psycopg_pool", 10, 15, "faster than psycopg_pool"),),
    ),
    Case(
        "hammer",
        "32 threads, 8 connections, no hold",
        "threads",
        (*POOLS, *YARDSTICKS),
        {"threads": 32, "size": 8},
        best=False,
        rounds=7,
        seconds=0.5,
        quick_rounds=3,
        quick_seconds=0.15,
        metrics=("time", "cpu", "fairness"),
        targets=(
            _times("time", "psycopg_pool", 1.3, 2.5, "the throughput of psycopg_pool"),
            _share("cpu", "psycopg_pool", 1.0, 0.6, "the CPU per operation of psycopg_pool"),
            Target("fewest/most per thread", "fairness", 0.95, better="higher"),
        ),
    ),
    Case(
        "hold",
        "64 threads, 16 connections, 1 ms hold",
        "threads",
        (*POOLS, *YARDSTICKS),
        {"threads": 64, "size": 16, "hold": 0.001, "settle": 0.2},
        best=False,
        rounds=5,
        seconds=1.0,
        quick_rounds=2,
        quick_seconds=0.25,
        metrics=("time", "cpu", "fairness", "median wait", "p99 wait", "p99/median"),
        targets=(
            _share("cpu", "psycopg_pool", 0.65, 0.4, "the CPU per operation of psycopg_pool"),
            Target("p99 wait / median", "p99/median", 1.2, unit=TIMES),
            Target("fewest/most per thread", "fairness", 0.95, better="higher"),
        ),
    ),
    Case(
        "waiters-100",
        "100 waiters give up in random order, per waiter",
        "waiters",
        OURS,
        {"waiters": 100},
        rounds=7,
        quick_rounds=3,
        metrics=("time", "cpu", "bytes"),
    ),
    Case(
        "waiters-10000",
        "10 000 waiters give up in random order, per waiter",
        "waiters",
        OURS,
        {"waiters": 10_000},
        rounds=7,
        quick_rounds=3,
        metrics=("time", "cpu", "bytes"),
        targets=(
            Target("the cost at 100", "time", 1.5, against="waiters-100:ybsmart", unit=TIMES),
            Target("memory per waiter", "bytes", 300, unit=" bytes"),
        ),
    ),
    Case(
        "crowd-100",
        "100 threads time out in the queue, CPU per thread",
        "crowd",
        (*OURS, "psycopg_pool", "bare"),
        {"waiters": 100},
        {"waiters": 20},
        best=False,
        rounds=2,
        metrics=("cpu",),
        quick=False,
    ),
    Case(
        "crowd-4000",
        "4 000 threads time out in the queue, CPU per thread",
        "crowd",
        (*OURS, "psycopg_pool", "bare"),
        {"waiters": 4000},
        {"waiters": 20},
        best=False,
        rounds=1,
        metrics=("cpu",),
        quick=False,
    ),
    *(
        Case(
            f"hosts-{nodes}",
            f"reserve + release a host, {_spaced(nodes)} nodes",
            "hosts",
            (*OURS, "yugabytedb"),
            {"nodes": nodes},
            rounds=9,
            targets=targets,
        )
        for nodes, targets in (
            (3, (_times("time", "yugabytedb", 20, None, "faster than psycopg-yugabytedb"),)),
            (100, ()),
            (
                1000,
                (
                    _times("time", "yugabytedb", 50, 100, "faster than psycopg-yugabytedb"),
                    Target("each", "time", 5, 2, unit=" µs", scale=1e6),
                ),
            ),
        )
    ),
    Case(
        "connect",
        "connect and close",
        "connect",
        (*OURS, "psycopg", "yugabytedb", "yugabytedb-plain"),
        rounds=25,
        quick_rounds=7,
        targets=(
            _share("time", "psycopg", 1.05, 1.02, "the time of `psycopg.connect` to one host"),
            Target(
                "what we add, of what psycopg-yugabytedb adds",
                "time",
                1.0,
                against="yugabytedb",
                minus=("psycopg", "yugabytedb-plain"),
                unit=TIMES,
            ),
        ),
    ),
    Case(
        "query",
        '`pool.query("SELECT 1")`',
        "loop",
        (*POOLS[:3], "psycopg_pool-autocommit", *POOLS[3:], "bare"),
        # On one node, as is the bare connection: servers in turn find the caches cold.
        {"loop": "query", "size": 4, "one node": True},
        targets=(
            _times("time", "psycopg_pool", 2.5, None, "faster than psycopg_pool's idiom"),
            _share("time", "bare", 1.1, None, "the time of a bare `conn.execute`"),
        ),
    ),
    Case(
        "http",
        "one-query handler, gunicorn gthread, 16 threads, 3 nodes",
        "http",
        (*POOLS, "bare"),
        {"size": 10, "connections": 32},
        best=False,
        rounds=3,
        seconds=3.0,
        metrics=("time", "cpu", "p99 latency"),
        quick=False,
        targets=(
            _times("time", "psycopg_pool", 1.15, None, "the requests/s on psycopg_pool"),
            _times("time", "sqlalchemy", 1.4, None, "the requests/s on SQLAlchemy"),
            _share("p99 latency", "psycopg_pool", 1.0, None, "the p99 of psycopg_pool"),
            _share("p99 latency", "sqlalchemy", 1.0, None, "the p99 of SQLAlchemy"),
        ),
    ),
    Case(
        "import",
        "import after `import psycopg`",
        "import",
        POOLS,
        rounds=7,
        quick_rounds=2,
        targets=(Target("each", "time", 10, unit=" ms", scale=1e3),),
    ),
    Case(
        "free-threading",
        "2 threads, 2 connections, Python without the GIL",
        "threads",
        ("no-gil", "gil"),
        {"threads": 2, "size": 2},
        best=False,
        rounds=7,
        seconds=0.3,
        metrics=("time", "cpu", "fairness"),
        targets=(
            Target(
                "the throughput with the GIL",
                "time",
                1.0,
                against="gil",
                better="higher",
                subject="no-gil",
                unit=TIMES,
            ),
        ),
    ),
    Case(
        "instructions",
        "machine instructions",
        "callgrind",
        (*POOLS, *YARDSTICKS),
        {"size": 4},
        rounds=1,
        metrics=("pair", "block"),
        quick=False,
    ),
)
