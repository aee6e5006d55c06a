"""Connection properties: found in a conninfo, keyword arguments and the environment, and checked.

Takes out of a connection string exactly the properties that are ybsmart's, in any of their
spellings, and leaves every other character as it was: libpq reads the rest. Never connects, and
no message repeats a value that is not a property's own.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from .addresses import AddressMap, parse_address_map
from .errors import InvalidProperty
from .named_tuples import LeanNamedTuple
from .placement import MODES, Policy, parse_topology_keys

logger = logging.getLogger("ybsmart")

# By spelling, without case, "-" and "_": load_balance, load-balance, loadBalance, LOAD_BALANCE.
_PROPERTIES = {
    "loadbalance": "load_balance",
    "loadbalancehosts": "load_balance",
    "topologykeys": "topology_keys",
    "topologykey": "topology_keys",
    "ybserversrefreshinterval": "yb_servers_refresh_interval",
    "fallbacktotopologykeysonly": "fallback_to_topology_keys_only",
    "failedhostreconnectdelaysecs": "failed_host_reconnect_delay_secs",
    "failedhostttlseconds": "failed_host_reconnect_delay_secs",
    "addressmap": "address_map",
}
ENVIRONMENT = {
    "PGLOADBALANCE": "load_balance",
    "PGTOPOLOGYKEYS": "topology_keys",
    "PGYBSERVERSREFRESHINTERVAL": "yb_servers_refresh_interval",
}
# libpq's own parameter of nearly the same name (PostgreSQL 16) has these values.
_LIBPQ_LOAD_BALANCE_HOSTS = ("disable", "random")
_URI = r"postgres(?:ql)?://"


class Properties(LeanNamedTuple):
    """The properties of one request, checked. Times are in seconds."""

    load_balance: bool = False
    policy: Policy = Policy()
    refresh_interval: float = 300.0
    failed_host_delay: float = 5.0
    address_map: AddressMap = AddressMap()


def property_name(key: str, value: Any) -> str | None:
    """The property that a key of any spelling stands for; None if it is not ybsmart's."""
    bare = key.replace("-", "").replace("_", "").lower()
    if bare == "loadbalancehosts" and str(value).lower() in _LIBPQ_LOAD_BALANCE_HOSTS:
        return None
    return _PROPERTIES.get(bare)


def from_env(name: str) -> str:
    """The conninfo in the environment variable `name`; `InvalidProperty` if it is not set."""
    value = os.environ.get(name, "")
    if not value:
        raise InvalidProperty(f"the environment variable {name} is not set or empty")
    return value


def split(conninfo: str, kwargs: Mapping[str, Any]) -> tuple[Properties, str, dict[str, Any]]:
    """Separate ybsmart's properties from what is libpq's.

    Keyword arguments win over the conninfo, the conninfo over the environment. A conninfo without
    any property comes back as it is. Raises `InvalidProperty`.
    """
    conninfo = _default_conninfo(conninfo, kwargs)
    given = {name: os.environ[var] for var, name in ENVIRONMENT.items() if os.environ.get(var)}
    in_conninfo, rest = _take_out(conninfo)
    given.update(in_conninfo)
    libpq: dict[str, Any] = {}
    explicit: dict[str, Any] = {}
    for key, value in kwargs.items():
        name = property_name(key, value)
        if name is None:
            libpq[key] = value
        elif value is not None:
            # As text, because True would hit what is remembered of 1.
            explicit[name] = str(value).lower() if isinstance(value, bool) else value
    if not given and not explicit:
        return _NOTHING_GIVEN, rest, libpq
    given.update(explicit)
    try:
        return _check(tuple(sorted(given.items()))), rest, libpq
    except TypeError:  # a value that cannot be hashed is no valid value either
        return _check.__wrapped__(tuple(given.items())), rest, libpq


_NOTHING_GIVEN = Properties()


def _default_conninfo(conninfo: str, kwargs: Mapping[str, Any]) -> str:
    """`DATABASE_URL`, where neither the call nor libpq's environment says where to connect."""
    if conninfo or "DATABASE_URL" not in os.environ:
        return conninfo
    if any(kwargs.get(key) for key in ("host", "hostaddr", "service")):
        return conninfo
    if any(os.environ.get(var) for var in ("PGHOST", "PGHOSTADDR", "PGSERVICE")):
        return conninfo
    return os.environ["DATABASE_URL"]


@lru_cache(256)
def _take_out(conninfo: str) -> tuple[dict[str, str], str]:
    """The properties in a conninfo, and the conninfo without them."""
    uri = re.match(_URI, conninfo)
    return _take_out_of_uri(conninfo, uri.end()) if uri else _take_out_of_pairs(conninfo)


def _take_out_of_uri(uri: str, start: int) -> tuple[dict[str, str], str]:
    # As libpq reads it: a "?" before the "@" belongs to the user's name or password.
    at = re.compile("[@/]").search(uri, start)
    if at and at.group() == "@":
        start = at.end()
    question = uri.find("?", start)
    if question < 0:
        return {}, uri
    found: dict[str, str] = {}
    others = []
    for item in uri[question + 1 :].split("&"):
        key, _, value = item.partition("=")
        key, value = unquote(key), unquote(value)
        name = property_name(key, value)
        if name is None:
            others.append(item)
        else:
            found[name] = value
    if not found:
        return {}, uri
    # YugabyteDB's documentation prints a URL with "&&"; libpq would stumble over the gap.
    query = "&".join(item for item in others if item)
    return found, uri[:question] + ("?" + query if query else "")


_PAIR = r"""(?xs)
    \s* (?P<key>[^\s=]+) \s* = \s*
        (?: ' (?P<quoted>(?:[^'\\]|\\.)*) ' | (?P<bare>(?:[^\s\\']|\\.)(?:[^\s\\]|\\.)*)? )
"""


def _take_out_of_pairs(text: str) -> tuple[dict[str, str], str]:
    found: dict[str, str] = {}
    others = []
    for pair in _pairs(text):
        raw = pair["quoted"] if pair["quoted"] is not None else pair["bare"] or ""
        value = re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)
        name = property_name(pair["key"], value)
        if name is None:
            others.append(pair.group())
        else:
            found[name] = value
    return (found, "".join(others).strip()) if found else ({}, text)


def _pairs(text: str) -> Iterator[re.Match[str]]:
    position = 0
    pattern = re.compile(_PAIR)
    while text[position:].strip():
        pair = pattern.match(text, position)
        if pair is None or "/" in pair["key"]:
            # Not a keyword/value string, but a URI of another kind, say. What libpq says about it
            # may quote a part of it, and the part may be a password with a blank.
            raise InvalidProperty(
                "conninfo is neither a postgresql:// URI nor a keyword/value string "
                f"(from character {position + 1} on; quote values that contain blanks)"
            )
        yield pair
        position = pair.end()


@lru_cache(256)
def _check(given: tuple[tuple[str, Any], ...]) -> Properties:
    values = dict(given)
    mode = _mode(values.get("load_balance", "false"))
    if mode == "false":
        # The others say nothing then, and what says nothing is not checked either.
        return Properties(policy=Policy(mode=mode))
    policy = Policy(
        mode=mode,
        topology_keys=_topology_keys(values.get("topology_keys")),
        keys_only=_boolean(
            "fallback_to_topology_keys_only", values.get("fallback_to_topology_keys_only", False)
        ),
    )
    return Properties(
        load_balance=mode != "false",
        policy=policy,
        refresh_interval=_seconds(values, "yb_servers_refresh_interval", 300.0, 600),
        failed_host_delay=_seconds(values, "failed_host_reconnect_delay_secs", 5.0, 60),
        address_map=_address_map(values.get("address_map")),
    )


def _mode(value: Any) -> str:
    mode = str(value).strip().lower()
    if mode not in MODES:
        raise InvalidProperty(f"load_balance: {value!r} is not allowed; use {_listed(MODES)}")
    return "any" if mode == "true" else mode


def _topology_keys(value: Any) -> Any:
    if value is None:
        return ()
    if not isinstance(value, str):
        raise InvalidProperty(
            f"topology_keys: expected a string such as 'cloud.region.zone:1', not {value!r}"
        )
    try:
        return parse_topology_keys(value)
    except ValueError as exc:
        raise InvalidProperty(f"topology_keys: {exc}") from None


def _address_map(value: Any) -> AddressMap:
    if value is None:
        return AddressMap()
    try:
        if not isinstance(value, str):
            raise ValueError(f"expected a string, not {value!r}")
        return parse_address_map(value)
    except ValueError as exc:
        raise InvalidProperty(f"address_map: {exc}; use 'host:port=host:port, ...'") from None


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _boolean(name: str, value: Any) -> bool:
    try:
        return _BOOLEANS[str(value).strip().lower()]
    except KeyError:
        raise InvalidProperty(f"{name}: {value!r} is not allowed; use 'true', 'false'") from None


def _seconds(values: Mapping[str, Any], name: str, default: float, most: int) -> float:
    if name not in values:
        return default
    value = values[name]
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise InvalidProperty(
            f"{name}: expected a number of seconds from 0 to {most}, not {value!r}"
        ) from None
    if not 0 <= seconds <= most:
        logger.warning("%s: %r is outside 0 to %d seconds; using %g", name, value, most, default)
        return default
    return seconds


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(repr(value) for value in values)
