"""docs/troubleshooting.md has every message of the source, and no other."""

from __future__ import annotations

import re

import ybsmart
from tests.docs.messages import templates
from tests.pages import DOCS

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


def messages() -> list[str]:
    """The first column of all tables."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def test_every_message_is_explained_and_no_other() -> None:
    in_source = templates("ybsmart") | templates("_core")

    assert sorted(in_source - set(messages())) == [], "not on the page"
    assert sorted(set(messages()) - in_source) == [], "no longer in the source"


def test_no_message_is_there_twice() -> None:
    assert sorted(messages()) == sorted(set(messages()))


def test_every_error_class_is_named() -> None:
    errors = {
        name
        for name in ybsmart.__all__
        if isinstance(thing := getattr(ybsmart, name), type) and issubclass(thing, Exception)
    }

    assert sorted(name for name in errors if f"`{name}`" not in PAGE) == []
