"""Wrong arguments are named, and start nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.support import (
    discover,
)
from tests.servers import NET
from ybsmart.testing import LocalCluster
from ybsmart.testing import cluster as cluster_module


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("placements", 0, "from 1 to 100"),
        ("placements", True, "cloud.region.zone"),
        ("placements", "aws.us-west.a", "cloud.region.zone"),
        ("placements", [], "1 to 100"),
        ("placements", ["aws.us-west"], "cloud.region.zone"),
        ("placements", ["aws..a"], "cloud.region.zone"),
        ("placements", [None], "cloud.region.zone"),
        ("port", 0, "from 1 to 65535"),
        ("port", "5433", "from 1 to 65535"),
        ("columns", 7, "from 8 to 10"),
        ("columns", 11, "from 8 to 10"),
        ("universe_uuid", 3, "string"),
        ("first_address", "localhost", "127.0.0.0/8"),
        ("first_address", "0.0.0.0", "127.0.0.0/8"),
        ("first_address", "127.255.255.253", "room for 3"),
        ("first_address", 2130706433, "127.0.0.0/8"),
        ("max_connections", 0, "from 1 to"),
    ],
)
def test_wrong_arguments_start_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, allowed: str
) -> None:
    monkeypatch.setattr(cluster_module, "home", lambda: pytest.fail("something was started"))
    with pytest.raises(ValueError, match=rf"^{name} .*{re.escape(allowed)}"):
        LocalCluster(**{name: value})


def test_wrong_arguments_of_methods(cluster: LocalCluster) -> None:
    with LocalCluster(1, first_address=f"{NET}.1") as other:
        for node in (other.nodes[0], 3, True, "127.0.0.1", None):
            with pytest.raises(ValueError, match=r"^node "):
                cluster.kill(node)  # type: ignore[arg-type]
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("mode", lambda: cluster.stop(0, "quick")),
        ("placement", lambda: cluster.add("nowhere")),
        ("node_type", lambda: cluster.add(node_type="readreplica")),
        ("public_ip", lambda: cluster.update(0, public_ip=1)),  # type: ignore[arg-type]
        ("placement", lambda: cluster.update(0, placement="a.b")),
        (
            "advertised_port",
            lambda: cluster.update(0, node_type="read_replica", advertised_port=-1),
        ),
        ("delay", lambda: cluster.discovery(delay=-1)),
        ("delay", lambda: cluster.discovery(delay=float("nan"))),
        ("columns", lambda: cluster.discovery(columns=3)),
        ("x", lambda: cluster.conninfo(x=None)),  # type: ignore[arg-type]
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=rf"^{name} "):
            call()
    assert [node.state for node in cluster.nodes] == ["running"] * 3
    assert cluster.nodes[0].node_type == "primary"
    assert len(discover(cluster.conninfo())) == 3
