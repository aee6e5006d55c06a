"""Takes the figures of a case: one child process per contender, all set up alike, a round of each
in turn. Only one of them is at work at any time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import Case
from bench.contenders import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, float]


class Unavailable(Exception):
    """A contender that cannot be measured here; the message says what is missing."""


class Samples(dict[str, list[Figures]]):
    """The figures of each contender, round by round; and why others have none."""

    def __init__(self, best: bool = False) -> None:
        super().__init__()
        self.best = best
        self.missing: dict[str, str] = {}
        self.about: dict[str, dict[str, Any]] = {}

    def value(self, contender: str, metric: str) -> float | None:
        """The best of the rounds, or their median: as the case has it."""
        values = [figures[metric] for figures in self.get(contender, ()) if metric in figures]
        if not values:
            return None
        return min(values) if self.best else median(values)


def environment(**extra: str) -> dict[str, str]:
    """A child's environment: ours without what could choose something for it."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("YBSMART_", "PYTEST_", "PG"))}
    return {**ours, **extra}


class Child:
    """One contender of one case, waiting to be told to run a round."""

    def __init__(
        self,
        case: Case,
        contender: str,
        setup: Mapping[str, Any],
        *,
        python: str = sys.executable,
        options: Iterable[str] = (),
    ) -> None:
        self.what = f"{case.name}[{contender}]"
        arguments = {**setup, "workload": case.workload, "contender": contender}
        self._process = subprocess.Popen(
            [python, *options, "-m", "bench.child", json.dumps(arguments)],
            cwd=ROOT,
            env=environment(**ENVIRONMENT.get(contender, {})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        return self._answer("ready")

    def round(self) -> Figures:
        assert self._process.stdin
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._answer("figures")

    def _answer(self, key: str) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        values: dict[str, Any] = json.loads(line or '{"error": "it ended without an answer"}')
        if key not in values:
            raise RuntimeError(f"{self.what}: {values['error']}")
        return dict(values[key])

    def close(self) -> None:
        """End it, and raise if it has something to complain about at its end."""
        output, _ = self._process.communicate(timeout=60)
        if self._process.returncode:
            raise RuntimeError(f"{self.what}: {output.strip() or self._process.returncode}")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def interleave(children: Mapping[str, Any], rounds: int, best: bool) -> Samples:
    """A round of each in turn, in changing order, after one that does not count."""
    samples = Samples(best)
    try:
        for name, child in children.items():
            samples.about[name] = child.ready()
            samples[name] = []
        names = list(children)
        for i in range(-1 if rounds > 1 else 0, rounds):
            for name in names if i % 2 else reversed(names):
                figures = children[name].round()
                if i >= 0:
                    samples[name].append(figures)
        for child in children.values():
            child.close()
    except BaseException:
        for child in children.values():
            child.kill()
        raise
    return samples
