"""A terminal: a shell that is told what to do line by line, and what it has printed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

_PATIENCE = 60.0  # seconds for anything; never reached when all is well


class Terminal:
    """A shell in a folder, which ends, with all it has started, when it is closed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._seen = 0  # how much of the output has been expected
        self._output = ""  # guarded by _more
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        while chunk := os.read(self._shell.stdout.fileno(), 65536):
            with self._more:
                self._output += chunk.decode()
                self._more.notify_all()
        with self._more:
            self._output += "\n[the terminal has ended]\n"
            self._more.notify_all()

    def type(self, text: str) -> None:
        """Type something, and do not wait for what comes of it."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        self._shell.stdin.flush()

    def run(self, commands: str) -> None:
        """Type commands and wait until they have ended, well."""
        with self._more:
            begin = len(self._output)
        self.type(f'{{\n{commands}\n}} </dev/null\necho "[status $?]"\n')
        status = self._wait(re.compile(r"\[status (\d+)\]\n"), begin)
        assert status[1] == "0", self._output[begin:]

    def expect(self, text: str) -> None:
        """Wait until it has printed this since what was expected before. `...` is anything."""
        found = self._wait(pattern_of(text), self._seen)
        self._seen = found.end()

    def last(self, pattern: str) -> str:
        """The last thing that it has printed of this form."""
        with self._more:
            found: list[str] = re.findall(pattern, self._output)
        return found[-1]

    def _wait(self, pattern: re.Pattern[str], begin: int) -> re.Match[str]:
        deadline = time.monotonic() + _PATIENCE
        with self._more:
            while not (found := pattern.search(self._output, begin)):
                assert "[the terminal has ended]" not in self._output[begin:], self._output
                assert self._more.wait(deadline - time.monotonic()), (
                    f"no {pattern.pattern!r} in\n{self._output[begin:]}"
                )
        return found

    def close(self) -> None:
        """End it. SIGTERM for what runs in it, as closing a window would."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        try:
            os.killpg(self._shell.pid, signal.SIGTERM)
            self._shell.stdin.close()
            self._reader.join(_PATIENCE)
            os.killpg(self._shell.pid, signal.SIGKILL)
        except (ProcessLookupError, BrokenPipeError):
            pass
        self._shell.wait()
        self._reader.join()
        self._shell.stdout.close()


def pattern_of(text: str) -> re.Pattern[str]:
    """What finds a text. A line `...` stands for anything, `...` within a line for anything on it
    but quotes, and blanks for any blanks."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return re.compile(r"\s+".join(".*?" if x == "..." else _of_line(x) for x in lines), re.DOTALL)


def _of_line(line: str) -> str:
    parts = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in line.split("...")]
    return r"[^'\"\n]*?".join(parts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
