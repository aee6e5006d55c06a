"""However it ends, nothing is left: processes, folders and memory segments are gone."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from tests.cluster.support import (
    SOURCE,
    assert_gone,
    family,
    linux_only,
    mentioning,
    read,
    refused,
    segments,
    segments_of,
    spawn,
    whole_family,
)
from tests.programs import live_processes
from tests.servers import NET
from tests.support import until
from ybsmart.testing import LocalCluster
from ybsmart.testing import server as server_module
from ybsmart.testing.home import home


@linux_only
def test_nothing_is_left_after_close() -> None:
    cluster = LocalCluster(first_address=f"{NET}.1")
    folder = Path(cluster._folder)
    ours = segments_of(cluster._folder)
    assert len(ours) == 3
    everything = set.union(*(whole_family(node.pid) for node in cluster.nodes))
    cluster.kill(0)
    cluster.pause(1)
    cluster.close()
    assert not everything & set(live_processes())
    assert not folder.exists()
    assert not ours & segments()
    assert all(refused(node) for node in cluster.nodes)
    cluster.close()
    for call in (cluster.add, cluster.discovery, lambda: cluster.kill(0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@linux_only
def test_a_killed_server_leaves_no_memory_segment(cluster: LocalCluster) -> None:
    for _ in range(3):
        before = segments_of(cluster._folder)
        cluster.kill(0)
        assert len(before & segments()) == 2
        cluster.start(0)


@linux_only
def test_the_last_reference_closes() -> None:
    cluster = LocalCluster(1)
    everything, folder = whole_family(cluster.nodes[0].pid), Path(cluster._folder)
    del cluster
    gc.collect()
    assert not everything & set(live_processes())
    assert not folder.exists()


@linux_only
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_in_the_constructor(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    LocalCluster(1).close()
    before, ours = family(os.getpid()), set[str]()
    folders = set(os.listdir(home().folder))
    started: set[int] = set()
    wait = server_module.Server.wait_until_ready

    def fail(self: server_module.Server) -> None:
        wait(self)
        started.update(whole_family(self.pid))
        ours.update(segments_of(self._folder))
        if self.host.endswith(".2"):
            raise error("half-way")

    monkeypatch.setattr(server_module.Server, "wait_until_ready", fail)
    # Kept, as a debugger would: it must not be the collector that cleans up.
    with pytest.raises(error, match="half-way") as kept:
        LocalCluster()
    assert len(started) >= 8
    assert not started & set(live_processes())
    assert family(os.getpid()) == before
    assert set(os.listdir(home().folder)) == folders
    assert len(ours) == 2
    assert not ours & segments()
    assert kept.tb is not None


@linux_only
@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("tell()", 0),
        ("tell(); cluster.kill(0); cluster.pause(1); sys.exit(3)", 3),
        ("tell(); raise ValueError", 1),
        ("tell(); del cluster", 0),
        ("a = cluster; b = LocalCluster(1); tell()", 0),
        ("tell(); home.close(); cluster.close()", 0),
    ],
)
def test_nothing_is_left_after_exit_without_close(last: str, status: int) -> None:
    process = spawn(last, f"{NET}.1")
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    # The end of the streams: nothing of it may hold them either.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Warning" not in errors
    assert "Error" not in errors.replace("ValueError", "", 2)
    assert not set(told["pids"]) & set(live_processes())
    assert not any(map(os.path.exists, told["folders"]))
    assert told["segments"]
    assert not set(told["segments"]) & segments()


@linux_only
@pytest.mark.parametrize(
    "before",
    [
        "",
        "cluster.kill(0); cluster.start(0); cluster.pause(1)",
        "cluster.add(); cluster.kill(1)",
    ],
)
def test_nothing_is_left_after_sigkill_of_the_owner(before: str) -> None:
    process = spawn(f"tell(); {before or 'pass'}; print(flush=True); time.sleep(60)", f"{NET}.1")
    told = read(process)
    assert process.stdout is not None
    process.stdout.readline()
    assert told["pids"][-1] in live_processes()
    process.kill()
    process.communicate(timeout=60)
    assert_gone(told)


@linux_only
def test_sigkill_of_the_owner_is_noticed_though_its_forked_child_lives_on() -> None:
    process = spawn(
        """
        tell()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
        """,
        f"{NET}.1",
    )
    told = read(process)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait(10)
        assert_gone(told)
        assert child in live_processes()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


@linux_only
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
def test_sigkill_of_the_owner_while_it_starts(delay: float) -> None:
    # From when there is somebody to clean up: the folder is there a moment before.
    # Its own place for files, so that leftovers of others do not matter.
    folder = tempfile.mkdtemp(prefix="t-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    os.chmod(folder, 0o755)
    try:
        code = f"""
        import subprocess
        from ybsmart.testing import LocalCluster, home
        home._fast_folder = lambda: {folder!r}
        class Popen(subprocess.Popen):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                print(flush=True)
        subprocess.Popen = Popen
        LocalCluster(first_address=f"{NET}.1")
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, *sys.path])},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        until(lambda: not os.listdir(folder))
        until(lambda: not mentioning(folder))
    finally:
        shutil.rmtree(folder)


@linux_only
def test_a_viewer_of_the_log_survives(cluster: LocalCluster) -> None:
    log = Path(cluster._folder, f"{NET}.1:{cluster.nodes[0].port}", "log")
    with subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.DEVNULL) as viewer:
        try:
            cluster.kill(0)
            cluster.close()
            assert viewer.poll() is None
        finally:
            viewer.kill()
