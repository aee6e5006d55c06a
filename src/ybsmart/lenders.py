"""All pools of the process: for reports about nodes, and so that a forked child begins anew.

Keeps no pool alive. Never touches a connection: those that a child inherits are its parent's, and
closing one would end the parent's session.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Lender(Protocol):
    """A pool, as far as this module is concerned."""

    def _lent_on(self, key: str) -> int:
        """How many connections to the node `key` it has lent."""
        ...

    def _begin_anew(self) -> object:
        """In a forked child: start empty; return what refers to the parent's connections."""
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


def _after_fork() -> None:
    for lender in lenders():
        _inherited.append(lender._begin_anew())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
