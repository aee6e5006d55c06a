"""The package in the servers that people run: preloaded, forked, threaded, patched, killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Program
from tests.support import until
from ybsmart.testing.places import Places

# An application that has used its pool before it is forked, if it is.
APPLICATION = """
import json, os, signal, sys, threading, ybsmart

pool = ybsmart.ConnectionPool(os.environ["URL"], max_size=3, max_idle=None,
                              kwargs={"autocommit": True})
inherited = [pool.getconn() for _ in range(2)]
pids = [conn.info.backend_pid for conn in inherited]
for conn in inherited: pool.putconn(conn)
loaded_in = os.getpid()

def application(environ, start_response):
    with pool.connection() as conn:
        # It takes its time, so that eight at a time are more than one worker can serve.
        backend, _ = conn.execute("SELECT pg_backend_pid(), pg_sleep(0.01)::text").fetchone()
    start_response("200 OK", [("Content-Type", "application/json")])
    answer = {"process": os.getpid(), "backend": backend, "size": pool.total_count,
              "loaded_in": loaded_in, "inherited": os.getpid() != loaded_in and backend in pids}
    return [json.dumps(answer).encode()]
"""

GUNICORN = """
import ybsmart

def post_worker_init(worker):
    import application
    ybsmart.close_on_sigterm(application.pool)
    worker.log.info("worker ready")

def worker_exit(server, worker):
    import application
    server.log.info("worker ended: %s %d", application.pool.closed, application.pool.total_count)
"""

PATCHED = "import gevent.monkey; gevent.monkey.patch_all()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "application.py").write_text(APPLICATION)
    return tmp_path


class Server:
    """A server that is being asked."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.url = f"http://127.0.0.1:{port}/"

    def ask(self, _: object = None) -> dict[str, Any]:
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def ask_all(self, count: int, at_a_time: int = 8) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(at_a_time) as askers:
            try:
                return list(askers.map(self.ask, range(count)))
            except urllib.error.HTTPError as exc:
                raise AssertionError(self.program.errors) from exc

    def is_up(self) -> bool:
        assert self.program.process.poll() is None, self.program.errors
        try:
            self.ask()
        except OSError:
            return False
        return True


@pytest.fixture
def serve(folder: Path, url: str) -> Iterator[Callable[..., Server]]:
    """Start a server, on a port of its own; `{port}` in its arguments stands for that."""
    programs: list[Program] = []
    places = Places("127.0.0.1", None)

    def start(*command: str) -> Server:
        # One that nobody takes before it does: neither a cluster nor a connection that goes out.
        ((_, port),) = places.first(1)
        arguments = [part.replace("{port}", str(port)) for part in command]
        path = os.pathsep.join([str(folder), *filter(None, sys.path)])
        programs.append(Program(arguments, URL=url, PYTHONPATH=path))
        server = Server(programs[-1], port)
        until(server.is_up, limit=60)
        return server

    yield start
    for program in programs:
        program.__exit__()
    places.release()


WORKERS = [
    ("sync", True),
    ("gthread", True),
    ("gthread", False),
    ("gevent", True),
    ("gevent, patched before", True),
    ("gevent, patched before", False),
]


@pytest.mark.parametrize(("kind", "preload"), WORKERS)
def test_each_gunicorn_worker_has_its_own_sessions(
    serve: Callable[..., Server],
    folder: Path,
    sessions: Callable[[], int],
    kind: str,
    preload: bool,
) -> None:
    pytest.importorskip("gunicorn")
    if kind.startswith("gevent"):
        pytest.importorskip("gevent")
    configuration = folder / "configuration.py"
    configuration.write_text((PATCHED if "before" in kind else "") + GUNICORN)
    server = serve(
        *(sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "3"),
        *("--worker-class", kind.partition(",")[0], "--threads", "4"),
        *("--config", str(configuration), "--worker-tmp-dir", str(folder)),
        *(["--preload"] if preload else []),
        "application:application",
    )

    def ready(count: int) -> None:
        until(lambda: server.program.errors.count("worker ready") == count, limit=60)

    ready(3)
    answers = server.ask_all(100)
    assert {answer["inherited"] for answer in answers} == {False}
    assert {answer["loaded_in"] for answer in answers} == (
        {server.program.pid} if preload else {answer["process"] for answer in answers}
    )

    # One of them is killed: the others, and its successor, go on with what they have.
    victim = answers[0]["process"]
    before = {(answer["process"], answer["backend"]) for answer in answers}
    os.kill(victim, signal.SIGKILL)
    ready(4)
    answers = server.ask_all(60)
    assert victim not in {answer["process"] for answer in answers}
    assert {answer["inherited"] for answer in answers} == {False}
    assert before & {(answer["process"], answer["backend"]) for answer in answers}

    # And in the end all end, the pools first.
    server.program.terminate()
    status, _ = server.program.end()
    assert status == 0, server.program.errors
    assert server.program.errors.count("worker ended: True 0") == 3, server.program.errors
    if not (preload and "before" in kind):
        # There, threads of the master are greenlets, which survive a fork; gevent reports that
        # Python does not know them any more.
        assert "Traceback" not in server.program.errors, server.program.errors
    until(lambda: sessions() == 0)


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_threads_of_waitress_share_a_pool_that_ends_with_them(
    serve: Callable[..., Server], folder: Path, sessions: Callable[[], int]
) -> None:
    pytest.importorskip("waitress")
    (folder / "serve.py").write_text(
        "import sys, waitress, ybsmart, application\n"
        "ybsmart.close_on_sigterm(application.pool)\n"
        "waitress.serve(application.application, host='127.0.0.1', port=sys.argv[1], threads=8)\n"
    )
    server = serve(sys.executable, str(folder / "serve.py"), "{port}")

    answers = server.ask_all(100)
    assert max(answer["size"] for answer in answers) <= 3
    server.program.terminate()
    assert server.program.end()[0] == -signal.SIGTERM
    assert "Traceback" not in server.program.errors
    until(lambda: sessions() == 0)


UWSGI = shutil.which("uwsgi", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")

THREADS = ["--enable-threads", "--threads", "4"]
# Without it Python does not know that it was forked, and threads of the master that are at work at
# that moment leave the interpreter's lock unusable: ours, if the pool has been used before.
HOOKS = ["--py-call-uwsgi-fork-hooks"]


@pytest.mark.skipif(UWSGI is None, reason="no uWSGI: pip install pyuwsgi")
@pytest.mark.parametrize(
    ("options", "used_before"),
    [
        (HOOKS, True),
        ([*HOOKS, *THREADS], True),
        ([], False),
        (THREADS, False),
        (["--lazy-apps"], True),
        (["--lazy-apps", *THREADS], True),
    ],
    ids=[
        "preloaded",
        "preloaded, threads",
        "preloaded, untold",
        "preloaded, untold, threads",
        "lazy-apps",
        "lazy-apps, threads",
    ],
)
def test_each_uwsgi_worker_has_its_own_sessions(
    serve: Callable[..., Server],
    folder: Path,
    sessions: Callable[[], int],
    options: list[str],
    used_before: bool,
) -> None:
    application = folder / "application.py"
    if not used_before:
        application.write_text(APPLICATION.replace("range(2)", "range(0)"))
    server = serve(
        *(str(UWSGI), "--http-socket", "127.0.0.1:{port}", "--master", "--processes", "3"),
        *("--die-on-term", "--need-app", "--wsgi-file", str(application)),
        *options,
    )

    def ask_them_all() -> list[dict[str, Any]]:
        answers = server.ask_all(50)
        while len({answer["process"] for answer in answers[-200:]}) < 3:
            answers += server.ask_all(50)
        assert {answer["inherited"] for answer in answers} == {False}
        return answers

    answers = ask_them_all()
    workers = {answer["process"] for answer in answers}
    assert workers == set(children(server.program.pid))
    assert {answer["loaded_in"] for answer in answers} == (
        workers if "--lazy-apps" in options else {server.program.pid}
    )

    # One of them is killed: the others, and its successor, go on with what they have.
    victim = answers[0]["process"]
    before = {(answer["process"], answer["backend"]) for answer in answers}
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in (now := children(server.program.pid)) and len(now) == 3)
    answers = ask_them_all()
    assert victim not in {answer["process"] for answer in answers}
    assert before & {(answer["process"], answer["backend"]) for answer in answers}

    server.program.terminate()
    server.program.end()
    assert "Traceback" not in server.program.errors, server.program.errors
    until(lambda: sessions() == 0)
