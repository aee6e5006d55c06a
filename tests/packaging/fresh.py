"""Wheels as new users get them: into environments of their own, with psycopg and nothing else.

    python tests/packaging/fresh.py [--python PYTHON]... [--tests TREE] WHEEL...

installs each wheel for each Python that it fits (this one, if none is named), with its dependencies
from the package index, and runs `first_steps.py` there against a cluster that is started from here;
then, once for each Python, the core's tests of TREE, an unpacked source distribution.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from ybsmart.testing import LocalCluster

FIRST_STEPS = Path(__file__).with_name("first_steps.py")
TUTORIAL = ("aws.us-west.us-west-2a", "aws.us-west.us-west-2a", "aws.us-west.us-west-2b")
OURS = {"ybsmart", "psycopg", "psycopg-binary", "typing_extensions", "tzdata"}

# On a busy machine a node that is slow to answer would lose a connection to another one.
PATIENT = """if True:
    import runpy, sys, ybsmart.cluster
    ybsmart.cluster.HEDGE_DELAY = 10.0
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def take_first_steps(python: list[str], cluster: LocalCluster, setup: str = "") -> None:
    """Run the examples with that interpreter, each in its own process; raise if one fails."""
    node = cluster.nodes[0]
    environment = {name: value for name, value in os.environ.items() if "YBSMART" not in name}
    for example in ("uniform", "topology", "pool"):
        command = [*python, "-W", "error", "-c", setup + PATIENT]
        subprocess.run(
            [*command, FIRST_STEPS, node.host, str(node.port), example],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def tag_of(python: str) -> str:
    """What compiled wheels for an interpreter have in their names: "cp314-cp314t"."""
    script = "import sys; v = 'cp%d%d' % sys.version_info[:2]; print(f'{v}-{v}{sys.abiflags}')"
    done = subprocess.run([python, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def install(wheel: Path, python: str, folder: Path, extras: str) -> list[str]:
    """Make an environment with the wheel in it; return how to run its interpreter."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = [str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"), "-I"]
    pip_install(inside, f"{wheel}{extras}")
    listed = subprocess.run(
        [*inside, "-m", "pip", "list", "--format=freeze", "--exclude=pip", "--exclude=setuptools"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    names = {line.partition("=")[0] for line in listed.splitlines()}
    assert names <= OURS, names
    return inside


def pip_install(python: list[str], *what: str) -> None:
    pip = [*python, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--only-binary=:all:", *what], check=True)


def run_core_tests(python: list[str], tree: Path, impl: str) -> None:
    """A compiled wheel has the sources of the core too: its tests run on both builds."""
    pip_install(python, "pytest>=9", "hypothesis>=6.100")
    pytest = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--impl={impl}"]
    environment = {name: value for name, value in os.environ.items() if name != "YBSMART_IMPL"}
    subprocess.run([*pytest, "tests/core"], cwd=tree, env=environment, check=True)


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--python", action="append", metavar="PYTHON", dest="pythons")
    parser.add_argument("--tests", type=Path, metavar="TREE")
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    args = parser.parse_args()
    with LocalCluster(TUTORIAL) as cluster, tempfile.TemporaryDirectory() as folder:
        for python in args.pythons or [sys.executable]:
            tag = tag_of(python)
            extras = "" if tag.endswith("t") else "[binary]"  # has no wheel without the GIL
            pure = [wheel for wheel in args.wheels if wheel.name.endswith("-none-any.whl")]
            compiled = [wheel for wheel in args.wheels if f"-{tag}-" in wheel.name]
            if not pure + compiled:
                sys.exit(f"no wheel fits {python}")
            for wheel in pure + compiled:
                inside = install(wheel.resolve(), python, Path(folder, tag, wheel.stem), extras)
                take_first_steps(inside, cluster)
                print(f"{tag}: {wheel.name} installed alone, and the first steps taken", flush=True)
            if args.tests:
                run_core_tests(inside, args.tests, "all" if compiled else "python")


if __name__ == "__main__":
    main()
