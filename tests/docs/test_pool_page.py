"""The examples of docs/pool.md do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import ybsmart
from ybsmart.testing import LocalCluster

PAGE = Path(__file__).parents[2] / "docs" / "pool.md"


def test_the_examples_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) >= 8
    with LocalCluster(1) as cluster:
        names = {"conninfo": cluster.conninfo(load_balance=True), "__name__": "example"}
        try:
            for block in blocks:
                before = text[: block.start(1)].count("\n")
                # So that tracebacks give the page's own lines.
                exec(compile("\n" * before + block[1], str(PAGE), "exec"), names)
        finally:
            for thing in names.values():
                if isinstance(thing, ybsmart.ConnectionPool):
                    thing.close()
