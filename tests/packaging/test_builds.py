"""The three ways to build, and exactly what each puts into a distribution."""

from __future__ import annotations

import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import pytest

import ybsmart
import ybsmart._core

from .conftest import ROOT, Build, BuildWheel

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
EXTENSIONS = {f"ybsmart/_core/_c/{name}{SUFFIX}" for name in ybsmart._core.MODULES}


GENERATED = (".c", ".pyc", ".pyd", ".so")


def tree(folder: str) -> set[str]:
    """The files that were written by hand, relative to the root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts and path.is_file() and path.suffix not in GENERATED
    }


def sources() -> set[str]:
    """The files of src that are installed, under the names they then have."""
    names = {
        name.removeprefix("src/") for name in tree("src") if not name.endswith((".pxi", ".pyx"))
    }
    return {f"ybsmart/{name}" if name.startswith("_core/") else name for name in names}


def package_files(wheel: Path) -> set[str]:
    """All files of a wheel but its own records."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def tags(wheel: Path) -> str:
    return wheel.stem.split("-", 2)[2]


def test_sdist_carries_what_building_and_testing_need_and_nothing_generated(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    needed = tree("src") | tree("tests")
    needed |= {"pyproject.toml", "setup.py", "Makefile", "README.md", "LICENSE", "CHANGES.md"}
    assert needed <= names
    assert not [name for name in names if name.endswith(GENERATED)]


def test_default_build_compiles_every_core_module_without_a_warning(compiled_build: Build) -> None:
    wheel = compiled_build.file

    assert package_files(wheel) == sources() | EXTENSIONS
    assert "none-any" not in tags(wheel)
    assert [line for line in compiled_build.output.splitlines() if "warning: src/" in line] == []


def test_pure_build_needs_neither_cython_nor_compiler_and_fits_every_platform(
    pure_wheel: Path,
) -> None:
    assert package_files(pure_wheel) == sources()
    assert tags(pure_wheel) == "py3-none-any"


def test_default_build_without_compiler_fails_and_names_the_other_modes(
    build_wheel: BuildWheel, no_compiler: dict[str, str]
) -> None:
    result = build_wheel(**no_compiler)

    assert result.status != 0
    assert result.files == []
    assert "YBSMART_BUILD=python" in result.output
    assert "YBSMART_BUILD=auto" in result.output


def test_auto_build_without_compiler_says_so_and_is_the_pure_build(
    build_wheel: BuildWheel, no_compiler: dict[str, str]
) -> None:
    result = build_wheel(YBSMART_BUILD="auto", **no_compiler)

    assert package_files(result.file) == sources()
    assert tags(result.file) == "py3-none-any"
    assert "going on with the pure Python build" in result.output


def test_auto_build_does_not_hide_an_error_in_the_core(
    build_wheel: BuildWheel, new_tree: Callable[[], Path]
) -> None:
    broken = new_tree()
    with (broken / "src" / "_core" / "hosts.py").open("a") as source:
        source.write("this is not Python\n")

    result = build_wheel(broken, YBSMART_BUILD="auto")

    assert result.status != 0
    assert "going on" not in result.output


def test_unknown_mode_is_refused(build_wheel: BuildWheel) -> None:
    result = build_wheel(YBSMART_BUILD="fast")

    assert result.status != 0
    assert "YBSMART_BUILD='fast' is not allowed" in result.output


@pytest.mark.parametrize("wheel", ["pure_wheel", "compiled_build"])
def test_a_wheel_installs_one_package(wheel: str, request: pytest.FixtureRequest) -> None:
    built = request.getfixturevalue(wheel)
    path = built.file if isinstance(built, Build) else built

    with zipfile.ZipFile(path) as archive:
        roots = {name.partition("/")[0] for name in archive.namelist()}

    assert roots == {"ybsmart", f"ybsmart-{ybsmart.__version__}.dist-info"}


def test_metadata_agrees_with_the_package() -> None:
    assert metadata("ybsmart")["Version"] == ybsmart.__version__
    assert metadata("ybsmart")["License-Expression"] == "MIT"
