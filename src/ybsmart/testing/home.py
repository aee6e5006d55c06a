"""The home of all servers of this process: one folder, with the template of their data.

It is removed at the end of the process, or by the watchdog if the process cannot do it any more.
Must never touch from a forked child what its parent started.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading

from . import programs, watchdog, yb_servers

USER = PASSWORD = DATABASE = "yugabyte"
TEMPLATE_COLUMNS = 10

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


class Home:
    """The folder of all servers of this process, with the template of their data.

    Thread-safe. Made by `home()`; lives as long as the process.
    """

    def __init__(self) -> None:
        found = programs.bundle()
        # PostgreSQL refuses to run as root.
        self.user = programs.nobody() if os.geteuid() == 0 else None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._asked = 0
        self._received = b""
        self._greeted = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._template: str | None = None
        self._clusters = 0
        self.folder = tempfile.mkdtemp(prefix=watchdog.PREFIX, dir=_fast_folder())
        folders = [self.folder]
        copy = None
        if self.user is not None:
            self._give(self.folder)
            if not programs.reachable(found, self.user):
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
                # A buffer has a lock, which a fork may find taken, and a child may write it out.
                bufsize=0,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            for folder in folders:
                os.rmdir(folder)
            raise
        atexit.register(self.close)
        if copy is not None:
            found = programs.copy_bundle(found, copy)
        self._programs = found

    def program(self, name: str) -> str:
        """The path of a PostgreSQL program."""
        return os.path.join(self._programs, "bin", name)

    def guarded(self) -> bool:
        """Whether the watchdog is there; RuntimeError if it never was."""
        with self._asking:
            if not self._greeted:
                if self._read_line() != b"watching":
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
        except (OSError, RuntimeError, ValueError):
            # There is none (any more), or the pipe to it is closed; then we do it ourselves.
            error = watchdog.obey(command, folder)
        if error:
            raise RuntimeError(f"cannot {command} the servers in {folder}: {error}")

    def _answer(self, command: str, folder: str) -> str:
        self.guarded()
        with self._asking:
            assert self._watchdog.stdin is not None
            self._asked += 1
            line = json.dumps([self._asked, command, folder]).encode()
            self._watchdog.stdin.write(line + b"\n")
            # An answer of another number is one that an exception kept from being waited for.
            while line := self._read_line():
                number, error = json.loads(line)
                if number == self._asked:
                    return str(error)
        raise BrokenPipeError("the watchdog is gone")

    def _read_line(self) -> bytes:
        assert self._watchdog.stdout is not None
        while b"\n" not in self._received:
            data = self._watchdog.stdout.read(4096)
            if not data:
                return b""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

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
                env=programs.environment(),
                start_new_session=True,
                **programs.as_user(self.user),
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
            env=programs.environment(),
            start_new_session=True,
            **programs.as_user(self.user),
        )
        # The single-user server ends well whatever became of its statements.
        if done.returncode or b"ERROR: " in done.stdout or b"FATAL: " in done.stdout:
            raise RuntimeError(
                f"{os.path.basename(command[0])} failed ({done.returncode}):\n{tail(done.stdout)}"
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

    def disown(self) -> None:
        """In a forked child: none of this is its own. Keeps the collector from warning of it."""
        for process in (self._watchdog, *self._processes):
            process.returncode = 0
        for stream in (self._watchdog.stdin, self._watchdog.stdout):
            if stream is not None:
                stream.close()


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
    global _home, _lock
    if _home is not None:
        _home.disown()
    # The lock may be held by a thread that a forked child does not have.
    _home, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _fast_folder() -> str | None:
    """Memory, if there is enough of it (containers often have 64 MB); None: the usual place."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return None
    roomy = space.f_bavail * space.f_frsize >= 1 << 30
    return "/dev/shm" if roomy and os.access("/dev/shm", os.W_OK | os.X_OK) else None


def tail(log: bytes) -> str:
    return "\n".join(log.decode(errors="replace").splitlines()[-20:])
