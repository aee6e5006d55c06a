"""Whose fault a failed connect is: the node's, a full node's, or the caller's.

Only a node's fault takes the node out of service; a busy one is passed over by this request; the
caller's own is raised at once, because no other node would answer differently.
"""

from __future__ import annotations

import enum
import re

import psycopg


class Fault(enum.Enum):
    NODE = "node"
    BUSY = "busy"
    CALLER = "caller"


# A server that refuses a connection says so in a message with a severity. libpq gives no SQLSTATE
# for it, so the text is all there is; severities are translated, but these are all of them in
# PostgreSQL's catalogues that differ from "FATAL".
_ANSWERED = re.compile(
    r"(?:FATAL|ВАЖНО|致命错误|致命錯誤|치명적오류|ΚΡΙΣΙΜΟ|ПОМИЛКА)\s*:", re.IGNORECASE
)
_BUSY = re.compile(r"too many (?:clients|connections)|remaining connection slots", re.IGNORECASE)
_GOING = re.compile(
    r"the database system is|terminating connection|not (?:yet )?accepting connections",
    re.IGNORECASE,
)


def classify(error: BaseException) -> Fault:
    """Whose fault `error`, raised by an attempt to connect, is."""
    if not isinstance(error, psycopg.OperationalError):
        return Fault.CALLER
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return Fault.NODE
    text = str(error)
    if not _ANSWERED.search(text):
        # Refused, unreachable, name unknown, TLS, or closed in the middle. What the caller left
        # out is found out on this side, too.
        return Fault.CALLER if "no password supplied" in text else Fault.NODE
    if _BUSY.search(text):
        return Fault.BUSY
    if _GOING.search(text):
        return Fault.NODE
    return Fault.CALLER
