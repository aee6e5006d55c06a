"""One request for a connection: what it asks of us, and what it tells libpq.

Reads conninfo, keyword arguments and environment once per distinct set of them, because reading
them costs as much as a tenth of connecting. Holds passwords, hence has no `repr` of its values.
Never connects and never looks up a name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo, timeout_from_conninfo

from . import malformed
from .addresses import is_address
from .dialing import Target
from .named_tuples import LeanNamedTuple
from .params import ENVIRONMENT, Properties, split

# Everything in the environment that decides what a request means, apart from what libpq alone
# reads and we never look at.
_VARIABLES = (
    *ENVIRONMENT,
    *("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE"),
    *("PGCONNECT_TIMEOUT", "PGSSLMODE"),
)
_REMEMBERED = 256  # requests, and conninfos of each


class Contact(LeanNamedTuple):
    """Where to find a cluster: what a conninfo and libpq's environment say of it."""

    host: str
    hostaddr: str
    port: str
    service: str

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Contact:
        def value(name: str) -> str:
            return str(params.get(name) or os.environ.get(f"PG{name.upper()}") or "")

        return cls(value("host"), value("hostaddr"), value("port"), value("service"))

    def __repr__(self) -> str:
        return "<Contact>"  # in a URI that is cut at the wrong place, it has part of the password

    def targets(self) -> list[Target]:
        """The hosts one by one; libpq's defaults where it names none.

        Raises `psycopg.ProgrammingError` if the lists have different lengths, or make no sense.
        """
        names, addresses = self.host.split(","), self.hostaddr.split(",")
        ports = self.port.split(",")
        count = max(len(names), len(addresses))
        if len(ports) not in (1, count) or (self.hostaddr and self.host and len(names) != count):
            raise psycopg.ProgrammingError(
                f"{len(names)} in host, {len(addresses)} in hostaddr, {len(ports)} in port: give "
                "as many ports as hosts, or one for all"
            )
        if not all(map(malformed.is_host, names)) or not all(map(malformed.is_port, ports)):
            raise psycopg.ProgrammingError(malformed.NONSENSE)
        if self.host == self.hostaddr == "":
            return [Target("", "", self.port)]
        return [
            Target(
                names[i] if self.host else "",
                addresses[i] if self.hostaddr else "",
                ports[i] if len(ports) > 1 else ports[0],
            )
            for i in range(count)
        ]

    def names(self) -> list[str]:
        """The host names, without addresses and directories."""
        hosts = self.host.split(",")
        return [h for h in hosts if h and not h.startswith(("/", "@")) and not is_address(h)]


class Request:
    """A set of parameters, read and checked. Shared by all who ask for the same."""

    def __init__(self, conninfo: str, kwargs: Mapping[str, Any]) -> None:
        """Raises `InvalidProperty`, and psycopg's `ProgrammingError` for a malformed conninfo."""
        self.properties: Properties
        self.properties, self.conninfo, self.libpq = split(conninfo, kwargs)
        self.balanced = self.properties.load_balance
        if not self.balanced:
            return
        self.params: dict[str, Any] = malformed.read(self.conninfo, self.libpq)
        self.contact = Contact.of(self.params)
        self.targets = self.contact.targets()
        self.names = self.contact.names()
        self.timeout = float(timeout_from_conninfo(self.params))
        sslmode = self.params.get("sslmode") or os.environ.get("PGSSLMODE")
        self.verifies_names = sslmode == "verify-full"
        # libpq's own balancing has nothing to choose from, and libpq below 16 refuses it.
        self._common = {
            key: value
            for key, value in self.params.items()
            if key not in ("host", "hostaddr", "port", "load_balance_hosts")
        }
        self._conninfos: dict[Target, bytes] = {}
        self.preferred_name = ""  # what worked where a node's own name did not

    def conninfo_for(self, target: Target) -> bytes:
        """All parameters of a connection to one target."""
        text = self._conninfos.get(target)
        if text is None:
            place = {key: value for key, value in target._asdict().items() if value}
            text = make_conninfo("", **self._common, **place).encode()
            if len(self._conninfos) >= _REMEMBERED:
                self._conninfos.clear()
            self._conninfos[target] = text
        return text

    def may_need_another_name(self, pgconn: pq.abc.PGconn) -> bool:
        """Whether a connect may have failed for the name: of a certificate, or in a password file.

        A node goes by its own name, from the cluster's list, and by those in the connection
        string. Certificates are made for the one and for the other, and both are trusted.
        """
        return self.verifies_names or bool(pgconn.needs_password)

    def __repr__(self) -> str:
        return "<Request>"  # nothing of what it holds is for a log


_requests: dict[Any, Request] = {}


def request_of(conninfo: str, kwargs: Mapping[str, Any]) -> Request:
    """The request for these arguments in today's environment. Raises as `Request` does."""
    get = os.environ.get
    try:
        # True == 1, but not so as a value of a property.
        key = (
            conninfo,
            tuple([(name, value, type(value)) for name, value in kwargs.items()]),
            tuple([get(variable) for variable in _VARIABLES]),
        )
        request = _requests.get(key)
    except TypeError:  # unhashable, hence no valid value either
        return Request(conninfo, kwargs)
    if request is None:
        request = Request(conninfo, kwargs)
        if len(_requests) >= _REMEMBERED:
            _requests.clear()
        _requests[key] = request
    return request
