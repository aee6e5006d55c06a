"""A node of the cluster, as tests see it. Decides nothing: the cluster does what is done to it."""

from __future__ import annotations

import dataclasses
import uuid

from .server import Server, State


@dataclasses.dataclass(eq=False)
class LocalNode:
    """One server of a `LocalCluster`. Read it; changes go through the cluster's methods.

    `host` and `port` are where the server listens. `advertised_host`, `advertised_port`,
    `placement`, `node_type` and `public_ip` are what `yb_servers()` says, if `listed`. Thread-safe.
    """

    host: str
    port: int
    placement: str
    node_type: str
    public_ip: str
    uuid: str
    advertised_host: str
    advertised_port: int
    listed: bool = True
    _server: Server = dataclasses.field(repr=False, kw_only=True)

    @property
    def cloud(self) -> str:
        return self.placement.split(".")[0]

    @property
    def region(self) -> str:
        return self.placement.split(".")[1]

    @property
    def zone(self) -> str:
        return self.placement.split(".")[2]

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None while stopped."""
        return self._server.pid

    @property
    def state(self) -> State:
        """ "running", "paused" or "stopped" (also when its process ended by itself)."""
        return self._server.state

    def __repr__(self) -> str:
        return f"<LocalNode {self.host}:{self.port} {self.placement} {self.node_type} {self.state}>"


def new_node(server: Server, placement: str) -> LocalNode:
    return LocalNode(
        server.host,
        server.port,
        placement,
        "primary",
        "",
        uuid.uuid4().hex,
        server.host,
        server.port,
        _server=server,
    )
