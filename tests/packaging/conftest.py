"""Builds shared by the tests of this folder: each happens once, in a fresh tree, offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Build:
    """What one run of the build command did."""

    status: int
    output: str
    files: list[Path]

    @property
    def file(self) -> Path:
        """The one file that was built."""
        assert self.status == 0, self.output
        assert len(self.files) == 1
        return self.files[0]


def build(kind: str, tree: Path, out: Path, **variables: str) -> Build:
    """Build an "sdist" or "wheel" of `tree`, with these environment variables."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("YBSMART_")}
    # Unoptimised: compiled in half the time, with the same contents.
    env |= {"CFLAGS": "-O0 -g0", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", f"--outdir={out}", tree],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Build(done.returncode, done.stdout, sorted(out.iterdir()))


BuildWheel = Callable[..., Build]


def _is_generated(folder: str, name: str) -> bool:
    return (
        name.startswith(".")
        or name in ("build", "dist", "__pycache__")
        or name.endswith(".egg-info")
        or Path(folder, name, "pyvenv.cfg").exists()
    )


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree."""
    tree = tmp_path_factory.mktemp("tree") / "ybsmart"
    shutil.copytree(
        ROOT, tree, ignore=lambda folder, names: {n for n in names if _is_generated(folder, n)}
    )
    # Leftovers that must not get into any distribution.
    (tree / "src" / "_core" / "hosts.c").write_text("#error stale\n")
    (tree / "src" / "_core" / "_c" / "hosts.so").write_text("stale")
    return build("sdist", tree, tmp_path_factory.mktemp("sdist")).file


@pytest.fixture(scope="session")
def new_tree(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Each call unpacks the source distribution anew: what is built, is built as users build."""

    def unpack() -> Path:
        folder = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(sdist) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder)
        (tree,) = folder.iterdir()
        return tree

    return unpack


@pytest.fixture(scope="session")
def build_wheel(
    new_tree: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> BuildWheel:
    def build_from(tree: Path | None = None, **variables: str) -> Build:
        return build("wheel", tree or new_tree(), tmp_path_factory.mktemp("wheel"), **variables)

    return build_from


@pytest.fixture(scope="session")
def no_compiler() -> dict[str, str]:
    """Variables with which every attempt to compile fails."""
    return {"CC": shutil.which("false") or "false"}


@pytest.fixture(scope="session")
def no_cython(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Cython cannot be imported."""
    folder = tmp_path_factory.mktemp("no_cython")
    (folder / "Cython").mkdir()
    (folder / "Cython" / "__init__.py").write_text("raise ImportError('no Cython here')\n")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def pure_wheel(
    build_wheel: BuildWheel, no_compiler: dict[str, str], no_cython: dict[str, str]
) -> Path:
    """The wheel of YBSMART_BUILD=python, built with neither Cython nor a compiler."""
    return build_wheel(YBSMART_BUILD="python", **no_compiler, **no_cython).file


@pytest.fixture(scope="session")
def needs_compiler(request: pytest.FixtureRequest) -> None:
    if request.config.option.impl == "python":
        pytest.skip("--impl=python: nothing is compiled")


@pytest.fixture(scope="session")
def compiled_build(needs_compiler: None, build_wheel: BuildWheel) -> Build:
    """The default build, with what it printed."""
    return build_wheel()
