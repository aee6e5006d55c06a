"""The scenarios that drivers are put through, and how they look at what one has done."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ybsmart.testing import LocalCluster

LIMIT = 25.0  # seconds until a driver is taken to hang
WORKER = Path(__file__).with_name("worker.py")


class Gone(Exception):
    """The driver did not answer, or raised."""


class Driver:
    """A process with one driver, and where its connections are."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.params: dict[str, Any] = {
            "load_balance_hosts": "true",
            "application_name": "compare",
            "connect_timeout": 10,
        }

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, arguments]) + "\n")
        self.process.stdin.flush()
        try:
            done, answer = json.loads(self.answers.get(timeout=LIMIT))
        except queue.Empty:
            raise Gone(f"no answer in {LIMIT:.0f} s") from None
        if not done:
            raise Gone(answer)
        return answer

    def open(
        self,
        cluster: LocalCluster,
        count: int,
        contact: int = 0,
        threads: bool = False,
        must: bool = True,
        **params: Any,
    ) -> dict[str, Any]:
        """Open connections; errors of the driver's end the scenario, if it `must`."""
        url = params.pop("url", cluster.conninfo(contact))
        given = {k: v for k, v in {**self.params, **params}.items() if v is not None}
        answer: dict[str, Any] = self.ask(
            "open", conninfo=url, params=given, count=count, threads=threads
        )
        if must and answer["errors"]:
            raise Gone(f"{len(answer['errors'])} of {count} fail: {short(answer['errors'][0])}")
        return answer

    def believes(self, cluster: LocalCluster) -> str:
        counts = self.ask("counts")
        return slashes([counts.get(node.advertised_host, 0) for node in cluster.nodes])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def short(error: str) -> str:
    """The end of libpq's long way of saying why a connection failed."""
    return error.rpartition("FATAL:  ")[2][:90]


def slashes(numbers: list[int]) -> str:
    return "/".join(map(str, numbers))


# A driver's own session for the node list is no connection of the application's.
CONNECTIONS = "application_name = 'compare' AND query NOT LIKE '%yb_servers%'"


def real(cluster: LocalCluster) -> str:
    """Where the connections are, once the servers agree with themselves for a moment."""
    sql = f"SELECT count(*) FROM pg_stat_activity WHERE {CONNECTIONS}"

    def look() -> list[int]:
        return [
            cluster.execute(node, sql)[0][0] if node.state == "running" else 0
            for node in cluster.nodes
        ]

    seen, since = look(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.02)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()
    return slashes(seen)


def both(driver: Driver, cluster: LocalCluster) -> str:
    """Where the connections are, and what the driver believes if that is something else."""
    servers, believed = real(cluster), driver.believes(cluster)
    return servers if servers == believed else f"{servers}, believes {believed}"


def seconds(number: float) -> str:
    return "under 2 s" if number < 2 else f"{number:.0f} s"


def three(**options: Any) -> LocalCluster:
    return LocalCluster([f"cloud.region.{zone}" for zone in "abc"], **options)


def six() -> LocalCluster:
    zones = ("dc1", "dc2", "dc3", "dc2", "dc3", "dc4")
    cluster = LocalCluster([f"cloud.region.{zone}" for zone in zones])
    for replica in cluster.nodes[3:]:
        cluster.update(replica, node_type="read_replica")
    return cluster


Scenario = Callable[[Driver], str]
SCENARIOS: list[tuple[str, Scenario]] = []


def scenario(text: str) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        SCENARIOS.append((text, function))
        return function

    return register


@scenario("30 connections, three nodes")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 30)
        return both(driver, cluster)


@scenario("30 threads in a cold process; sessions beyond the 30")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 30, threads=True)
        spread = both(driver, cluster)
        driver.ask("close")
        driver.end()
        sql = "SELECT sum(sessions) FROM pg_stat_database WHERE datname = 'yugabyte'"
        real(cluster)
        total = sum(cluster.execute(node, sql)[0][0] for node in cluster.nodes)
        return f"{spread}; {total - 30}"


@scenario("30 asyncio tasks at once")
def _(driver: Driver) -> str:
    with three() as cluster:
        found = driver.ask("gather", conninfo=cluster.conninfo(), params=driver.params, count=30)
        return slashes([found.get(node.host, 0) for node in cluster.nodes])


@scenario("topology key of one zone of three, 12 connections")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 12, topology_keys="cloud.region.b")
        return both(driver, cluster)


@scenario("priorities `a:1,b:2`, 12 connections")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 12, topology_keys="cloud.region.a:1,cloud.region.b:2")
        return both(driver, cluster)


@scenario("`a:1,b:2` with a's node down")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 1, contact=2)
        driver.ask("close")
        cluster.kill(0)
        driver.open(cluster, 12, contact=2, topology_keys="cloud.region.a:1,cloud.region.b:2")
        return both(driver, cluster)


@scenario("key that matches no node (the documents: the rest of the cluster)")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 12, topology_keys="cloud.region.elsewhere")
        return both(driver, cluster)


@scenario("key in another case")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 12, topology_keys="CLOUD.REGION.B")
        return both(driver, cluster)


@scenario("`only-rr`, three primaries and three read replicas, 12 connections")
def _(driver: Driver) -> str:
    with six() as cluster:
        driver.open(cluster, 12, load_balance_hosts="only-rr")
        return both(driver, cluster)


@scenario("`prefer-rr` with the keys dc2:1,dc3:2 and node 4 down")
def _(driver: Driver) -> str:
    with six() as cluster:
        driver.open(cluster, 1)
        driver.ask("close")
        cluster.kill(3)
        keys = "cloud.region.dc2:1,cloud.region.dc3:2"
        driver.open(cluster, 12, load_balance_hosts="prefer-rr", topology_keys=keys)
        return both(driver, cluster)


@scenario("two properties in a URI")
def _(driver: Driver) -> str:
    with three() as cluster:
        url = cluster.conninfo(load_balance_hosts=True, topology_keys="cloud.region.b")
        driver.open(cluster, 12, url=url, load_balance_hosts=None)
        return both(driver, cluster)


@scenario("host list with a port list")
def _(driver: Driver) -> str:
    with three() as cluster:
        hosts = ",".join(node.host for node in cluster.nodes)
        ports = ",".join(str(node.port) for node in cluster.nodes)
        driver.open(cluster, 12, host=hosts, port=ports)
        return both(driver, cluster)


@scenario("balancing off, a password with two blanks in a keyword/value string")
def _(driver: Driver) -> str:
    with three() as cluster:
        cluster.execute(0, "CREATE ROLE app LOGIN PASSWORD 'a  b'")
        node = cluster.nodes[0]
        url = f"host={node.host} port={node.port} dbname=yugabyte user=app password='a  b'"
        driver.open(cluster, 1, url=url, load_balance_hosts=None)
        return "connected"


@scenario("three servers on one host, 12 connections")
def _(driver: Driver) -> str:
    with (
        LocalCluster(3, first_address="127.0.81.1") as first,
        LocalCluster(1, yugabyte=False, first_address="127.0.81.1") as second,
        LocalCluster(1, yugabyte=False, first_address="127.0.81.1") as third,
    ):
        for number, other in ((1, second), (2, third)):
            port = other.nodes[0].port
            first.update(number, advertised_host="127.0.81.1", advertised_port=port)
        driver.open(first, 12)
        return slashes([int(real(c).partition("/")[0]) for c in (first, second, third)])


@scenario("`hostaddr` given, 6 connections")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 6, hostaddr=cluster.nodes[0].host)
        return both(driver, cluster)


@scenario("nodes that can be reached by their public addresses only")
def _(driver: Driver) -> str:
    with three() as cluster:
        for number, node in enumerate(cluster.nodes):
            cluster.update(number, advertised_host=f"127.0.98.{number + 1}", public_ip=node.host)
        driver.open(cluster, 6)
        return both(driver, cluster)


@scenario("plain PostgreSQL")
def _(driver: Driver) -> str:
    with LocalCluster(1, yugabyte=False) as cluster:
        driver.open(cluster, 1)
        return "connected"


@scenario("old servers (8 columns), 6 held, node added, 2 more by a second URL")
def _(driver: Driver) -> str:
    with three(columns=8) as cluster:
        driver.open(cluster, 6)
        cluster.add("cloud.region.a")
        driver.open(cluster, 2, contact=1)
        return both(driver, cluster)


@scenario("6 connections that the servers cut, then closed")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 6)
        sql = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {CONNECTIONS}"
        for node in cluster.nodes:
            cluster.execute(node, sql)
        driver.ask("close_broken")
        driver.ask("close")
        return both(driver, cluster)


@scenario("6 connections dropped without closing")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 6)
        driver.ask("drop")
        return both(driver, cluster)


@scenario("12 held, node 2 full for a moment, then 9 more")
def _(driver: Driver) -> str:
    with three() as cluster:
        for node in cluster.nodes:
            cluster.execute(node, "CREATE ROLE app LOGIN PASSWORD 'app'")
        app: Any = {"user": "app", "password": "app", "failed_host_reconnect_delay_secs": "1"}
        driver.open(cluster, 12, **app)
        cluster.execute(1, "ALTER ROLE app CONNECTION LIMIT 1")
        driver.open(cluster, 3, **app)
        cluster.execute(1, "ALTER ROLE app CONNECTION LIMIT -1")
        time.sleep(1.2)  # the delay that was asked for
        driver.open(cluster, 9, **app)
        return both(driver, cluster)


@scenario("9 held, node 3 missing from one refresh, then listed again")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 9, yb_servers_refresh_interval="0")
        cluster.update(2, listed=False)
        for _ in range(3):
            driver.open(cluster, 1, yb_servers_refresh_interval="0")
            time.sleep(0.2)
        cluster.update(2, listed=True)
        for _ in range(3):
            driver.open(cluster, 1, yb_servers_refresh_interval="0")
            time.sleep(0.2)
        return both(driver, cluster)


@scenario("one caller with a wrong password; then 3 others with the right one")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 6)
        driver.open(cluster, 1, must=False, password="wrong")
        answer = driver.open(cluster, 3, must=False)
        return f"{answer['opened']} of 3 connect; {both(driver, cluster)}"


@scenario("password rotated, sessions cut, a node added; 8 connections with the new one")
def _(driver: Driver) -> str:
    with three() as cluster:
        for node in cluster.nodes:
            cluster.execute(node, "CREATE ROLE app LOGIN PASSWORD 'old'")
        app: Any = {"user": "app", "yb_servers_refresh_interval": "0"}
        driver.open(cluster, 3, password="old", **app)
        for node in cluster.nodes:
            cluster.execute(node, "ALTER ROLE app PASSWORD 'new'")
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
        for node in cluster.nodes:
            cluster.execute(node, sql)
        driver.ask("close_broken")
        cluster.execute(cluster.add("cloud.region.a"), "CREATE ROLE app LOGIN PASSWORD 'new'")
        answer = driver.open(cluster, 8, must=False, password="new", **app)
        return f"{answer['opened']} of 8 connect; {both(driver, cluster)}"


@scenario("longest of 6 connects with one node frozen (`connect_timeout=10`)")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 3)
        cluster.pause(2)
        return seconds(driver.open(cluster, 6)["slowest"])


@scenario("the same, with the node frozen that was asked for the node list")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 3, yb_servers_refresh_interval="0")
        cluster.pause(0)
        return seconds(driver.open(cluster, 6, yb_servers_refresh_interval="0")["slowest"])


@scenario("every node restarted once, then one more added; 8 connections")
def _(driver: Driver) -> str:
    with three() as cluster:
        quick: Any = {"yb_servers_refresh_interval": "0", "failed_host_reconnect_delay_secs": "0"}
        driver.open(cluster, 3, **quick)
        driver.ask("close")
        for node in cluster.nodes:
            cluster.stop(node)
            driver.open(cluster, 2, must=False, **quick)
            driver.ask("close")
            cluster.start(node)
            driver.open(cluster, 2, must=False, **quick)
            driver.ask("close")
        cluster.add("cloud.region.a")
        driver.open(cluster, 2, must=False, **quick)
        driver.ask("close")
        driver.open(cluster, 8, **quick)
        return both(driver, cluster)


@scenario("all listed nodes replaced, all sessions cut; the URL's host leads into the cluster")
def _(driver: Driver) -> str:
    with three() as cluster:
        cluster.update(0, listed=False)
        quick: Any = {"failed_host_reconnect_delay_secs": "0"}
        driver.open(cluster, 2, **quick)
        driver.ask("close")
        for node in cluster.nodes[1:]:
            cluster.add(node.placement)
            cluster.remove(node)
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {}"
        cluster.execute(0, sql.format("application_name = 'compare'"))
        for _ in range(4):
            driver.open(cluster, 1, must=False, **quick)
            driver.ask("close")
            time.sleep(0.2)
        answer = driver.open(cluster, 4, must=False, **quick)
        return f"{answer['opened']} of 4 connect; {real(cluster)}"


@scenario("all nodes down, one returns at once; 3 connections")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 3)
        for node in cluster.nodes:
            cluster.kill(node)
        driver.open(cluster, 1, must=False)
        cluster.start(1)
        return f"{driver.open(cluster, 3, must=False)['opened']} of 3 connect"


@scenario("the node list comes back empty; 3 connections")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 3, yb_servers_refresh_interval="0")
        cluster.discovery(empty=True)
        answer = driver.open(cluster, 3, must=False, yb_servers_refresh_interval="0")
        return f"{answer['opened']} of 3 connect"


@scenario("60 connects in four event loops, refresh interval 0: how many fail")
def _(driver: Driver) -> str:
    with three() as cluster:
        params = {**driver.params, "yb_servers_refresh_interval": "0"}
        arguments = {"conninfo": cluster.conninfo(), "params": params, "loops": 4, "rounds": 15}
        return str(driver.ask("loops", **arguments))


@scenario("a forked child's own counts, its parent having 6")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 6)
        found = driver.ask("fork")
        return slashes([found.get(node.host, 0) for node in cluster.nodes])


@scenario("sessions of the driver's own that sit in a transaction")
def _(driver: Driver) -> str:
    with three() as cluster:
        driver.open(cluster, 3)
        driver.ask("close")
        real(cluster)
        sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        return str(sum(cluster.execute(node, sql)[0][0] for node in cluster.nodes))
