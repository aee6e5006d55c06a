"""A distinctive password, given in every way there is: nothing that comes out anywhere shows it."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

import ybsmart
from ybsmart import ConnectionPool, registry
from ybsmart.testing import LocalCluster

MARK = "Zq9x"
SECRET = f"{MARK}/ s3'c\\r@t%&={MARK}"


# Of us and psycopg, what was there before the first test, which `gc.get_objects` passes over.
HELD: list[object] = []


def is_ours(thing: object) -> bool:
    return str(type(thing).__module__).startswith(("ybsmart", "psycopg"))


@pytest.fixture(scope="module", autouse=True)
def held() -> Iterator[None]:
    gc.unfreeze()
    gc.collect()
    HELD.extend(filter(is_ours, gc.get_objects()))
    gc.freeze()
    yield
    HELD.clear()


class Outcome:
    """All that an attempt has let out, as text."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        self._records = records
        self.texts: list[str] = []
        self.error: BaseException | None = None

    def run(self, action: Callable[[], object]) -> None:
        try:
            self.add(action())
        except BaseException as exc:
            self.error = exc
            self.texts += traceback.format_exception(exc)
            self.add_chain(exc)

    def add_chain(self, error: BaseException | None) -> None:
        seen: list[BaseException] = []
        while error is not None and error not in seen:
            seen.append(error)
            self.add(error, error.args, pickle.dumps(error.args))
            # As a debugger would go: also where `from None` hides what was before.
            error = error.__cause__ or error.__context__

    def add(self, *things: object) -> None:
        for thing in things:
            self.texts += [repr(thing), str(thing)]

    def check(self) -> None:
        formatter = logging.Formatter("%(name)s %(message)s")
        self.texts += [formatter.format(record) for record in self._records]
        gc.collect()
        for thing in [*HELD, *filter(is_ours, gc.get_objects())]:
            # psycopg itself remembers of a failed connect all that it was told (`error.pgconn`).
            if type(thing).__name__ in ("FinishedPGconn", "ConninfoOption"):
                continue
            self.texts.append(repr(thing))
        shown = [text for text in self.texts if MARK in text]
        assert shown == []


@pytest.fixture(scope="module")
def servers() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        for node in cluster.nodes:
            password = SECRET.replace("'", "''")
            cluster.execute(node, f"CREATE ROLE app LOGIN PASSWORD '{password}'")
        yield cluster


@pytest.fixture
def outcome(caplog: pytest.LogCaptureFixture) -> Outcome:
    registry.forget()
    caplog.set_level(logging.DEBUG)
    return Outcome(caplog.records)


class Place:
    """Where to connect to, and as whom."""

    def __init__(self, host: str, port: int, user: str, dbname: str = "yugabyte", **more: str):
        self.host, self.port, self.user, self.dbname, self.more = host, port, user, dbname, more

    def uri(self, password: str | None = None, **query: str) -> str:
        user = self.user + (f":{quote(password, safe='')}" if password else "")
        query = {"load_balance": "true", **self.more, **query}
        pairs = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
        return f"postgresql://{user}@{self.host}:{self.port}/{self.dbname}?{pairs}"


def in_pairs(place: Place, password: str) -> tuple[Any, Any]:
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    more = "".join(f" {key}={value}" for key, value in place.more.items())
    return (
        f"host={place.host} port={place.port} user={place.user} dbname={place.dbname}"
        f" password='{quoted}' load_balance=true{more}"
    ), {}


def in_pairs_as_they_come(place: Place, password: str) -> tuple[Any, Any]:
    return in_pairs(place, password)[0].replace("load_balance=true", "load-balance = any"), {}


def in_a_uri(place: Place, password: str) -> tuple[Any, Any]:
    return place.uri(password), {}


def in_a_query(place: Place, password: str) -> tuple[Any, Any]:
    return place.uri(password=password), {}


def as_a_keyword(place: Place, password: str) -> tuple[Any, Any]:
    return place.uri(), {"password": password}


def in_a_variable(place: Place, password: str) -> tuple[Any, Any]:
    return place.uri(), {"PGPASSWORD": password}


def in_a_url_variable(place: Place, password: str) -> tuple[Any, Any]:
    return "", {"DATABASE_URL": place.uri(password)}


def in_a_file(place: Place, password: str) -> tuple[Any, Any]:
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    return place.uri(), {"file": f"*:*:*:*:{escaped}\n"}


def for_a_key(place: Place, password: str) -> tuple[Any, Any]:
    return place.uri(), {"sslpassword": password, "password": password}


WAYS = [
    in_pairs,
    in_pairs_as_they_come,
    in_a_uri,
    in_a_query,
    as_a_keyword,
    in_a_variable,
    in_a_url_variable,
    in_a_file,
    for_a_key,
]

# What may go wrong, and where it is seen; None: nothing does.
FAILURES = (
    "none",
    "wrong password",
    "refused",
    "unknown database",
    "unknown host",
    "bad property",
    "bad parameter",
)


def place_of(failure: str, servers: LocalCluster) -> Place:
    node = servers.nodes[0]
    if failure == "wrong password":
        return Place(node.host, node.port, "yugabyte")
    if failure == "unknown database":
        return Place(node.host, node.port, "app", "nowhere")
    if failure == "refused":
        return Place("127.0.0.1", 1, "app")
    if failure == "unknown host":
        return Place("no.such.host.invalid", node.port, "app")
    if failure == "bad property":
        return Place(node.host, node.port, "app", topology_keys="x")
    if failure == "bad parameter":
        return Place(node.host, node.port, "app", sslmode="absurd")
    return Place(node.host, node.port, "app")


@pytest.mark.parametrize(
    ("way", "failure"),
    [(way, failure) for way in WAYS for failure in FAILURES[:3]]
    + [(way, failure) for way in (in_pairs, in_a_uri) for failure in FAILURES[3:]],
)
def test_no_password_is_shown(
    way: Callable[[Place, str], tuple[Any, Any]],
    failure: str,
    servers: LocalCluster,
    outcome: Outcome,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    conninfo, options = way(place_of(failure, servers), SECRET)
    for variable in ("PGPASSWORD", "DATABASE_URL"):
        if variable in options:
            monkeypatch.setenv(variable, options.pop(variable))
    if "file" in options:
        (tmp_path / "pass").write_text(options.pop("file"))
        (tmp_path / "pass").chmod(0o600)
        options = {"passfile": str(tmp_path / "pass")}

    def connect() -> None:
        with ybsmart.connect(conninfo, **options) as conn:
            outcome.add(conn, conn.node, conn.info, conn.pgconn)
            with pytest.raises((TypeError, ValueError)):  # the latter if psycopg uses ctypes
                pickle.dumps(conn)

    async def connect_async() -> None:
        async with await ybsmart.AsyncConnection.connect(conninfo, **options) as conn:
            outcome.add(conn, conn.node)

    def lend(**given: Any) -> None:
        with ConnectionPool(**{"max_size": 1, "timeout": 5, **given}) as pool:
            outcome.add(pool)
            with pytest.raises(TypeError):
                pickle.dumps(pool)
            try:
                with pool.connection() as conn:
                    outcome.add(conn, pool.holders(), pool)
                    outcome.run(lambda: pool.getconn(0))
                outcome.run(lambda: pool.query("SELEC 1"))
                outcome.run(lambda: pool.putconn(conn))
            finally:
                outcome.add(pool, pool.get_stats())

    outcome.run(connect)
    assert (outcome.error is None) == (failure == "none"), outcome.error
    outcome.run(lambda: asyncio.run(connect_async()))
    outcome.run(lambda: lend(conninfo=conninfo, kwargs=options))
    outcome.run(lambda: lend(conninfo=lambda: conninfo, kwargs=lambda: options))
    outcome.run(lambda: lend(conninfo=conninfo, kwargs=options, fail_fast=False, timeout=0.5))
    outcome.run(lambda: ybsmart.connection_counts(conninfo, **options))
    outcome.add(ybsmart.clusters(), ybsmart.connection_counts())
    outcome.add(pickle.dumps(ybsmart.clusters()))
    outcome.check()


def test_not_after_a_time_out_either(outcome: Outcome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = Place("127.0.0.1", silent.getsockname()[1], "app", connect_timeout="1")
        outcome.run(lambda: ybsmart.connect(place.uri(SECRET)))
        with ConnectionPool(place.uri(SECRET), timeout=0.2) as pool:
            outcome.run(pool.getconn)
            outcome.add(pool, pool.get_stats())
            outcome.run(lambda: pool.wait(0.1))
        assert isinstance(outcome.error, ybsmart.PoolTimeout)
        outcome.check()


# What people write who forget to quote or to encode it.
MALFORMED = [
    f"postgresql://u:{MARK}/x@127.0.0.1:1/db",
    f"postgresql://127.0.0.1:{MARK}/x@127.0.0.1:1/db",
    f"postgresql://u:{MARK}%zz@127.0.0.1:1/db",
    f"postgresql://u:{MARK}%00@127.0.0.1:1/db",
    f"postgresql://u:{MARK} z@127.0.0.1:1/db",
    f"postgresql://u:{MARK}#z@127.0.0.1:1/db",
    f"postgresql://u:{MARK}?z@127.0.0.1:1/db",
    f"postgresql://u:[{MARK}@127.0.0.1:1/db",
    f"postgresql://u:x@{MARK}@127.0.0.1:1/db",
    f"postgresql://u:{MARK}@[::1/db",
    f"postgresql://u:{MARK}@127.0.0.1:x/db",
    f"postgresql://u@127.0.0.1:1/db?password=x%{MARK}",
    f"postgresql://u@127.0.0.1:1/db?password=x&{MARK}",
    f"postgresql://u@127.0.0.1:1/db?password={MARK}&nothing=1",
    f"POSTGRESQL://u:{MARK}@127.0.0.1:1/db",
    f" postgresql://u:{MARK}@127.0.0.1:1/db",
    f"postgresql+psycopg://u:{MARK}@127.0.0.1:1/db",
    f"jdbc:postgresql://127.0.0.1:1/db?password={MARK}",
    f"u:{MARK}@127.0.0.1:1/db",
    MARK,
    f"host=127.0.0.1 port=1 password=x {MARK}",
    f"host=127.0.0.1 port=1 password='x {MARK}",
    f"host=127.0.0.1 port=1 password=x\\ {MARK} nothing=1",
    f"host=127.0.0.1 port=1 password={MARK} nothing=1",
    f"host=127.0.0.1 password=1 port={MARK}",
]


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("conninfo", MALFORMED)
def test_what_is_malformed_is_not_repeated(
    conninfo: str, balanced: bool, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"load_balance": balanced, "connect_timeout": 2}
    outcome.run(lambda: ybsmart.connect(conninfo, **options))
    assert isinstance(outcome.error, psycopg.Error)
    outcome.run(lambda: asyncio.run(ybsmart.AsyncConnection.connect(conninfo, **options)))
    outcome.run(lambda: ConnectionPool(conninfo, kwargs=options, timeout=2, open=False))
    outcome.run(lambda: ConnectionPool(conninfo=lambda: conninfo, timeout=2).getconn())
    outcome.run(lambda: ybsmart.connection_counts(conninfo))
    monkeypatch.setenv("DATABASE_URL", conninfo)
    outcome.run(lambda: ybsmart.connect(**options))
    outcome.check()


def test_the_name_of_an_unknown_option_is_still_said() -> None:
    for conninfo in ("host=h pgbouncer=true", "postgresql://h/?pgbouncer=true"):
        for balanced in (True, False):
            with pytest.raises(psycopg.ProgrammingError, match='"pgbouncer"'):
                ybsmart.connect(conninfo, load_balance=balanced)


def test_what_may_be_pickled_comes_back(servers: LocalCluster, outcome: Outcome) -> None:
    place = place_of("none", servers)
    with ConnectionPool(place.uri(SECRET), max_size=1) as pool:
        result = pool.query("SELECT 1 AS one, 'x' AS x")
        with pool.connection():
            holders = pool.holders()
            outcome.run(lambda: pool.getconn(0))
        things = [result, result.rows, holders, ybsmart.clusters(), ybsmart.clusters()[0].nodes[0]]
        for thing in [*things, pool.get_stats(), outcome.error]:
            again = pickle.loads(pickle.dumps(thing))
            assert type(again) is type(thing)
            assert repr(again) == repr(thing)
            outcome.add(again)
    outcome.check()
