"""The one function of libpq that psycopg does not expose and that ybsmart needs.

With more verbose messages, the reason why a server refuses a connection has its SQLSTATE in front:
nothing else tells a wrong password from a full server in a language one does not know. Never
loads a library: it asks the libpq that psycopg has loaded, and does nothing where it cannot.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable

from psycopg import pq

_DEFAULT, _VERBOSE = 1, 2  # PGVerbosity


def _find() -> Callable[[int | None, int], int] | None:
    """`PQsetErrorVerbosity`, from the library that psycopg's own connections come from."""
    try:
        if pq.__impl__ == "python":
            library = importlib.import_module("psycopg.pq._pq_ctypes").pq
            # Another handle on the same library: the types declared below are not psycopg's.
            library = ctypes.PyDLL(library._name)
        else:
            # psycopg_binary or psycopg_c. The loader finds a symbol in what the module is linked
            # to, hence exactly in its libpq. Windows' does not: no SQLSTATE there.
            library = ctypes.PyDLL(importlib.import_module(f"psycopg_{pq.__impl__}.pq").__file__)
        function = library.PQsetErrorVerbosity
        if library.PQlibVersion() != pq.version():
            return None
    except (ImportError, AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


_set_verbosity = _find()
tells_sqlstate = _set_verbosity is not None


def say_sqlstate(pgconn: pq.abc.PGconn) -> None:
    """Put the SQLSTATE into this connection's error messages, for `faults.read`."""
    if _set_verbosity is not None:
        _set_verbosity(pgconn.pgconn_ptr, _VERBOSE)  # type: ignore[attr-defined]


def speak_normally(pgconn: pq.abc.PGconn) -> None:
    """Back to messages as users know them."""
    if _set_verbosity is not None:
        _set_verbosity(pgconn.pgconn_ptr, _DEFAULT)  # type: ignore[attr-defined]
