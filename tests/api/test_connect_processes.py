"""What a process notices besides its connections: its end, its greenlets, its other libpq."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from ybsmart.testing import LocalCluster


def run(code: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees the same package."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", code, url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("discovery", [{}, {"delay": 600}])
def test_a_process_ends_without_a_word_while_there_is_work_in_the_background(
    own_cluster: LocalCluster, discovery: dict[str, Any]
) -> None:
    url = own_cluster.conninfo(load_balance=True, failed_host_reconnect_delay_secs=1)
    code = (
        "import sys, ybsmart\n"
        "ybsmart.connect(sys.argv[1]).close()\n"
        "print('ready'); input()\n"
        "for _ in range(3): ybsmart.connect(sys.argv[1], yb_servers_refresh_interval=0).close()\n"
        "print('ended')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-u", "-c", code, url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    own_cluster.pause(own_cluster.nodes[1])  # watched by a thread when the process ends
    try:
        own_cluster.discovery(**discovery)
        out, err = child.communicate("\n", timeout=120)
    finally:
        child.kill()
        own_cluster.resume(own_cluster.nodes[1])

    assert (out, err, child.returncode) == ("ended\n", "", 0)


# Where these count, no node may lose a connection to another because the machine is busy: what the
# fixture sees to in this process, they see to in theirs.


def test_greenlets_connect_side_by_side(own_cluster: LocalCluster) -> None:
    pytest.importorskip("gevent")
    code = """
import gevent.monkey; gevent.monkey.patch_all()
import sys, gevent, ybsmart.cluster
ybsmart.cluster.HEDGE_DELAY = 10.0
held = [gevent.spawn(ybsmart.connect, sys.argv[1]) for _ in range(12)]
gevent.joinall(held, raise_error=True)
print(sorted(ybsmart.connection_counts().values()))
for greenlet in held: greenlet.get().close()
"""
    done = run(code, own_cluster.conninfo(load_balance=True))

    assert (done.stdout, done.returncode) == ("[4, 4, 4]\n", 0), done.stderr


def test_with_psycopg_in_pure_python(own_cluster: LocalCluster) -> None:
    code = """
import sys
from typing import Any
try:
    import psycopg
except ImportError:
    print("none"); sys.exit()
assert psycopg.pq.__impl__ == "python"
import ybsmart.cluster
from ybsmart import libpq
assert libpq.tells_sqlstate
ybsmart.cluster.HEDGE_DELAY = 10.0
held = [ybsmart.connect(sys.argv[1]) for _ in range(6)]
print(sorted(ybsmart.connection_counts().values()))
try: ybsmart.connect(sys.argv[1], password="wrong")
except psycopg.errors.InvalidPassword as error: print(error.sqlstate)
for conn in held: conn.close()
"""
    done = run(code, own_cluster.conninfo(load_balance=True), PSYCOPG_IMPL="python")

    if done.stdout == "none\n":
        pytest.skip("no libpq on this system")
    assert (done.stdout, done.returncode) == ("[2, 2, 2]\n28P01\n", 0), done.stderr


def test_where_no_sqlstate_can_be_had_faults_are_told_by_words(own_cluster: LocalCluster) -> None:
    code = """
import sys, psycopg, ybsmart
from ybsmart import libpq
libpq._set_verbosity = None
ybsmart.connect(sys.argv[1]).close()
try: ybsmart.connect(sys.argv[1], password="wrong")
except psycopg.OperationalError as error: print(error.sqlstate, str(error).count("FATAL"))
print({node.state for node in ybsmart.clusters()[0].nodes})
"""
    done = run(code, own_cluster.conninfo(load_balance=True))

    assert (done.stdout, done.returncode) == ("None 1\n{'up'}\n", 0), done.stderr
