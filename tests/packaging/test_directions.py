"""Imports go one way: no module needs one that needs it in turn, directly or by others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "src" / "ybsmart"


def name_of(path: Path) -> str:
    return ".".join(["ybsmart", *path.relative_to(PACKAGE).with_suffix("").parts])


MODULES = {name_of(path).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What is run when the module is imported: neither functions nor what is for types only."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from statements([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from statements([*node.body, *node.orelse, *node.finalbody])
        else:
            yield node


def needed_by(name: str) -> set[str]:
    """The modules of the package that this one imports while it is imported itself."""
    path = MODULES[name]
    parent = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parent[: len(parent) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
            found |= {each if each in MODULES else start for each in names}
    return (found & MODULES.keys()) - {name, "ybsmart"}


def test_no_two_modules_need_each_other() -> None:
    graph = {name: needed_by(name) for name in MODULES}
    assert "ybsmart.dialing" in graph["ybsmart.waiting"]
    assert "ybsmart.testing.cluster" in graph["ybsmart.testing"]

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
