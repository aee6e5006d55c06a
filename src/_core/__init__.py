"""The core: hosts and their counts; connections, waiters and the state of a pool.

It decides and never does I/O, waits, logs or calls user code. What the shell's threads sleep on,
`parking`, is here only because it has to be compiled; nothing else here knows it.

Each module is written once, in Cython's pure-Python mode: `ybsmart._core.<name>` is the source
itself, `ybsmart._core._c.<name>` the same compiled; the parts that hosts and the pool are made of
are compiled with them. This file chooses one of the two, once, when it is imported.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import hosts, parking, pool

MODULES = ("hosts", "parking", "pool")


def _choose() -> str:
    wanted = os.environ.get("YBSMART_IMPL", "")
    if wanted not in ("", "c", "python"):
        raise ImportError(
            f"YBSMART_IMPL={wanted!r} is not allowed: use 'c', 'python' or leave it unset"
        )
    if wanted == "python":
        return "python"
    missing = f"{__name__}._c.{MODULES[0]}"
    try:
        import_module(missing)
    except ModuleNotFoundError as exc:
        # Only an absent extension is a choice; one that is there but fails to load is an error.
        if exc.name != missing:
            raise
        if wanted == "c":
            raise ImportError(
                "YBSMART_IMPL=c, but this installation has no compiled core: "
                "install a wheel for this Python, or build with YBSMART_BUILD=c"
            ) from exc
        return "python"
    return "c"


IMPL = _choose()

if not TYPE_CHECKING:
    _package = f"{__name__}._c" if IMPL == "c" else __name__
    hosts, parking, pool = (import_module(f"{_package}.{name}") for name in MODULES)

__all__ = ["IMPL", "hosts", "parking", "pool"]
