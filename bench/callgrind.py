"""Counts the machine instructions of a pair and of a `with` block, under valgrind.

Repeats to within a few instructions on any machine, busy or not; says nothing about caches, locks
or threads. One loop is counted twice, at two lengths, so that all that is not the loop cancels
out. As a script (`python -m bench.callgrind SETUP`) it is the process that is counted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.contenders import CLASSES, ENVIRONMENT
from bench.measure import ROOT, Figures, Unavailable, environment

LOOPS = ("pair", "block")
SHORT, LONG = 100, 2100


class Counted:
    """A contender running under callgrind, which writes its counters to a file when told to."""

    def __init__(self, contender: str, setup: dict[str, Any], loops: tuple[str, ...]) -> None:
        tool, control = shutil.which("valgrind"), shutil.which("callgrind_control")
        if tool is None or control is None:
            raise Unavailable("valgrind is not installed")
        self._control = control
        self._loops = loops
        self._command = [
            *(tool, "--tool=callgrind", "--quiet", sys.executable, "-m", "bench.callgrind"),
            json.dumps({**setup, "contender": contender}),
        ]
        # The same hash seed for all, or dictionaries collide differently each time.
        self._environment = environment(**ENVIRONMENT.get(contender, {}), PYTHONHASHSEED="0")

    def count(self) -> Figures:
        """Instructions per turn of each loop that the contender has."""
        figures = {}
        with tempfile.TemporaryDirectory(prefix="callgrind-") as folder:
            self._out = Path(folder, "out")
            self._dumps = 0
            command = list(self._command)
            command.insert(2, f"--callgrind-out-file={self._out}")
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                self._answer()
                for loop in self._loops:
                    self._run(loop, SHORT)
                    self._dump()  # what came before: start, warm-up
                    counts = []
                    for n in (SHORT, LONG):
                        self._run(loop, n)
                        counts.append(self._dump())
                    figures[loop] = (counts[1] - counts[0]) / (LONG - SHORT)
            finally:
                self._process.kill()
                self._process.communicate()
        return figures

    def _run(self, loop: str, n: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{loop} {n}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the process under valgrind ended")

    def _dump(self) -> int:
        subprocess.run(
            [self._control, "--dump", str(self._process.pid)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        self._dumps += 1
        text = Path(f"{self._out}.{self._dumps}").read_text()
        found = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
        if found is None:
            raise RuntimeError("callgrind wrote no totals")
        return int(found[1])

    def kill(self) -> None:
        """Nothing is left to end."""


def main() -> None:
    setup = json.loads(sys.argv[1])
    pool = CLASSES[setup["contender"]](setup["conninfo"], setup["hosts"], setup["size"])
    pool.warm(setup["size"])
    print("done", flush=True)
    for line in sys.stdin:
        loop, n = line.split()
        getattr(pool, loop)(int(n))
        print("done", flush=True)


if __name__ == "__main__":
    main()
