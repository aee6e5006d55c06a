"""Finds, signals and ends the server processes of a folder, and removes the folder.

Run as a script (`python -I -S watchdog.py OWNER_PID FOLDER...`) it does so when its owner tells it
to, and at the end of its owner, however that comes, ends whatever is left in the folders given.
The owner asks, rather than do it itself, because it takes hundreds of system calls, each of which
gives the interpreter lock to the threads that are busy with the very servers.

Must never import anything outside the standard library (it runs without site-packages, and after
whatever broke its owner), and must never signal a process that is not a server of its folder.
"""

from __future__ import annotations

import glob
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

PREFIX = "ybsmart-"
_PROC = os.path.exists("/proc/self/stat")


def marker(folder: str) -> str:
    """What every server process below `folder` has in its command line.

    The postmaster has it in `-D <folder>/.../data`, its children in their title, where it comes
    from `cluster_name`, which has room for the end of the path only. The slash keeps `.../1`
    apart from `.../10`.
    """
    return folder[folder.rindex(PREFIX) :] + "/"


def find(mark: str) -> list[int]:
    """The ids of the server processes with this mark; a viewer of their log is none of them."""
    found = []
    for pid, title in _titles():
        if mark in title and (title.startswith("postgres: ") or " -D " in title):
            found.append(pid)
    return found


def _titles() -> list[tuple[int, str]]:
    titles = []
    if _PROC:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/cmdline", "rb") as file:
                        line = file.read()
                except OSError:
                    continue
                titles.append((int(name), os.fsdecode(line.replace(b"\0", b" "))))
    else:
        for text in _ps("-A", "-ww", "-o", "pid=,command="):
            number, _, title = text.strip().partition(" ")
            titles.append((int(number), title.lstrip()))
    return titles


def _state(pid: int) -> str:
    """One letter, "T" when stopped; empty when the process is gone.

    A zombie counts as gone: it has closed its files, and reaping it is somebody else's task.
    """
    if _PROC:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                letter = file.read().rpartition(b")")[2].split()[0].decode()
        except OSError:
            return ""
    else:
        letter = "".join(_ps("-o", "state=", "-p", str(pid)))[:1]
    return "" if letter in "ZX" else letter


def _ps(*options: str) -> list[str]:
    done = subprocess.run(("ps", *options), check=False, capture_output=True)
    return os.fsdecode(done.stdout).splitlines()


def signal_all(mark: str, number: int, *, until: str = "", seconds: float = 60.0) -> set[int]:
    """Send the signal to every server with this mark until each is gone, or its state in `until`.

    Returns the ids of all it found. TimeoutError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    seen: set[int] = set()
    quiet = 0
    # Twice: a process forked while the table was read may be missing from the first look.
    while quiet < 2:
        # What was seen once is followed by its id: a process that ends loses its command line
        # before it closes its sockets.
        seen.update(find(mark))
        states = {pid: _state(pid) for pid in seen}
        open_ = [pid for pid, state in states.items() if state and state not in until]
        for pid in open_:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        quiet = 0 if open_ else quiet + 1
        if open_:
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {open_} do not react to signal {number}")
            time.sleep(0.0005)
    return seen


def release(folder: str, ended: set[int]) -> None:
    """Remove the System V memory segments of the servers below `folder`, and of these processes.

    Each server makes one of a few bytes, which nothing else removes after SIGKILL, and their
    number is limited per machine. (macOS: its semaphores too; those stay until the server is
    started again or the machine restarts.)
    """
    segments = {}
    for depth in ("", "*", "*/*"):
        for path in glob.glob(os.path.join(glob.escape(folder), depth, "data", "postmaster.pid")):
            try:
                with open(path) as file:
                    segments[file.read().splitlines()[6].split()[1]] = os.stat(path).st_uid
                os.unlink(path)
            except (OSError, IndexError):
                pass
    try:
        with open("/proc/sysvipc/shm") as file:
            table = [line.split() for line in file.readlines()[1:]]
    except OSError:
        table = []
    for _, segment, _, size, creator, _, users, uid, *_ in table:
        # Of a server that was ended before it could note its segment. The other conditions: its
        # process id may have been another's long ago.
        if int(creator) in ended and int(size) < 100 and users == "0":
            segments[segment] = int(uid)
    for segment, owner in segments.items():
        # As the owner of the segment: root in a container may not remove another's.
        try:
            subprocess.run(
                ("ipcrm", "-m", segment),
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                user=owner if os.geteuid() == 0 else None,
            )
        except OSError:
            pass


def kill(folder: str) -> None:
    """SIGKILL every server below the folder; returns when all are gone."""
    release(folder, signal_all(marker(folder), signal.SIGKILL))


def pause(folder: str) -> None:
    """SIGSTOP every server below the folder; returns when all are stopped."""
    signal_all(marker(folder), signal.SIGSTOP, until="T")


def resume(folder: str) -> None:
    """SIGCONT to every server below the folder; returns when none is stopped."""
    signal_all(marker(folder), signal.SIGCONT, until="RSDIUt")


def end(folder: str) -> None:
    """SIGKILL every server below the folder, then remove it. Nothing is left on return.

    TimeoutError when a process or a file withstands.
    """
    deadline = time.monotonic() + 60
    kill(folder)
    shutil.rmtree(folder, ignore_errors=True)
    # An initdb or cp that was under way may still be writing, and ends for want of its folder.
    while os.path.exists(folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot remove {folder}")
        time.sleep(0.01)
        kill(folder)
        shutil.rmtree(folder, ignore_errors=True)


COMMANDS = {"kill": kill, "pause": pause, "resume": resume, "end": end}


def main(owner: int, folders: list[str]) -> None:
    # What ends a whole group of processes must leave this one to clean up after the others.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        serve(owner)
    except BrokenPipeError:
        pass
    for folder in folders:
        end(folder)


def serve(owner: int) -> None:
    """Do what the owner asks until it is gone. BrokenPipeError if it goes meanwhile."""
    # The owner waits for this line, and so knows that the interpreter it named could run this.
    os.write(1, b"watching\n")
    received = b""
    # The end of the file tells at once, unless a forked child of the owner still holds the other
    # end; the parent's id tells that.
    while os.getppid() == owner:
        if select.select([0], [], [], 0.25)[0]:
            data = os.read(0, 4096)
            if not data:
                break
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                number, name, folder = json.loads(line)
                answer = [number, obey(name, folder)]
                os.write(1, json.dumps(answer).encode() + b"\n")


def obey(name: str, folder: str) -> str:
    """Run one of the commands; returns the text of the error, empty if there is none."""
    try:
        COMMANDS[name](folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
