"""Real servers for tests: `LocalCluster` starts PostgreSQL with a `yb_servers()` function.

Decides nothing but the names. Must never be imported by the driver itself.
"""

import os

if os.name == "nt":  # not sys.platform, or type checkers there would not know the names
    raise ImportError("LocalCluster needs Linux or macOS")

from .cluster import LocalCluster
from .node import LocalNode

__all__ = ["LocalCluster", "LocalNode"]
