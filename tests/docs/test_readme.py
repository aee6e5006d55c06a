"""What the README shows runs, on servers of our own instead of the reader's."""

from __future__ import annotations

from typing import Any

from tests.pages import ROOT, blocks
from ybsmart import registry
from ybsmart.testing import LocalCluster

THEIRS = '"postgresql://yugabyte@10.0.0.1:5433/yugabyte?load_balance=true"'


def test_the_examples_of_the_readme_run() -> None:
    use, for_tests = (block.text for block in blocks(ROOT / "README.md", "python"))
    assert use.count(THEIRS) == 1
    registry.forget()
    with LocalCluster(1) as cluster:
        names: dict[str, Any] = {"conninfo": cluster.conninfo(load_balance=True)}

        exec(use.replace(THEIRS, "conninfo"), names)

        assert cluster.execute(0, "SELECT count(*) FROM visits") == [(1,)]
        names["pool"].close()

    exec(for_tests, names)
    assert names["conn"].node is not None
    names["conn"].close()
