"""Real servers for tests: `LocalCluster` starts PostgreSQL with a `yb_servers()` function.

Decides nothing but the names. Must never be imported by the driver itself.
"""

from ybsmart.testing.cluster import LocalCluster
from ybsmart.testing.node import LocalNode

__all__ = ["LocalCluster", "LocalNode"]
