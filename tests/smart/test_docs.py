"""docs/drivers.md claims nothing without a test: each link to one leads to one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "drivers.md"
# [yes](../tests/smart/test_uniform.py#test_one_contact_host_is_enough_whichever_it_is)
LINK = re.compile(r"\]\((?P<file>\.\./[^)#]+)(?:#(?P<test>\w+))?\)")

if not DOCUMENT.exists():  # tests can be run apart from the repository, against a wheel
    pytest.skip("the documents are not here", allow_module_level=True)


def links() -> list[tuple[str, str]]:
    found = LINK.findall(DOCUMENT.read_text(encoding="utf-8"))
    return sorted(set(found))


@pytest.mark.parametrize("file", sorted({file for file, _ in links()}))
def test_every_test_that_is_linked_exists(file: str) -> None:
    text = (DOCUMENT.parent / file).resolve().read_text(encoding="utf-8")
    defined = set(re.findall(r"^(?:async )?def (test_\w+)\(", text, re.MULTILINE))

    linked = {test for other, test in links() if other == file and test}
    assert linked <= defined


def test_a_link_to_a_file_of_tests_names_the_test() -> None:
    unnamed = [file for file, test in links() if "/test_" in file and not test]

    assert unnamed == []


def test_each_yes_of_ours_is_linked() -> None:
    rows = re.findall(r"^\|.*\|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    last = [row.strip("|").split("|")[-1].strip() for row in rows]

    assert any(cell.startswith("[yes](") for cell in last)
    assert [cell for cell in last if cell.startswith("yes")] == []
