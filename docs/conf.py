"""How the documentation is built: `make docs`. The pages are Markdown and read on a forge too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.util.logging import getLogger

import ybsmart

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "ybsmart"
author = "The ybsmart developers"
copyright = author
version = release = ybsmart.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"  # as psycopg's own
html_title = f"ybsmart {release}"
html_copy_source = False
html_show_sourcelink = False

myst_heading_anchors = 3  # [links](page.md#like-this) as a forge makes them
suppress_warnings = ["myst.strikethrough"]

# Docstrings write `names` as Markdown does.
default_role = "literal"
autoclass_content = "both"
autodoc_member_order = "alphabetical"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False
maximum_signature_line_length = 80

# Every reference must lead somewhere. Those to other projects' types have nowhere to go without a
# network; the type variables and aliases of our signatures are no names of the public interface.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?:psycopg|collections|typing|types|contextlib|typing_extensions)\..*"),
    ("py:.*", r"(?:ybsmart\.\w+\.[A-Z]{1,2}|ybsmart\._core\..*|[A-Z]\w*)"),
]


def lists_of_parameters(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Our docstrings explain parameters as `name, name: text`, continued with an indent. Make each
    an item of a list, which reStructuredText would otherwise take for something else."""
    result: list[str] = []
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = paragraph.split("\n")
        starts = [not row.startswith("    ") for row in rows]
        named = [re.match(r"[a-z_]+(?:, [a-z_]+)*: ", row) for row in rows]
        if not all(starts) and all(n for n, start in zip(named, starts, strict=True) if start):
            rows = [
                re.sub(r"^([a-z_, ]+):", r"* **\1**:", row) if start else row[2:]
                for row, start in zip(rows, starts, strict=True)
            ]
        result += [*rows, ""]
    lines[:] = result


def everything_is_explained(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """What Python itself says of named tuples explains nothing. A member without any other
    docstring is a warning; of a class, its constructor may go without."""
    lines[:] = [line for line in lines if not re.match("Create new instance|Alias for field", line)]
    if what not in ("class", "exception") and not "".join(lines):
        getLogger(__name__).warning("%s has no docstring", name)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", everything_is_explained)
    app.connect("autodoc-process-docstring", lists_of_parameters)
