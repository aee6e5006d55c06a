"""Where the examples find a database: at DATABASE_URL, or on servers started for the occasion."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ybsmart.testing import LocalCluster

PORT = int(os.environ.get("PORT", "8000"))  # of the web servers


@contextmanager
def database(nodes: int = 3) -> Iterator[None]:
    """See to it that DATABASE_URL leads to a database within the block.

    nodes: of a local cluster. Nothing is replicated between them: those who write want one.
    """
    if "DATABASE_URL" in os.environ:
        yield
        return
    with LocalCluster(nodes) as cluster:
        os.environ["DATABASE_URL"] = cluster.conninfo(load_balance=True)
        yield
