"""What the process tells about clusters and loans, and its errors: data that can go elsewhere."""

from __future__ import annotations

import pickle
from typing import Any

import psycopg
import pytest

import ybsmart
from ybsmart.errors import Unreachable

NODE = ybsmart.NodeInfo(
    host="10.0.0.1",
    port=5433,
    public_ip="",
    cloud="aws",
    region="us-west",
    zone="us-west-2a",
    node_type="primary",
    uuid="a",
    connections=3,
    in_use=1,
    state="up",
    last_error=None,
)
REPORTS = [
    NODE,
    ybsmart.ClusterInfo(universe_uuid="u", nodes=(NODE,), refreshed_at=1.5, refreshes=2),
    ybsmart.Holder(thread="worker", thread_id=1, age=0.5, node="10.0.0.1:5433", taken_at=None),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_is_plain_data_that_stays_as_it_is(report: Any) -> None:
    again = pickle.loads(pickle.dumps(report))

    assert again == report
    assert hash(again) == hash(report)
    assert type(again) is type(report)
    assert repr(again).startswith(f"{type(report).__name__}(")
    with pytest.raises(AttributeError):
        report.state = "other"
    with pytest.raises(AttributeError):
        setattr(report, report._fields[0], "other")


def test_a_node_says_where_it_is() -> None:
    assert (NODE.placement, NODE.address) == ("aws.us-west.us-west-2a", "10.0.0.1:5433")


# Errors

ERRORS = [
    name
    for name in ybsmart.__all__
    if isinstance(kind := getattr(ybsmart, name), type) and issubclass(kind, Exception)
]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_can_go_to_another_process(name: str) -> None:
    error = getattr(ybsmart, name)("as written")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == "as written"


@pytest.mark.parametrize("kind", [psycopg.errors.ConnectionTimeout, psycopg.OperationalError])
def test_the_error_of_all_nodes_is_a_timeout_if_all_were_silent(
    kind: type[psycopg.Error],
) -> None:
    error = Unreachable.because("none of two", {"a": kind("one"), "b": kind("two")})

    again = pickle.loads(pickle.dumps(error))

    for each in (error, again):
        assert isinstance(each, Unreachable)
        assert isinstance(each, kind)
        assert type(each).__name__ == "Unreachable"
        assert str(each) == "none of two\n  a: one\n  b: two"
