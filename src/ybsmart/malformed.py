"""What is wrong with a conninfo, said without repeating what may be a password.

libpq quotes the part of a conninfo that it does not understand, and that is often a password which
should have been quoted or percent-encoded. Only names of options are repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

# Patterns are compiled when they are first used, see `faults`.
_QUOTED = r"(?s)\"[^\"]*(?:\"|$)|'[^']*(?:'|$)"
# Whatever else is quoted there is part of what was given.
_OPTION = r"(?:connection option|query parameter):? (\"[a-z_]{1,40}\")"
# Said of a host or port, which are parts of a password when a URI is cut at the wrong place.
_CUT = (
    r"invalid port number: \"[^\"]*\"|invalid integer value \"[^\"]*\" for connection option"
    r"|resolve host '[^']*[^'\w.:\[\]-][^']*'|translate host name \"[^\"]*[^\"\w.:\[\]-][^\"]*\""
)
_ENCODE = "in a URI, percent-encode : / ? # [ ] @ % & and blanks in a password"
NONSENSE = f"the host or port makes no sense ({_ENCODE})"


def is_host(text: str) -> bool:
    """Whether it may be a name, an address or a directory; empty for libpq's default."""
    return text.startswith(("/", "@")) or not re.search(r"[^\w.:%-]", text)


def is_port(text: str) -> bool:
    """Whether it is a port; empty for libpq's default."""
    text = text.strip()
    return not text or (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536)


def read(conninfo: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As psycopg's `conninfo_to_dict`, but for what its `ProgrammingError` says."""
    try:
        return conninfo_to_dict(conninfo, **options)
    except psycopg.ProgrammingError as exc:
        error = without_values(exc)
    raise error


def without_values(error: psycopg.Error) -> psycopg.Error:
    """An error of connecting in words that repeat nothing; itself if it is not about the conninfo.

    To be raised outside of the `except` block, or the original would be its context.
    """
    text = str(error)
    if isinstance(error, psycopg.ProgrammingError):
        names = set(re.findall(_OPTION, text))
        said = re.sub(_QUOTED, lambda m: m.group() if m.group() in names else '"..."', text)
        return psycopg.ProgrammingError(said.strip() + (f" ({_ENCODE})" if said != text else ""))
    if not re.search(_CUT, text):
        return error
    return psycopg.OperationalError(NONSENSE)
