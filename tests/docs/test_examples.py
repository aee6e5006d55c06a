"""The Python examples of every page do what the page says.

Each page is one program, from top to bottom. It is given `conninfo`, the URL of a server with
`load_balance=true`; where more nodes are needed, it starts them. What it asserts must hold.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import ybsmart
from tests.pages import Block, blocks, pages
from ybsmart import registry
from ybsmart.testing import LocalCluster

# Its blocks are files and commands, which `tests/examples` follows.
TUTORIAL = "tutorial.md"


@pytest.fixture(scope="session")
def server() -> Iterator[LocalCluster]:
    # One, because nothing is replicated between the nodes of a local cluster.
    with LocalCluster(1) as cluster:
        yield cluster


def has_examples(page: Path) -> bool:
    return page.name != TUTORIAL and any(b.is_executed for b in blocks(page, "python"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # which the page is about
@pytest.mark.parametrize("page", [*filter(has_examples, pages())], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(
    page: Path, server: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A healthy server on a busy machine must not look like a silent one.
    monkeypatch.setattr("ybsmart.cluster.HEDGE_DELAY", 10.0)
    registry.forget()
    conninfo = server.conninfo(load_balance=True)
    names: dict[str, Any] = {"__name__": "example", "conninfo": conninfo}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        for block in blocks(page, "python"):
            if block.is_executed and not block.file:
                # So that tracebacks give the page's own lines.
                text = "\n" * (block.line - 1) + block.text
                exec(compile(text, str(page), "exec"), names)
    finally:
        signal.signal(signal.SIGTERM, handler)
        for name in [*names]:
            thing = names.pop(name)
            if isinstance(thing, (ybsmart.ConnectionPool, psycopg.Connection, LocalCluster)):
                thing.close()
        del thing
        gc.collect()


@pytest.mark.parametrize(
    "block",
    [b for p in pages() if p.name != TUTORIAL for b in blocks(p, "python") if b.file],
    ids=lambda block: block.file,
)
def test_a_file_that_a_page_shows_runs(block: Block, server: LocalCluster, tmp_path: Path) -> None:
    for module in re.findall(r"^(?:import|from) (gevent)", block.text, re.MULTILINE):
        pytest.importorskip(module)
    (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, block.file],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": server.conninfo(load_balance=True)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_block_that_is_not_executed_is_valid_and_has_a_reason() -> None:
    for page in pages():
        for block in blocks(page, "python"):
            compile(block.text, str(block), "exec")
            assert block.is_executed or len(block.note) > len("not executed: "), block


def test_every_block_has_a_language_that_says_what_becomes_of_it() -> None:
    # python, pycon and sh are executed; text is what a program prints; js is node-postgres.
    allowed = {"python", "pycon", "sh", "text", "js", "ini"}
    others = {str(b): b.language for p in pages() for b in blocks(p) if b.language not in allowed}

    assert others == {}
