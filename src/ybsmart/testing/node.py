"""A node of the cluster, as tests see it. Decides nothing: the cluster does what is done to it."""

from __future__ import annotations

import dataclasses
import uuid

from .server import Server, State


@dataclasses.dataclass(eq=False)
class LocalNode:
    """One server of a `LocalCluster`. Only for reading: the cluster's methods change it.

    Thread-safe.
    """

    host: str
    """Where the server listens."""
    port: int
    """Where the server listens."""
    placement: str
    """`cloud.region.zone`, as `yb_servers()` says."""
    node_type: str
    """`"primary"` or `"read_replica"`, as `yb_servers()` says."""
    public_ip: str
    """As `yb_servers()` says; may be empty."""
    uuid: str
    """As `yb_servers()` says."""
    advertised_host: str
    """The address or name that `yb_servers()` says, `host` by default."""
    advertised_port: int
    """The port that `yb_servers()` says, `port` by default."""
    listed: bool = True
    """Whether `yb_servers()` lists the node."""
    _server: Server = dataclasses.field(repr=False, kw_only=True)

    @property
    def cloud(self) -> str:
        """The first part of `placement`."""
        return self.placement.split(".")[0]

    @property
    def region(self) -> str:
        """The second part of `placement`."""
        return self.placement.split(".")[1]

    @property
    def zone(self) -> str:
        """The third part of `placement`."""
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
