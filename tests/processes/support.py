"""Programs in processes of their own, which say what they do line by line."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

PATIENCE = 60.0  # seconds, for a machine that is busy with something else


class Program:
    """A Python program as a process, whose lines are read as they come.

    At the end of the block it is killed if it has not ended.
    """

    def __init__(self, code: str, *arguments: object, options: tuple[str, ...] = (), **env: str):
        command = [sys.executable, "-u", *options, "-c", textwrap.dedent(code)]
        self._run([*command, *map(str, arguments)], env)

    def _run(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
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
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass
