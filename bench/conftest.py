"""Options, and the fixture that measures a case when the first of its tests asks for it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import picture, report
from bench.callgrind import LOOPS, Counted
from bench.cases import Case
from bench.contenders import ENVIRONMENT
from bench.load import Server
from bench.measure import ROOT, Child, Samples, Unavailable, environment, interleave

RESULTS = ROOT / ".benchmarks"
_IMPORTS = {
    "ybsmart": "import ybsmart",
    "ybsmart-pure": "import ybsmart",
    "psycopg_pool": "import psycopg_pool",
    "sqlalchemy": "import sqlalchemy, sqlalchemy.dialects.postgresql.psycopg",
    "dbutils": "import dbutils.pooled_db",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ybsmart's benchmarks")
    group.addoption("--quick", action="store_true", help="a rough table in half a minute")
    group.addoption(
        "--publish",
        action="store_true",
        help="write the table into bench/README.md and the picture into docs",
    )
    group.addoption(
        "--publish-figures",
        action="store_true",
        help="write the figures to reach into the section of this Python in bench/README.md",
    )
    for name, what in (
        ("yugabytedb-python", "an interpreter with psycopg-yugabytedb[binary]"),
        ("free-threaded-python", "a free-threaded interpreter with ybsmart"),
        ("wrk", "the load generator"),
    ):
        variable = "YBSMART_BENCH_" + name.upper().replace("-", "_")
        group.addoption(
            f"--{name}",
            metavar="PATH",
            default=os.environ.get(variable),
            help=f"{what} (or {variable})",
        )


def pytest_configure(config: pytest.Config) -> None:
    if not any("--benchmark-columns" in arg for arg in config.invocation_params.args):
        config.option.benchmark_columns = ["min", "median", "iqr", "rounds"]


class Suite:
    """All that has been measured in this session."""

    def __init__(self, config: pytest.Config, selected: dict[str, list[str]]) -> None:
        self._config = config
        self._selected = selected
        self.once: bool = config.option.benchmark_disable
        self.quick: bool = config.option.quick
        self.results: dict[str, Samples] = {}
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self.seconds: dict[str, float] = {}
        self._failed: dict[str, Exception] = {}

    def start(self, conninfo: str, hosts: str) -> None:
        self._servers = {"conninfo": conninfo, "hosts": hosts}

    def samples(self, case: Case) -> Samples:
        """The figures of a case, for the contenders that this session selects."""
        if case.name in self._failed:
            raise RuntimeError("this case has failed before") from self._failed[case.name]
        if case.name not in self.results:
            started = time.perf_counter()
            try:
                self.results[case.name] = self._measure(case, self._selected[case.name])
            except Exception as exc:
                self._failed[case.name] = exc
                raise
            self.seconds[case.name] = time.perf_counter() - started
        return self.results[case.name]

    def _measure(self, case: Case, contenders: list[str]) -> Samples:
        rounds, seconds = case.rounds, case.seconds
        if self.quick:
            rounds, seconds = case.quick_rounds, case.quick_seconds
        if self.once:
            rounds, seconds = 1, 0.01
        setup = {**self._servers, **case.params, "seconds": seconds}
        if self.once:
            setup |= {"settle": 0.01, **case.brief}
        if case.params.get("one node"):
            setup["hosts"] = setup["conninfo"]
        children: dict[str, Any] = {}
        missing: dict[str, str] = {}
        try:
            for contender in contenders:
                try:
                    children[contender] = self._child(case, contender, setup)
                except Unavailable as exc:
                    missing[contender] = str(exc)
            if case.workload == "callgrind":
                samples = self._count(children)
            else:
                samples = interleave(children, rounds, case.best)
        finally:
            for child in children.values():
                child.kill()
        samples.missing = missing
        return samples

    def _child(self, case: Case, contender: str, setup: dict[str, Any]) -> Any:
        option = self._config.getoption
        if contender == "ybsmart" and find_spec("ybsmart._core._c.pool") is None:
            raise Unavailable("this ybsmart has no compiled core")
        if case.workload == "import":
            return Import(contender)
        if case.workload == "http":
            return Server(contender, setup, option("wrk"))
        if case.workload == "callgrind":
            if self.once and contender not in ("ybsmart", "simplequeue"):
                raise Unavailable("two are enough to see that it works")
            loops = LOOPS if "simplequeue" != contender != "lock" else LOOPS[:1]
            return Counted(contender, setup, loops)
        if contender.startswith("yugabytedb"):
            python = option("yugabytedb_python")
            if not python:
                raise Unavailable("no --yugabytedb-python")
            return Child(case, contender, setup, python=python)
        if contender in ("gil", "no-gil"):
            python = option("free_threaded_python")
            if not python and "t" in getattr(sys, "abiflags", ""):
                python = sys.executable
            if not python:
                raise Unavailable("no --free-threaded-python")
            flag = "-Xgil=1" if contender == "gil" else "-Xgil=0"
            return Child(case, contender, setup, python=python, options=[flag])
        return Child(case, contender, setup)

    def _count(self, children: dict[str, Counted]) -> Samples:
        # Counting does not mind company.
        samples = Samples()
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            counts = executor.map(lambda child: child.count(), children.values())
            for name, figures in zip(children, counts, strict=True):
                samples[name] = [figures]
        return samples

    def where(self) -> dict[str, str]:
        """On what this was measured."""
        about = {
            "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
            "Python": f"{platform.python_implementation()} {platform.python_version()}",
        }
        for samples in self.results.values():
            for values in samples.about.values():
                if "psycopg" in values:
                    about.setdefault("psycopg", values["psycopg"])
        about["load before the run"] = f"{self.load:.1f}"
        if self.quick:
            about["run"] = "quick: rough figures"
        return about


class Import:
    """A fresh interpreter for each import."""

    def __init__(self, contender: str) -> None:
        self._contender = contender

    def ready(self) -> dict[str, Any]:
        self.round()  # leaves the byte code in its cache
        return {}

    def round(self) -> dict[str, float]:
        code = (
            "import psycopg, time; cpu = time.process_time(); wall = time.perf_counter()\n"
            f"{_IMPORTS[self._contender]}\n"
            "print(time.perf_counter() - wall, time.process_time() - cpu)"
        )
        output = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=environment(**ENVIRONMENT.get(self._contender, {})),
        ).stdout
        wall, cpu = map(float, output.split())
        return {"time": wall, "cpu": cpu}

    def close(self) -> None:
        pass

    kill = close


@pytest.fixture(scope="session")
def suite(pytestconfig: pytest.Config) -> Iterator[Suite]:
    from ybsmart.testing import LocalCluster

    suite: Suite = pytestconfig.stash[_suite]
    with LocalCluster(max_connections=200) as cluster:
        hosts = ",".join(node.host for node in cluster.nodes)
        ports = ",".join(str(node.port) for node in cluster.nodes)
        suite.start(
            cluster.conninfo(),
            f"host={hosts} port={ports} user=yugabyte password=yugabyte dbname=yugabyte "
            "load_balance_hosts=random",
        )
        yield suite


_suite = pytest.StashKey[Suite]()


def pytest_collection_finish(session: pytest.Session) -> None:
    selected: dict[str, list[str]] = {}
    for item in session.items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "contender" in callspec.params:
            selected.setdefault(callspec.params["case"].name, []).append(
                callspec.params["contender"]
            )
    session.config.stash[_suite] = Suite(session.config, selected)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    suite = config.stash.get(_suite, None)
    if suite is None or not suite.results or suite.once:
        return
    terminalreporter.section("ratios")
    terminalreporter.write(report.text(suite.results, suite.where()))
    RESULTS.mkdir(exist_ok=True)
    markdown = report.markdown(suite.results, suite.where())
    drawing = picture.draw(suite.results)
    (RESULTS / "table.md").write_text(markdown)
    (RESULTS / "benchmarks.svg").write_text(drawing)
    (RESULTS / "samples.json").write_text(json.dumps(suite.results, indent=1))
    terminalreporter.write_line(
        f"Measured in {sum(suite.seconds.values()):.0f} s; also in {RESULTS.name}/."
    )
    page = ROOT / "bench" / "README.md"
    if config.option.publish_figures:
        brief = report.markdown(suite.results, suite.where(), brief=True)
        version = "{}.{}".format(*sys.version_info) + getattr(sys, "abiflags", "")
        report.publish(brief, f"figures, Python {version}", page)
    if config.option.publish:
        report.publish(markdown, "table", page)
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "benchmarks.svg").write_text(drawing)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
