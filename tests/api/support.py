"""What several test files here need."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ybsmart
from ybsmart.testing import LocalCluster


def by_node(cluster: LocalCluster) -> list[int]:
    """This process's own counts, in the order of the nodes."""
    counts = ybsmart.connection_counts()
    return [counts.get(f"{node.host}:{node.port}", 0) for node in cluster.nodes]


def by_server(cluster: LocalCluster, application_name: str | None = None) -> list[int]:
    """What the servers say."""
    return [cluster.sessions(node, application_name=application_name) for node in cluster.nodes]


def in_threads(count: int, action: Callable[[], object]) -> list[BaseException]:
    """Run an action in that many threads which start together; return what they raised."""
    start = threading.Barrier(count)
    errors: list[BaseException] = []

    def run() -> None:
        start.wait()
        try:
            action()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
