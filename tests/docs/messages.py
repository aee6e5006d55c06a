"""The messages that the package can raise or log, read from its source.

A message is known by its template: what is put in when it is made is `…`. Found are strings that
are arguments where an exception is made or raised, or given to a logger.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.pages import ROOT

SOURCE = ROOT / "src"
# Functions of ours whose text becomes a message.
_OURS = {"_closed", "_fail", "NoDiscovery", "because", "kind"}
# Variables of ours that hold one until it is raised.
_HELD = {"intro", "reason", "text", "where"}
_ERROR = re.compile(
    r"\w*(?:Error|Exception|Timeout|Property|Release|Deadlock|Requests|Full|Silent)"
)
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
# Not for those who use the package: what tests of the core and its own mistakes need.
_NOT_FOR_USERS = re.compile(r"bug: |type '…' is not an acceptable base type")


def templates(folder: str) -> set[str]:
    """All templates of the modules in a folder of src, and below."""
    return {
        text
        for path in sorted((SOURCE / folder).rglob("*.py"))
        for text in _of(path)
        if not _NOT_FOR_USERS.match(text)
    }


def _of(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _makes_message(node):
            found = node.args
        elif isinstance(node, ast.Assign) and _HELD & {
            ast.unparse(t)[-6:].strip(".") for t in node.targets
        }:
            found = [node.value]
        else:
            continue
        for expression in found:
            text = template(expression)
            # Words, not the name of a field, a format or a thing.
            if text is not None and " " in text and re.search(r"[a-z]{2,}", text):
                yield text


def _makes_message(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if isinstance(function, ast.Attribute) and name in _LEVELS:
        return ast.unparse(function.value) == "logger"
    return name in _OURS or _ERROR.fullmatch(name) is not None


def template(node: ast.expr) -> str | None:
    """The text of an expression, as far as it is known; None where it is no text."""
    text = _text(node)
    if text is None or not text.strip("… "):
        return None
    return re.sub(r"\s+", " ", re.sub(r"%[-.\d]*[a-z]", "…", text)).strip()


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return "".join(_text(side) or "…" for side in (node.left, node.right))
    return None
