"""The cluster that most tests have for themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import NET
from ybsmart.testing import LocalCluster


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(first_address=f"{NET}.1") as cluster:
        yield cluster
