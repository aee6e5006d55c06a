"""What the tree promises: the list of compiled modules, who imports whom, no traces of machines."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ybsmart._core

from .conftest import ROOT

CORE = ROOT / "src" / "_core"
# Choosing the build needs `os` and `importlib`, standing in for Cython the last; what the shell's
# threads sleep on is a lock, and no part of the pool.
MAY_IMPORT = {
    "__init__": {"importlib", "os", "typing"},
    "parking": {"threading", "typing", "ybsmart._core"},
    "_shim": {"_thread", "collections.abc", "mmap", "operator", "os", "sys", "time", "typing"},
}
CORE_MODULES_MAY_IMPORT = {
    "collections",
    "collections.abc",
    "math",
    "typing",
    "weakref",
    "ybsmart._core",
    "ybsmart._core._shim",
}


def core_files() -> set[str]:
    return {path.stem for path in CORE.glob("*.py")} - {"__init__", "_shim"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports from outside its own package."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "cython")
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            if node.module != "__future__":
                yield node.module


def package_imports(path: Path) -> Iterator[str]:
    """What a module of the package imports, in full: `ybsmart._core.hosts`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ["ybsmart"] if node.level else []
            for alias in node.names:
                yield ".".join([*start, *([node.module] if node.module else []), alias.name])


def assigned(path: Path, name: str) -> object:
    """The literal value that a file assigns to a name."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} assigns no {name}")


def defined(path: Path) -> set[str]:
    """The names that a file has at its top level."""
    names: set[str] = set()
    for node in tree_of(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def names_of_cython(name: str) -> set[str]:
    """What a core module uses as `cython.…`."""
    return {
        node.attr
        for node in ast.walk(tree_of(CORE / f"{name}.py"))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cython"
    }


def test_every_core_module_is_listed_and_compiled() -> None:
    compiled = assigned(ROOT / "setup.py", "SOURCES")
    include = re.compile(r'^include "(\w+)\.py"$', re.MULTILINE)
    parts = [
        part
        for module in ("hosts", "pool")
        for part in include.findall((CORE / f"{module}.pyx").read_text(encoding="utf-8"))
    ]

    assert isinstance(compiled, dict)
    assert tuple(compiled) == ybsmart._core.MODULES
    assert sorted([*parts, "parking"]) == sorted(core_files())


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.stem)
def test_the_core_imports_nothing_that_acts(path: Path) -> None:
    """No randomness, no waiting, no logging, no driver: these belong to the shell. The clock and
    the thread's identity come from the shim or, compiled, from Python's C interface."""
    allowed = MAY_IMPORT.get(path.stem, CORE_MODULES_MAY_IMPORT)
    from_c = {"cython.cimports.cpython.pythread", "cython.cimports.cpython.time"}

    assert set(imports(path)) - from_c <= allowed
    # Relative imports: nothing that decides knows what the shell's threads sleep on.
    if path.stem != "__init__":
        assert not [name for name in package_imports(path) if "parking" in name]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src" / "ybsmart").glob("*.py")), ids=lambda path: path.stem
)
def test_the_package_takes_the_core_as_it_was_chosen_and_never_its_own_tools(path: Path) -> None:
    imported = set(package_imports(path))
    from_core = {name for name in imported if name.startswith("ybsmart._core")}

    assert from_core <= {f"ybsmart._core.{name}" for name in ("IMPL", *ybsmart._core.MODULES)}
    if path.stem not in ("cli", "__main__"):
        tools = ("ybsmart.cli", "ybsmart.demo", "ybsmart.testing")
        assert not [name for name in imported if name.startswith(tools)]


@pytest.mark.parametrize("name", sorted(core_files()))
def test_core_modules_import_each_other_relatively(name: str) -> None:
    """So that a compiled module sees its compiled neighbours; the shim alone has one name."""
    imported = {
        alias.name
        for node in ast.walk(tree_of(CORE / f"{name}.py"))
        if isinstance(node, ast.ImportFrom) and node.module == "ybsmart._core"
        for alias in node.names
    }

    assert imported <= {"_shim"}


@pytest.mark.parametrize("name", sorted(core_files()))
def test_shim_and_stub_have_every_name_of_cython_that_is_used(name: str) -> None:
    """The shim for the interpreter, the stub for type-checkers."""
    used = names_of_cython(name)

    assert used
    assert used <= defined(CORE / "_shim.py")
    assert used <= defined(ROOT / "tests" / "stubs" / "cython.pyi")


def test_the_architecture_has_one_room_for_each_module() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = page.partition("## The rooms")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in rooms.splitlines() if line.startswith("| `")]
    package = ROOT / "src" / "ybsmart"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}

    named = sorted(name for cell in cells for name in re.findall("`(.+?)`", cell))
    assert named == sorted([*folders, *modules, *core_files(), "_shim", "__init__"])


def repository_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(r"(?<![\w.~$}])/(?:home|root|Users|work)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in repository_files()
        if path.is_file()
        for match in place.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]

    assert found == []
