"""The documentation builds without a warning, and has all of its pages."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS, pages


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")),
    reason="needs the extra `docs` (`make docs` installs it)",
)
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """Nitpicky, so a reference that leads nowhere is a warning as well."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "trees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "html" / "index.html").exists()


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([\w-]+)$", index, re.MULTILINE))

    assert {page.stem for page in pages()} - {"index"} <= listed
