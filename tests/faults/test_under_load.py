"""Each fault while sixteen threads use a pool of twelve: what they are told, and what comes after.

The same faults as in bench/faults.py, on a pool that is quicker to find out, in this process.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.faults import load
from tests.faults.client import Load
from tests.faults.load import BY_NAME, THREADS, Fault
from tests.faults.support import audit, fill, soon, spread
from tests.programs import Program
from ybsmart import ConnectionPool
from ybsmart.testing import LocalCluster

MakePool = Callable[..., ConnectionPool]

LASTS = {"killed": 1.0, "stopped": 5.0, "black-holed": 5.0, "drained": 1.0}
PROXY = """
import sys
from tests.wire import Forwarder
print(Forwarder(sys.argv[1], int(sys.argv[2]), sys.argv[3]).port)
sys.stdin.read()
"""
KINDS = "short transaction query retried run_transaction"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", list(BY_NAME))
def test_only_what_was_on_the_victim_fails_and_once(
    own_cluster: LocalCluster, make_pool: MakePool, name: str
) -> None:
    if name == "black-holed" and not load.can_drop():
        pytest.skip("needs root and nftables")
    fault = dataclasses.replace(BY_NAME[name], lasts=LASTS.get(name, 0.0))
    nodes = [node.host for node in own_cluster.nodes]
    victims = nodes if fault.everywhere else nodes[1:2]
    _use_throughout(fault, own_cluster, make_pool(), victims)


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signal stops a process here")
def test_the_same_behind_a_proxy_that_stalls(
    own_cluster: LocalCluster, make_pool: MakePool
) -> None:
    """As near to a black hole as it gets where nothing may be dropped."""
    node = own_cluster.nodes[1]
    address = "127.0.0.99" if sys.platform == "linux" else "127.0.0.1"
    with Program(PROXY, node.host, node.port, address) as proxy:
        ways = f"{node.host}:{node.port}={address}:{proxy.line()}"

        def stop(_: LocalCluster) -> None:
            os.kill(proxy.pid, signal.SIGSTOP)
            os.waitpid(proxy.pid, os.WUNTRACED)  # until all of its threads have stopped

        stalls = Fault(
            "stalled",
            stop,
            lambda _: os.kill(proxy.pid, signal.SIGCONT),
            lasts=5.0,
        )
        pool = make_pool(properties={"address_map": ways})
        _use_throughout(stalls, own_cluster, pool, [address])
        pool.close()


def _use_throughout(
    fault: Fault, own_cluster: LocalCluster, pool: ConnectionPool, victims: list[str]
) -> None:
    fill(pool)
    users = Load(pool, THREADS, KINDS)
    users.start()
    try:
        begun = _happen(own_cluster, pool, fault)
        # Nobody stops: those who come meanwhile have to be served, and what is lent moves as it
        # is returned.
        soon(lambda: _is_even(pool, own_cluster), pool)
    finally:
        requests = users.stop(60.0)

    failed = [request for request in requests if request.error]
    assert not [r for r in failed if fault.harmless]
    # Only those who were there when it happened, each of them once, and told so.
    assert not [r for r in failed if r.started > begun]
    assert not [r for r in failed if r.node not in (*victims, "")]
    assert len(failed) <= 4 if not fault.everywhere else len(failed) <= 4 + 6 + 12
    assert not [r for r in failed if "still waiting" in r.error or "Timeout" in r.error]
    # One that may be repeated is.
    assert not [r for r in failed if r.kind == "retried"]
    assert max(r.seconds for r in requests) < 10
    audit(pool, own_cluster)
    assert _is_even(pool, own_cluster)


def _happen(cluster: LocalCluster, pool: ConnectionPool, fault: Fault) -> float:
    """Let it happen and pass; return when the victims had been struck."""
    time.sleep(0.5)
    fault.begins(cluster)
    begun = time.monotonic()
    time.sleep(fault.lasts)
    if fault.name == "drained":  # which the pool notices only when it looks at the list
        soon(lambda: spread(pool, cluster)[1] == 0, pool)
    fault.ends(cluster)
    return begun


def _is_even(pool: ConnectionPool, cluster: LocalCluster) -> bool:
    counts = spread(pool, cluster)
    return sum(counts) == 12 and max(counts) - min(counts) <= 1
