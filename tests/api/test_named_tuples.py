"""The package's own named tuples: `typing.NamedTuple`, which they do without, sets the rules."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import pytest

from ybsmart.named_tuples import LeanNamedTuple


class Lean(LeanNamedTuple):
    host: str
    port: int = 5433

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Typed(NamedTuple):
    host: str
    port: int = 5433


BOTH = pytest.mark.parametrize("kind", [Lean, Typed], ids=["lean", "typed"])


@BOTH
@pytest.mark.parametrize(
    ("values", "named"),
    [(("a", 1), {}), (("a",), {"port": 1}), ((), {"port": 1, "host": "a"})],
)
def test_fields_are_given_in_order_or_by_name(kind: Any, values: Any, named: Any) -> None:
    made = kind(*values, **named)

    assert made == ("a", 1)
    assert (made.host, made.port) == ("a", 1)
    assert repr(made) == f"{kind.__name__}(host='a', port=1)"
    assert made._asdict() == {"host": "a", "port": 1}
    assert kind("a").port == 5433


@BOTH
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        (("a", 1, 2), {}),
        (("a",), {"host": "a"}),
        (("a", 1), {"prot": 1}),
        (("a",), {"prot": 1}),
    ],
    ids=["one too few", "one too many", "one twice", "one unknown", "one misspelt"],
)
def test_what_is_no_field_or_a_field_too_few_is_an_error(
    kind: Any, values: Any, named: Any
) -> None:
    with pytest.raises(TypeError):
        kind(*values, **named)


@BOTH
def test_it_is_plain_data_that_stays_as_it_is(kind: Any) -> None:
    made = kind("a", 1)
    again = pickle.loads(pickle.dumps(made))

    assert again == made
    assert type(again) is kind
    with pytest.raises(AttributeError):
        made.port = 2
    with pytest.raises(AttributeError):
        made.other = 2
    assert made._replace(port=2) == ("a", 2)
    with pytest.raises((TypeError, ValueError)):
        made._replace(prot=2)


def test_it_may_have_properties_of_its_own() -> None:
    assert Lean("a", 1).address == "a:1"
