"""The pages of docs/ as the tests see them: their blocks of code, and the notes before these.

A note is an HTML comment on the line before a block, invisible to readers:

    <!-- file: app.py -->             the block is a file that the page tells its reader to make
    <!-- not executed: reason -->     the tests cannot do this, for that reason
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

if not DOCS.is_dir():  # tests can be run apart from the repository, against a wheel
    pytest.skip("the documentation is not here", allow_module_level=True)

_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n+)?```(?P<language>[a-z]+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    page: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that the block is, or nothing."""
        return self.note.removeprefix("file:").strip() if self.note.startswith("file:") else ""

    @property
    def is_executed(self) -> bool:
        return not self.note.startswith("not executed:")

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    return sorted(DOCS.glob("*.md"))


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page, in order; of these languages, or of all."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            found["note"] or "",
            found["text"],
        )
        for found in _BLOCK.finditer(text)
        if not languages or found["language"] in languages
    ]
