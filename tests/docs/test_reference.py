"""The reference has every public name, once."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import pytest

import ybsmart
import ybsmart.testing
from tests.pages import DOCS

REFERENCE = (DOCS / "reference.md").read_text(encoding="utf-8")
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(?:class|exception|function|data):: (\w+)", re.MULTILINE)


def members_of(name: str) -> set[str]:
    """The members that the reference lists for a class."""
    directive = rf"^\.\. autoclass:: {name}\b.*\n   :members: ((?:.+\n)+)"
    listed = re.search(directive, REFERENCE, re.MULTILINE)
    assert listed is not None, f"no members of {name}"
    return set(re.findall(r"\w+", listed[1]))


def test_every_name_is_there_once() -> None:
    names = Counter(DIRECTIVE.findall(REFERENCE))

    assert names == Counter([*ybsmart.__all__, *ybsmart.testing.__all__])


@pytest.mark.parametrize("cls", [ybsmart.ConnectionPool, ybsmart.testing.LocalCluster])
def test_every_method_is_there(cls: type) -> None:
    # What is in a slot is a parameter of the constructor, and explained there.
    public = {
        name
        for name in dir(cls)
        if not name.startswith("_") and not inspect.ismemberdescriptor(getattr(cls, name))
    }

    assert members_of(cls.__name__) == public


def test_every_parameter_of_the_pool_is_explained() -> None:
    parameters = set(inspect.signature(ybsmart.ConnectionPool).parameters)
    explained = inspect.getdoc(ybsmart.ConnectionPool.__init__) or ""

    assert {name for name in parameters if not re.search(rf"\b{name}\b", explained)} == set()
