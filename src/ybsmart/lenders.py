"""All pools of the process: for reports about nodes, and so that a forked child begins anew.

Keeps no pool alive.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from . import forks


class Lender(Protocol):
    """A pool, as far as this module is concerned."""

    def _lent_on(self, key: str) -> int:
        """How many connections to the node `key` it has lent."""
        ...

    def _begin_anew(self) -> tuple[list[Any], object]:
        """In a forked child: start empty; return the parent's connections, as libpq has them, and
        what refers to them."""
        ...


# By their identity. Not a WeakSet: that cannot be read while another thread makes a pool.
_lenders: weakref.WeakValueDictionary[int, Lender] = weakref.WeakValueDictionary()
# What refers to connections of the parent process.
_inherited: list[object] = []


def register(lender: Lender) -> None:
    _lenders[id(lender)] = lender


def lenders() -> list[Lender]:
    """Those that there are now. Safe for any number of threads."""
    return [lender for ref in _lenders.valuerefs() if (lender := ref()) is not None]


def lent_on(key: str) -> int:
    """How many connections to the node `key` all pools have lent."""
    return sum(lender._lent_on(key) for lender in lenders())


def _begin_anew() -> None:
    for lender in lenders():
        pgconns, references = lender._begin_anew()
        for pgconn in pgconns:
            forks.cut_off(pgconn)
        _inherited.append(references)


forks.in_child(_begin_anew)
