"""What is installed needs psycopg and nothing else. `make dist` does the same with pip."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

from ybsmart.testing import LocalCluster

from .conftest import Build
from .fresh import TUTORIAL, take_first_steps

NEEDED = ("psycopg", "psycopg_binary", "psycopg_binary.libs", "typing_extensions.py")


@pytest.fixture(scope="module")
def cluster() -> LocalCluster:
    return LocalCluster(TUTORIAL)


@pytest.mark.parametrize("wheel", ["pure_wheel", "compiled_build"])
def test_the_first_steps_work_with_psycopg_and_nothing_else(
    wheel: str, cluster: LocalCluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    built = request.getfixturevalue(wheel)
    with zipfile.ZipFile(built.file if isinstance(built, Build) else built) as archive:
        archive.extractall(tmp_path)
    spec = importlib.util.find_spec("psycopg")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parents[1]
    for name in NEEDED:
        if (installed / name).exists():
            (tmp_path / name).symlink_to(installed / name)

    # Isolated, and without any site-packages.
    setup = f"import sys; sys.path.append({str(tmp_path)!r})\n"
    take_first_steps([sys.executable, "-I", "-S"], cluster, setup)
