"""What importing ybsmart does, and how the core is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import ybsmart

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
PACKAGE = Path(ybsmart.__file__).parent


def modules() -> list[str]:
    """Every module of the installed package that is made to be imported."""
    files = (path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))
    names = (".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files)
    return sorted(name for name in names if not name.endswith(".__main__"))


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "YBSMART_IMPL"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=env | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def imported_impl(**variables: str) -> str:
    """What `ybsmart.__impl__` is in a fresh interpreter, or the last line of the error."""
    script = "import ybsmart, ybsmart._core as c; print(ybsmart.__impl__, c.hosts.is_compiled())"
    done = run("-c", script, **variables)
    return (done.stdout or done.stderr).splitlines()[-1]


@pytest.fixture(scope="module")
def pure_installation(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH, in which ybsmart has no extension."""
    folder = tmp_path_factory.mktemp("pure")
    with zipfile.ZipFile(pure_wheel) as archive:
        archive.extractall(folder)
    return folder


class TestSwitch:
    @pytest.mark.usefixtures("needs_compiler")
    @pytest.mark.parametrize("value", ["", "c"])
    def test_the_compiled_core_is_taken_unasked_and_asked(self, value: str) -> None:
        assert imported_impl(YBSMART_IMPL=value) == "c True"

    @pytest.mark.usefixtures("needs_compiler")
    def test_unset_means_the_best_available(self) -> None:
        assert imported_impl() == "c True"

    def test_python_means_the_pure_core(self) -> None:
        assert imported_impl(YBSMART_IMPL="python") == "python False"

    def test_any_other_value_is_an_error(self) -> None:
        assert imported_impl(YBSMART_IMPL="C").startswith("ImportError: YBSMART_IMPL='C'")

    def test_without_extension_the_pure_core_is_taken(self, pure_installation: Path) -> None:
        assert imported_impl(PYTHONPATH=str(pure_installation)) == "python False"

    def test_without_extension_c_is_an_error(self, pure_installation: Path) -> None:
        error = imported_impl(PYTHONPATH=str(pure_installation), YBSMART_IMPL="c")

        assert error.startswith("ImportError: YBSMART_IMPL=c, but")

    def test_a_broken_extension_is_an_error_and_never_a_choice(
        self, pure_wheel: Path, tmp_path: Path
    ) -> None:
        with zipfile.ZipFile(pure_wheel) as archive:
            archive.extractall(tmp_path)
        (tmp_path / "ybsmart" / "_core" / "_c" / f"hosts{SUFFIX}").write_bytes(b"not a library")

        assert imported_impl(PYTHONPATH=str(tmp_path)).startswith("ImportError: ")


# Forks of an interpreter that has imported nothing of ours are as good as fresh ones, and need not
# import psycopg, which takes the most time.
IMPORT_EACH = """if True:
    import os, sys
    import psycopg
    folder, *modules = sys.argv[1:]
    for module in modules:
        if os.fork() == 0:
            os.dup2(os.open(os.path.join(folder, module), os.O_CREAT | os.O_WRONLY), 2)
            __import__(module)
            sys.exit()
        os.wait()
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each module: what is said when it is the first to be imported."""
    folder = tmp_path_factory.mktemp("complaints")
    done = run("-I", "-W", "error", "-c", IMPORT_EACH, str(folder), *modules())
    assert done.stderr == ""
    return folder


@pytest.mark.parametrize("module", modules())
def test_each_module_can_be_imported_first_and_without_a_warning(
    complaints: Path, module: str
) -> None:
    assert (complaints / module).read_text() == ""


def test_dir_has_also_what_is_imported_only_when_it_is_used() -> None:
    """For those who complete names in a shell."""
    done = run("-c", "import ybsmart; print(sorted({*ybsmart.__all__} - {*dir(ybsmart)}))")

    assert done.stdout == "[]\n", done.stderr


def test_importing_ybsmart_imports_nothing_that_is_not_needed() -> None:
    """On top of psycopg, which imports asyncio itself."""
    script = """if True:
        import sys
        import psycopg
        before = set(sys.modules)
        import ybsmart
        print(*sorted(set(sys.modules) - before))
    """
    done = run("-c", script)
    added = set(done.stdout.split())

    assert "ybsmart" in added, done.stderr
    roots = {name.partition(".")[0] for name in added}
    assert not roots & {"Cython", "cython", "asyncio", "rich", "psycopg_pool", "argparse"}
    assert not {name for name in added if name.startswith(("ybsmart.testing", "ybsmart.cli"))}
