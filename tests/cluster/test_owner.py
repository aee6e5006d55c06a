"""The cluster is one process's: forked children, signals, and the watchdog that outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cluster.support import (
    SCRIPT,
    SOURCE,
    assert_gone,
    discover,
    family,
    linux_only,
    read,
    spawn,
)
from tests.programs import live_processes
from tests.servers import NET
from tests.support import until
from ybsmart.testing import LocalCluster, watchdog
from ybsmart.testing import home as home_module
from ybsmart.testing import server as server_module


@linux_only
def test_a_forked_child_touches_nothing() -> None:
    with LocalCluster(2, first_address=f"{NET}.1") as cluster:
        everything = set.union(*(family(node.pid) for node in cluster.nodes))
        reader, writer = os.pipe()
        lock = home_module._lock
        lock.acquire()  # as another thread may have, at the moment of the fork
        child = os.fork()
        if child == 0:
            report: list[str] = []
            try:
                cluster.close()
                try:
                    cluster.kill(0)
                except RuntimeError as error:
                    report.append(str(error))
                report.append(cluster.nodes[0].state)
                report.append(str(cluster.execute(0, "SELECT 1")))
                cluster._finalizer()
                server_module.end_dropped(
                    cluster._owner, cluster._folder, cluster._servers, cluster._places
                )
                cluster._home.close()
                with LocalCluster(1, first_address=f"{NET}.11") as own:
                    report.append(own.nodes[0].host)
                    report.append(str(own._home is cluster._home))
                home_module.home().close()
            except BaseException as error:
                report.append(repr(error))
            finally:
                os.write(writer, json.dumps(report).encode())
                os._exit(0)
        lock.release()
        os.close(writer)
        with open(reader) as pipe:
            report = json.loads(pipe.read())
        os.waitpid(child, 0)
        owner = f"the cluster belongs to process {os.getpid()}"
        assert report == [owner, "running", "[(1,)]", f"{NET}.11", "False"]
        assert everything <= set(live_processes())
        assert len(discover(cluster.conninfo())) == 2


@linux_only
def test_a_forked_child_that_exits_normally_touches_nothing() -> None:
    process = spawn(
        """
        tell()
        sys.stdin.readline()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(cluster.nodes[0].state, cluster.execute(1, "SELECT 1"), flush=True)
        """,
        f"{NET}.1",
    )
    read(process)
    out, errors = process.communicate("\n", timeout=60)
    assert (out, errors) == ("running [(1,)]\n", "")


@linux_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"])
def test_a_signal_to_the_group_is_the_owners_business(name: str) -> None:
    process = spawn(
        f"""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])  # until it is waited for
        tell()
        signal.sigwait([signal.{name}])
        print([n.state for n in cluster.nodes], cluster.execute(1, "SELECT 1"), flush=True)
        cluster.close()
        """,
        f"{NET}.1",
        start_new_session=True,
    )
    told = read(process)
    assert process.pid not in {os.getsid(pid) for pid in told["pids"]}
    os.killpg(process.pid, getattr(signal, name))
    out, errors = process.communicate(timeout=60)
    assert (out, errors) == ("['running', 'running'] [(1,)]\n", "")
    assert_gone(told)


@linux_only
def test_the_watchdog_outlives_a_signal_to_everything() -> None:
    process = spawn("tell(); time.sleep(60)", f"{NET}.1")
    told = read(process)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(told["pids"][-1], number)
    process.kill()
    process.communicate(timeout=60)
    assert_gone(told)


@linux_only
def test_a_killed_watchdog_is_replaced() -> None:
    process = spawn(
        """
        tell()
        home._watchdog.kill()
        home._watchdog.wait()
        second = LocalCluster(1, first_address=sys.argv[1] + "1")
        home = home_of_process()
        print(json.dumps([home._watchdog.pid, home._folders]), flush=True)
        time.sleep(60)
        """,
        f"{NET}.1",
    )
    told = read(process)
    assert process.stdout is not None
    pid, folders = json.loads(process.stdout.readline())
    assert pid in live_processes()
    process.kill()
    process.communicate()
    until(lambda: not any(map(os.path.exists, folders)))
    # What nothing watched any more.
    for folder in told["folders"]:
        watchdog.end(folder)
    assert_gone(told)


@linux_only
def test_an_interpreter_that_cannot_watch_is_an_error() -> None:
    code = "import sys; sys.executable = '/bin/true'\n"
    process = subprocess.run(
        [sys.executable, "-c", code + SCRIPT, f"{NET}.1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *sys.path])},
    )
    assert process.returncode == 1
    assert (
        "RuntimeError: sys.executable ('/bin/true') does not run a Python script" in process.stderr
    )
