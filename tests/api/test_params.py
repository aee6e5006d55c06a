"""Properties: every spelling, from everywhere, checked before any traffic."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest

import ybsmart
from ybsmart.params import Properties, split
from ybsmart.placement import MODES
from ybsmart.request import Request, request_of

# Nothing listens there: an error that comes from it shows that there was traffic.
NOWHERE = "127.0.0.1:1"


def properties(conninfo: str = "", **kwargs: Any) -> Properties:
    return split(conninfo, kwargs)[0]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "PGHOST", "PGSERVICE", "PGLOADBALANCE", "PGTOPOLOGYKEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("mode", [*MODES, "ANY", "Prefer-RR", "True"])
def test_each_mode_is_accepted_in_any_case(mode: str) -> None:
    found = properties(load_balance=mode)

    assert found.load_balance is (mode.lower() != "false")
    assert found.policy.mode == ("any" if mode.lower() == "true" else mode.lower())


@pytest.mark.parametrize(
    "spelling",
    ["load_balance", "load-balance", "loadBalance", "LOAD_BALANCE", "load_balance_hosts"],
)
def test_every_spelling_means_the_same_everywhere(spelling: str) -> None:
    for found in (
        properties(f"postgresql://h/db?{spelling}=only-rr"),
        properties(f"host=h {spelling}=only-rr dbname=db"),
        properties(f"host=h {spelling} = 'only-rr'"),
        properties(**{spelling: "only-rr"}),
    ):
        assert found.policy.mode == "only-rr"


def test_python_booleans_are_accepted() -> None:
    assert properties(load_balance=True).policy.mode == "any"
    assert properties(load_balance=False).load_balance is False


def test_several_properties_in_a_uri_in_any_order() -> None:
    found = properties(
        "postgresql://h/db?topologyKeys=a.b.c%3A2&connect_timeout=3&loadBalance=true"
        "&ybServersRefreshInterval=7&fallbackToTopologyKeysOnly=true&failed_host_ttl_seconds=9"
    )

    assert [k.priority for k in found.policy.topology_keys] == [2]
    assert found.refresh_interval == 7
    assert found.policy.keys_only
    assert found.failed_host_delay == 9


def test_keyword_arguments_win_over_the_conninfo_and_that_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGLOADBALANCE", "only-rr")

    assert properties("host=h").policy.mode == "only-rr"
    assert properties("load_balance=any").policy.mode == "any"
    assert properties("load_balance=any", load_balance="only-primary").policy.mode == "only-primary"


def test_the_url_with_two_ampersands_of_the_documentation_is_understood() -> None:
    url = "postgresql://u:p@h:5433/db?loadBalance=true&&topologyKey=aws.us-west.us-west-2a"

    found, rest, _ = split(url, {})

    assert rest == "postgresql://u:p@h:5433/db"
    assert found.policy.topology_keys[0].zone == "us-west-2a"


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=h password='a  b' options='-c a=b  -c c=d'",
        "host=h password='p topology_keys=zz load_balance=true'",
        r"host=h password='it\'s load_balance=true'",
        r"password=a\ load_balance=true host=h",
        "postgresql://u:p%26load_balance=true@h/db?application_name=x",
        "postgresql://u:p?load_balance=true@h/db",
        "postgresql://h/db?load_balance_hosts=random",
        "",
    ],
)
def test_a_conninfo_without_properties_comes_back_as_it_is(conninfo: str) -> None:
    found, rest, kwargs = split(conninfo, {"load_balance_hosts": "disable", "user": "u"})

    assert rest == conninfo
    assert kwargs == {"load_balance_hosts": "disable", "user": "u"}
    assert not found.load_balance


def test_taking_a_property_out_leaves_the_rest_to_the_letter() -> None:
    text = r"host=h  load_balance='true' password='a  b\'c' options='-c x=y'"

    found, rest, _ = split(text, {})

    assert found.load_balance
    assert rest == r"host=h password='a  b\'c' options='-c x=y'"
    assert psycopg.conninfo.conninfo_to_dict(rest)["password"] == "a  b'c"


@pytest.mark.parametrize(
    ("given", "named", "allowed"),
    [
        ({"load_balance": "bogus"}, "load_balance", "'prefer-rr'"),
        ({"load_balance": 1}, "load_balance", "'any'"),
        ({"load_balance": ["any"]}, "load_balance", "'any'"),
        ({"topology_keys": "a.b"}, "topology_keys", "cloud.region.zone"),
        ({"topology_keys": "a.b.c:0"}, "topology_keys", "1 to 10"),
        ({"topology_keys": "a.b.c:11"}, "topology_keys", "1 to 10"),
        ({"topology_keys": "a.b.c:-2"}, "topology_keys", "1 to 10"),
        ({"topology_keys": "a.b.c:x"}, "topology_keys", "1 to 10"),
        ({"topology_keys": "a.b.c:"}, "topology_keys", "1 to 10"),
        ({"topology_keys": "a.b.c:1:2"}, "topology_keys", "1 to 10"),
        ({"topology_keys": "*.b.c"}, "topology_keys", "'*'"),
        ({"topology_keys": "a.*.c"}, "topology_keys", "'*'"),
        ({"topology_keys": ""}, "topology_keys", "cloud.region.zone"),
        ({"topology_keys": 5}, "topology_keys", "cloud.region.zone"),
        ({"fallback_to_topology_keys_only": "maybe"}, "fallback_to_topology_keys_only", "'true'"),
        ({"yb_servers_refresh_interval": "abc"}, "yb_servers_refresh_interval", "0 to 600"),
        ({"failed_host_reconnect_delay_secs": "x"}, "failed_host_reconnect_delay_secs", "0 to 60"),
    ],
)
def test_a_bad_value_is_one_error_that_names_it_and_comes_before_any_traffic(
    given: dict[str, Any], named: str, allowed: str
) -> None:
    url = f"postgresql://u:sesame@{NOWHERE}/db"

    with pytest.raises(ybsmart.InvalidProperty) as caught:
        ybsmart.connect(url, **{"load_balance": "true", **given})

    assert named in str(caught.value)
    assert allowed in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert isinstance(caught.value, psycopg.ProgrammingError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=127.0.0.1 port=1 load_balance=true password=my sesame",
        "host=127.0.0.1 port=1 load_balance=true load_balnce=x password=sesame",
        "postgresql://u:sesame@127.0.0.1:1/db?load_balance=true&load_balnce=x",
        "host=127.0.0.1 port=1 load_balance=true password='sesame",
    ],
)
def test_a_malformed_or_unknown_option_never_shows_the_password(conninfo: str) -> None:
    with pytest.raises(psycopg.ProgrammingError) as caught:
        ybsmart.connect(conninfo)

    assert "sesame" not in str(caught.value)
    if "balnce" in conninfo:
        assert "load_balnce" in str(caught.value)


def test_a_uri_of_another_kind_is_called_that() -> None:
    with pytest.raises(ybsmart.InvalidProperty, match="neither a postgresql:// URI nor"):
        ybsmart.connect("jdbc:yugabytedb://127.0.0.1:1/db?load-balance=true&password=sesame")


@pytest.mark.parametrize("value", ["-1", 601, "1e9"])
def test_a_time_outside_its_range_is_the_default_with_a_warning(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ybsmart"):
        found = properties(load_balance=True, yb_servers_refresh_interval=value)

    assert found.refresh_interval == 300
    assert "yb_servers_refresh_interval" in caplog.text


@pytest.mark.parametrize("value", [0, 600, "0", "600"])
def test_the_ends_of_a_range_belong_to_it(value: object) -> None:
    found = properties(load_balance=True, yb_servers_refresh_interval=value)

    assert found.refresh_interval == float(str(value))


@pytest.mark.parametrize("keys", ["a.b.c", "nonsense"])
def test_without_load_balancing_the_other_properties_are_ignored(keys: str) -> None:
    found, rest, libpq = split("host=h topology_keys=a", {"topology_keys": keys, "user": "u"})

    assert not found.load_balance
    assert (rest, libpq) == ("host=h", {"user": "u"})


@pytest.mark.parametrize("spelling", ["address_map", "addressMap", "ADDRESS-MAP"])
def test_an_address_map_is_a_property_like_the_others(spelling: str) -> None:
    for found in (
        properties(f"postgresql://h/db?load_balance=true&{spelling}=a:1=b:2"),
        properties(f"host=h load_balance=true {spelling}='a:1 = b:2'"),
        properties(load_balance=True, **{spelling: "a:1=b:2"}),
    ):
        assert found.address_map.find("a", 1) == ("b", "2")


def test_a_list_of_hosts_may_have_a_list_of_ports_of_the_same_length() -> None:
    request = Request("postgresql://h1:1,h2:2,[::1]:3/db?load_balance=true", {})

    assert request.targets == [("h1", "", "1"), ("h2", "", "2"), ("::1", "", "3")]
    assert Request("host=a,b port=5 load_balance=true", {}).targets == [
        ("a", "", "5"),
        ("b", "", "5"),
    ]
    with pytest.raises(psycopg.ProgrammingError, match="3 in host"):
        Request("host=a,b,c port=1,2 load_balance=true", {})


def test_what_is_remembered_of_a_request_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert request_of("host=h", {}) is request_of("host=h", {})
    assert not request_of("host=h", {}).balanced
    monkeypatch.setenv("PGLOADBALANCE", "true")
    assert request_of("host=h", {}).balanced
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    assert request_of("host=h", {}).timeout == 7
    # 1 == True, but only one of them is a value of a property.
    assert request_of("host=h", {"load_balance": True}).balanced
    with pytest.raises(ybsmart.InvalidProperty):
        request_of("host=h", {"load_balance": 1})
    assert "h" not in repr(request_of("host=h", {"password": "h"})).replace("Request", "")


def test_database_url_is_read_when_nothing_else_says_where_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://from-env/db?load_balance=true")

    found, rest, _ = split("", {})
    assert found.load_balance
    assert rest == "postgresql://from-env/db"
    assert split("", {"host": "h"})[1] == ""
    assert split("dbname=x", {})[1] == "dbname=x"

    monkeypatch.setenv("PGHOST", "h")
    assert split("", {})[1] == ""


def test_from_env_reads_a_named_variable_and_insists_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_URL", "postgresql://other/db")

    assert ybsmart.from_env("OTHER_URL") == "postgresql://other/db"
    with pytest.raises(ValueError, match="MISSPELT_URL"):
        ybsmart.from_env("MISSPELT_URL")
