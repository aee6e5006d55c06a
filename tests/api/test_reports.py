"""What the process tells about clusters and loans: plain data, as it was when it was asked for."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import ybsmart

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
