"""The page about the pool leaves nothing out."""

from __future__ import annotations

import inspect

from tests.pages import DOCS
from ybsmart import ConnectionPool

PAGE = (DOCS / "pool.md").read_text(encoding="utf-8")


def words(text: str) -> set[str]:
    return set("".join(c if c.isidentifier() or c.isdigit() else " " for c in text).split())


def test_every_parameter_method_attribute_and_number_is_on_the_page() -> None:
    parameters = set(inspect.signature(ConnectionPool.__init__).parameters) - {"self"}
    pool = ConnectionPool()
    public = {name for name in [*dir(pool), *vars(pool)] if not name.startswith("_")}

    assert (parameters | public | pool.get_stats().keys()) - words(PAGE) == set()
