"""Programs in processes of their own, which say what they do line by line; all live processes."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

PATIENCE = 60.0  # seconds, for a machine that is busy with something else


def live_processes() -> dict[int, tuple[int, str]]:
    """Parent and command line (or title) of every live process, as the kernel has them."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state not in "ZX":
                found[int(folder.name)] = (int(parent), line)
    return found


class Program:
    """A Python program as a process, whose lines are read as they come.

    At the end of the block it is killed, with its children, if any of them is left.
    """

    def __init__(self, code: str | Path | list[str], *arguments: object, **env: str) -> None:
        """code: the program, the file it is in, or a command that is something else."""
        command = [sys.executable, "-u"]
        if isinstance(code, list):
            command = code
        else:
            command += [str(code)] if isinstance(code, Path) else ["-c", textwrap.dedent(code)]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group to be killed as one
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_lines),
            threading.Thread(target=self._read_errors),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return "".join(self._errors)

    @property
    def pid(self) -> int:
        return self.process.pid

    def expect(self, *lines: str) -> None:
        """Wait for these lines, which must be the next ones."""
        for line in lines:
            assert self.line() == line, self.errors

    def line(self) -> str:
        """The next line."""
        line = self._lines.get(timeout=PATIENCE)
        if line is None:
            self.process.wait(PATIENCE)
            self._readers[1].join(PATIENCE)
            raise AssertionError(f"ended with {self.process.returncode}:\n{self.errors}")
        return line

    def say(self, line: str = "") -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end: its exit status, and the lines nobody has read yet."""
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        left = []
        while (line := self._lines.get_nowait()) is not None:
            left.append(line)
        return status, left

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass
