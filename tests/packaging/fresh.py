"""Wheels as new users get them: into environments of their own, with psycopg and nothing else.

    python tests/packaging/fresh.py WHEEL...

installs each wheel that fits this interpreter, with its dependencies from the package index, and
runs `first_steps.py` there against a cluster that is started from here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from ybsmart.testing import LocalCluster

FIRST_STEPS = Path(__file__).with_name("first_steps.py")
TUTORIAL = ("aws.us-west.us-west-2a", "aws.us-west.us-west-2a", "aws.us-west.us-west-2b")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
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


def install(wheel: Path, folder: Path) -> list[str]:
    """Make an environment with the wheel in it; return how to run its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    what = str(wheel) if FREE_THREADED else f"{wheel}[binary]"  # there is no such wheel there
    pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "-q", "install", "--only-binary=:all:", what], check=True)
    listed = subprocess.run(
        [*pip, "list", "--format=freeze", "--exclude=pip", "--exclude=setuptools"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    names = {line.partition("=")[0] for line in listed.splitlines()}
    assert names <= OURS, names
    return [str(python), "-I"]


def main() -> None:
    with LocalCluster(TUTORIAL) as cluster, tempfile.TemporaryDirectory() as folder:
        for number, wheel in enumerate(map(Path, sys.argv[1:])):
            take_first_steps(install(wheel.resolve(), Path(folder, str(number))), cluster)
            print(f"{wheel.name}: installed alone, and the first steps taken")


if __name__ == "__main__":
    main()
