"""One PostgreSQL server and its folder: how its data comes to be, start, signals, SQL.

Knows nothing of clusters. Must never listen anywhere but on the one loopback address it is given,
because the password is public.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import psycopg

from . import watchdog
from .home import DATABASE, PASSWORD, TEMPLATE_COLUMNS, USER, Home, tail
from .places import Places

State = Literal["running", "paused", "stopped"]

_SECONDS = 60.0  # for whatever normally takes less than one, on a machine that is busy


class PortTaken(OSError):
    """Somebody else took the port between the look at it and the start of the server."""


class Server:
    """One server and its folder. Not thread-safe: the cluster lets in one at a time."""

    def __init__(
        self, home: Home, folder: str, host: str, port: int, settings: Mapping[str, str | int]
    ) -> None:
        self.host = host
        self.port = port
        self.columns = TEMPLATE_COLUMNS  # of its yb_servers(), 0 if it has none
        self._home = home
        self._owner = os.getpid()
        self._folder = home.mkdir(os.path.join(folder, f"{host}:{port}"))
        self._data = os.path.join(self._folder, "data")
        self._log = os.path.join(self._folder, "log")
        mark = watchdog.marker(self._folder)
        own = {"listen_addresses": host, "port": port, "cluster_name": mark}
        options = [f"--{name}={value}" for name, value in {**own, **settings}.items()]
        self._command = (home.program("postgres"), "-D", self._data, *options)
        self._paused = False
        self._process: subprocess.Popen[bytes] | None = None
        self._copying: subprocess.Popen[bytes] | None = home.spawn(
            ("cp", "-R", home.template(), self._data), self._log
        )

    @property
    def state(self) -> State:
        if self._process is None:
            return "stopped"
        # Only the owner may ask the system: to a forked child, this is no child of its own.
        if os.getpid() == self._owner and self._process.poll() is not None:
            return "stopped"
        return "paused" if self._paused else "running"

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self.state == "stopped" else self._process.pid

    def launch(self) -> None:
        """Begin to start; `wait_until_ready` is the end of it."""
        if self._copying is not None:
            if self._copying.wait():
                raise RuntimeError(f"cannot copy the data of {self._name()}:\n{self._log_tail()}")
            self._copying = None
        if self._process is not None:
            # It ended without us: what it left must go first.
            self.kill()
        self._paused = False
        self._process = self._home.spawn(self._command, self._log)

    def wait_until_ready(self) -> None:
        """Return when the server accepts connections; PortTaken or RuntimeError if it will not."""
        assert self._process is not None
        deadline = time.monotonic() + _SECONDS
        # The server writes this line itself when it lets clients in. Trying to connect would
        # cost it more than its start does.
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None:
                log = self._log_tail()
                self._process = None
                message = f"the server on {self._name()} did not start:\n{log}"
                if "Address already in use" in log:
                    raise PortTaken(message)
                raise RuntimeError(message)
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the server on {self._name()} is not ready after {_SECONDS:.0f} s:\n"
                    f"{self._log_tail()}"
                )
            time.sleep(0.002)

    def _is_ready(self, pid: int) -> bool:
        try:
            with open(os.path.join(self._data, "postmaster.pid")) as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def kill(self) -> None:
        """SIGKILL to all of its processes; returns when they are gone. Harmless when stopped."""
        self._home.ask("kill", self._folder)
        self.reap()

    def reap(self) -> None:
        """Collect what has been ended from outside."""
        for process in (self._process, self._copying):
            if process is not None:
                process.wait()
        self._process = self._copying = None
        self._paused = False

    def stop(self, number: int) -> None:
        """An orderly shutdown by this signal; returns at its end. TimeoutError after a minute."""
        if self._process is None or self.state == "stopped":
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"the server on {self._name()} has not shut down after {_SECONDS:.0f} s"
            ) from None
        self._process = None

    def pause(self) -> None:
        self._home.ask("pause", self._folder)
        self._paused = True

    def resume(self) -> None:
        self._home.ask("resume", self._folder)
        self._paused = False

    def remove(self) -> None:
        """Kill it if it runs, and remove its folder."""
        self._home.ask("end", self._folder)
        self.reap()

    def execute(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        database: str = DATABASE,
    ) -> list[tuple[Any, ...]]:
        """Run SQL as superuser, on a connection of its own; the rows of the last statement."""
        # A replication connection of this kind takes SQL as well (in the simple protocol only,
        # hence the client-side cursor), and neither takes one of the clients' connections nor
        # counts as one.
        with psycopg.connect(
            host=self.host,
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname=database,
            replication="database",
            # What the environment says is meant for others.
            application_name="ybsmart.testing",
            client_encoding="UTF8",
            connect_timeout=10,
            gssencmode="disable",
            options="",
            sslmode="disable",
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
        ) as connection:
            cursor = connection.execute(sql.encode(), params)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def _name(self) -> str:
        return f"{self.host}:{self.port}"

    def _log_tail(self) -> str:
        try:
            with open(self._log, "rb") as file:
                return tail(file.read())
        except FileNotFoundError:
            return "(no log)"


def end_dropped(owner: int, folder: str, servers: Iterable[Server], places: Places) -> None:
    """End the servers of a cluster that nobody refers to any more; nothing in a forked child.

    Not through the watchdog: the collector may come here in the middle of a question to it.
    """
    if os.getpid() == owner:
        watchdog.end(folder)
        for server in servers:
            server.reap()
        places.release()
