"""Links lead somewhere: those into the repository to a file and a heading, others to a host."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.pages import ROOT, pages

PAGES = [*ROOT.glob("*.md"), ROOT / "bench" / "README.md", *pages()]
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
_URL = re.compile(r"https?://[^\s)>\"'`]+")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def anchors(file: Path) -> set[str]:
    """What may stand behind the `#`: a heading as forges write it, or a function of a test file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return set(re.findall(r"^(?:async )?def (\w+)\(", text, re.MULTILINE))
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(text)]
    return {title.strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_into_the_repository_lead_somewhere(page: Path) -> None:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for path, anchor in _LINK.findall(text):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(f"{path}#{anchor}")

    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_external_links_are_well_formed(page: Path) -> None:
    for url in _URL.findall(page.read_text(encoding="utf-8")):
        parts = urlsplit(url)
        assert parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost"), url
        assert parts.hostname, url
        assert re.fullmatch(r"[\w.-]+", parts.hostname), url
