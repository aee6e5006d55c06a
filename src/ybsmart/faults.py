"""Whose fault a failed connect is: the node's, a full node's, or the caller's.

Only a node's fault takes the node out of service; a busy one is passed over by this request; the
caller's own is raised at once, because no other node would answer differently. Decides by SQLSTATE
where there is one, by how far the attempt got where not, and by words only as a last help.

Rules: PostgreSQL's appendix "Error Codes"; only an error that says something about the node is the
node's fault.
"""

from __future__ import annotations

import enum
import re

import psycopg
from psycopg import errors


class Fault(enum.Enum):
    """Whose fault a failed connect is."""

    NODE = "node"
    """Out of service: refused, silent, unresolvable, starting up or shutting down."""
    DOUBTFUL = "doubtful"
    """It broke off without a reason. Another look tells a sick node from odd parameters."""
    BUSY = "busy"
    """In service, but not for this request: full, or not in the state that is asked for."""
    CALLER = "caller"
    """Any node would say the same: wrong password, unknown database, bad option."""


# Patterns are compiled when they are first used (`re` remembers them): not by every import.

# As libpq prints it when it is told to say the SQLSTATE: "FATAL:  28P01: password ...". The
# blanks are in the format and not in the catalogues, hence the same in every language.
_SQLSTATE = r"(?m)^(.*?[^\s:]\s?:  )([0-9A-Z]{5}): "
# The line that comes along: "LOCATION:  auth_failed, auth.c:317".
_LOCATION = r"(?m)^[^\s:][^:\n]{0,40}:\s+(?:\w+, )?[\w./\\-]+:\d+\n?"
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
_LONGEST = 2000

# Where libpq cannot be made to say the SQLSTATE (see libpq.py). Severities are translated, but
# these are all of PostgreSQL's catalogues that differ from "FATAL".
_ANSWERED = r"(?i)(?:FATAL|ВАЖНО|致命错误|致命錯誤|치명적오류|ΚΡΙΣΙΜΟ|ПОМИЛКА)\s*:"
_FULL = r"(?i)too many (?:clients|connections)|remaining connection slots"
_GOING = r"(?i)the database system is|terminating connection|not (?:yet )?accepting connections"
# libpq's own messages: English, unless the application has called setlocale(). They say that the
# connection was good and the session not what target_session_attrs wants, ...
_UNWANTED = r"session is (?:not )?read-only|in hot standby mode|in recovery"
# ... or that something is wrong on this side.
_OWN_SIDE = (
    r"invalid \S+ value|no password supplied|root certificate|certificate file|private key file"
    r"|could not get home directory|service file|definition of service|not compiled|not supported"
)


def printable(text: str) -> str:
    """Text from a server for messages: no control sequences, and not without end."""
    text = re.sub(_CONTROL, lambda match: repr(match.group())[1:-1], text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def read(message: bytes) -> tuple[str | None, str]:
    """The SQLSTATE, if there is one, and the text as libpq would usually say it."""
    try:
        text = message.decode()
    except UnicodeDecodeError:  # sent before an encoding was agreed upon
        text = message.decode("latin-1")
    found = re.findall(_SQLSTATE, text)
    if not found:
        return None, printable(text.strip())
    text = re.sub(_LOCATION, "", re.sub(_SQLSTATE, r"\1", text))
    # libpq may have tried twice, with and without TLS. The last word counts.
    return found[-1][1], printable(text.strip())


def failure(message: bytes) -> psycopg.OperationalError:
    """The error for what libpq says of a failed connect, with its `sqlstate` where known."""
    sqlstate, text = read(message)
    kind = psycopg.OperationalError
    if sqlstate is not None:
        try:
            specific = errors.lookup(sqlstate)
        except KeyError:
            pass
        else:
            # psycopg raises an OperationalError whenever a connect fails. Keep that promise.
            if issubclass(specific, psycopg.OperationalError):
                kind = specific
    error = kind(f"connection failed: {text}")
    error.sqlstate = sqlstate
    return error


def classify(error: BaseException, *, reached: bool = False) -> Fault:
    """Whose fault `error`, raised by an attempt to connect, is.

    `reached`: the server had taken the connection before it failed.
    """
    if not isinstance(error, psycopg.OperationalError):
        return Fault.CALLER
    if isinstance(error, errors.ConnectionTimeout):
        return Fault.NODE
    if error.sqlstate:
        return _by_sqlstate(error.sqlstate)
    text = str(error)
    if re.search(_ANSWERED, text):
        if re.search(_FULL, text):
            return Fault.BUSY
        return Fault.NODE if re.search(_GOING, text) else Fault.CALLER
    if re.search(_UNWANTED, text):
        return Fault.BUSY
    if re.search(_OWN_SIDE, text):
        return Fault.CALLER
    return Fault.DOUBTFUL if reached else Fault.NODE


def _by_sqlstate(sqlstate: str) -> Fault:
    if sqlstate in ("57P01", "57P02", "57P03"):  # ending, crashed, starting
        return Fault.NODE
    if sqlstate[:2] in ("53", "40"):  # out of connections, memory, disk; in conflict (YugabyteDB)
        return Fault.BUSY
    if sqlstate == "57014" or sqlstate[:2] in ("08", "58", "XX"):  # gave up, or broke
        return Fault.DOUBTFUL
    return Fault.CALLER
