"""The `http` case: gunicorn with one contender behind the handler, wrk in front of it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any
from urllib.request import urlopen

from bench.contenders import ENVIRONMENT
from bench.measure import ROOT, Figures, Unavailable, environment

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class Server:
    """One gunicorn with one worker of 16 threads, and its load."""

    def __init__(self, contender: str, setup: dict[str, Any], wrk: str | None) -> None:
        tool = shutil.which(wrk or "wrk")
        if tool is None:
            raise Unavailable("wrk is not installed")
        if find_spec("gunicorn") is None:
            raise Unavailable("gunicorn is not installed")
        self._wrk = tool
        self._setup = setup
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._url = f"http://{address}"
        settings = json.dumps({**setup, "contender": contender})
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "bench.handler:app", "--bind", address),
                *("--worker-class", "gthread", "--threads", "16", "--workers", "1"),
                *("--log-level", "error"),
            ],
            cwd=ROOT,
            env=environment(**ENVIRONMENT.get(contender, {}), BENCH_SETUP=settings),
        )

    def ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while True:
            try:
                self._cpu()
                return {}
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("gunicorn does not answer") from None
                time.sleep(0.05)

    def _cpu(self) -> float:
        with urlopen(f"{self._url}/cpu", timeout=10) as response:
            return float(response.read())

    def round(self) -> Figures:
        connections, seconds = self._setup["connections"], max(1, round(self._setup["seconds"]))
        cpu = self._cpu()
        output = subprocess.run(
            [self._wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", self._url],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        cpu = self._cpu() - cpu
        if "Non-2xx" in output or "Socket errors" in output:
            raise RuntimeError(f"wrk saw errors:\n{output}")
        rate = float(_find(r"Requests/sec: *([\d.]+)", output)[0])
        requests = int(_find(r"(\d+) requests in", output)[0])
        figures = {"time": 1 / rate, "cpu": cpu / requests}
        for percent in (50, 99):
            number, unit = _find(rf"{percent}% *([\d.]+)([a-z]+)", output)
            figures[f"p{percent} latency"] = float(number) * _UNITS[unit]
        return figures

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _find(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk said nothing like {pattern}:\n{text}")
    return found.groups()
