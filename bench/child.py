"""The process in which one contender of one case is measured: `python -m bench.child SETUP`.

Says on its standard output that it is ready, then runs one round for each line it reads, and
answers with its figures; one JSON object per line. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any


def main() -> None:
    # What a library prints goes to standard error, not into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    workload = None
    try:
        from bench.workloads import WORKLOADS

        setup = json.loads(sys.argv[1])
        workload = WORKLOADS[setup["workload"]](setup)
        answer(ready=_about(setup["contender"]))
        for _ in sys.stdin:
            answer(figures=workload.round())
        workload.close()
    except BaseException as exc:
        traceback.print_exc()
        answer(error=f"{type(exc).__name__}: {exc}")
        raise SystemExit(1) from None


def _about(contender: str) -> dict[str, Any]:
    """What is being measured, for the report; and a guard against measuring something else."""
    about: dict[str, Any] = {"python": sys.version.split()[0], "at": time.time()}
    gil = getattr(sys, "_is_gil_enabled", None)
    about["gil"] = gil is None or gil()
    if contender.startswith("ybsmart"):
        import ybsmart

        about["impl"] = ybsmart.__impl__
        if contender == "ybsmart-pure" and ybsmart.__impl__ != "python":
            raise AssertionError("not the pure core")
        if contender == "ybsmart" and ybsmart.__impl__ != "c":
            raise AssertionError("not the compiled core")
    if "psycopg" in sys.modules:
        import psycopg

        about["psycopg"] = f"{psycopg.__version__} {psycopg.pq.__impl__}"
    return about


if __name__ == "__main__":
    main()
