"""Each program of examples/ runs with one command, and does what it is there to show."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.examples.terminal import free_port
from tests.pages import ROOT

EXAMPLES = ROOT / "examples"
PATIENCE = 60.0  # seconds for anything; never reached when all is well

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="local clusters need Linux or macOS"
)


def needs(*modules: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in modules),
        reason="needs the extra `examples` (`make examples` installs it)",
    )


def environment(**variables: str) -> dict[str, str]:
    """This process's, but with no word on where to connect, so that the example sees to it."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    mine.pop("DATABASE_URL", None)
    return {**mine, "PYTHONWARNINGS": "default", **variables}


def output_of(name: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@contextmanager
def serving(program: Path, folder: Path) -> Iterator[str]:
    """Run an example with a web server, until the end of the block; then Ctrl-C. Its URL."""
    port = free_port()
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, program],
            env=environment(PORT=str(port), PYTHONPATH=str(EXAMPLES)),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()
                print((folder / "log").read_text())


def fetch(url: str) -> str:
    """The page, once the server is there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                text: str = answer.read().decode()
                return text
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_the_script_loses_no_money() -> None:
    out = output_of("script")

    assert "balances: {1: 800, 2: 1200}" in out


@needs("sqlalchemy")
def test_sqlalchemy_borrows_from_the_pool_and_returns_to_it() -> None:
    out = output_of("sqlalchemy_app")

    assert "visits: 2" in out
    assert "served by 127.0.0.1" in out
    assert "loans: 6 connections: 1" in out


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("flask_app", marks=needs("flask")),
        pytest.param("django_app", marks=needs("django")),
        pytest.param("fastapi_app", marks=needs("fastapi", "uvicorn")),
    ],
)
def test_a_web_application_serves_pages(name: str, tmp_path: Path) -> None:
    with serving(EXAMPLES / f"{name}.py", tmp_path) as url:
        assert fetch(f"{url}/").startswith("served by 127.0.0.")
        assert fetch(f"{url}/transaction") == "1 visit\n"
    assert "Traceback" not in (tmp_path / "log").read_text()


FAILING_COMMIT = """
from fastapi_app import PORT, Transaction, app, database, pool, uvicorn

@app.get("/late")
def late(conn: Transaction):
    conn.execute("INSERT INTO once VALUES (1), (1)")

with database(nodes=1):
    pool.query("CREATE TABLE once (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    uvicorn.run(app, port=PORT)
"""


@needs("fastapi", "uvicorn")
def test_fastapi_does_not_answer_before_the_commit(tmp_path: Path) -> None:
    program = tmp_path / "failing_commit.py"
    program.write_text(FAILING_COMMIT)
    with serving(program, tmp_path) as url:
        fetch(f"{url}/")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/late", timeout=PATIENCE)
        caught.value.close()

    assert caught.value.code == 500
