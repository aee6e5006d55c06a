"""docs/drivers.md claims nothing without a test. (That linked tests exist is in test_links.py.)"""

from __future__ import annotations

import re

from tests.pages import DOCS

TEXT = (DOCS / "drivers.md").read_text(encoding="utf-8")


def test_a_link_to_a_file_of_tests_names_the_test() -> None:
    links = re.findall(r"\]\((\.\./tests/[^)]+)\)", TEXT)

    assert links
    assert [link for link in links if "/test_" in link and "#test_" not in link] == []


def test_each_yes_of_ours_is_linked() -> None:
    rows = re.findall(r"^\|.*\|$", TEXT, re.MULTILINE)
    last = [row.strip("|").split("|")[-1].strip() for row in rows]

    assert any(cell.startswith("[yes](") for cell in last)
    assert [cell for cell in last if cell.startswith("yes")] == []
