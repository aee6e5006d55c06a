"""The compiled core is really compiled, and otherwise no different from its source."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from types import ModuleType

import pytest

from tests.conftest import Core, load_core, parts_of

# The special methods that make up a public interface.
SPECIAL = ("__len__", "__iter__", "__contains__", "__enter__", "__exit__")


@pytest.fixture(scope="module")
def c(needs_compiler: None) -> Core:
    return load_core("c")


@pytest.fixture(scope="module")
def python() -> Core:
    return load_core("python")


def own_classes(module: ModuleType) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }


def describe_name(module: ModuleType, name: str) -> dict[str, object]:
    value = getattr(module, name)
    if not isinstance(value, type):
        return {name: describe_member(value)}
    seen: dict[str, object] = {name: inspect.getdoc(value)}
    for base in reversed(value.__mro__[:-1]):
        for attribute, member in vars(base).items():
            if attribute in SPECIAL:  # compiled, it has no signature or docstring of its own
                seen[f"{name}.{attribute}"] = "special"
            elif not attribute.startswith("_"):
                seen[f"{name}.{attribute}"] = describe_member(member)
    return seen


def describe_member(member: object) -> object:
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if inspect.isdatadescriptor(member):
        # Python 3.13 takes the indentation out of docstrings when it compiles, Cython does not.
        return inspect.cleandoc(member.__doc__ or "")
    if not callable(member):
        return member
    parameters = [
        (parameter.name, parameter.kind.name, parameter.default)
        for parameter in inspect.signature(member).parameters.values()
    ]
    return (parameters, inspect.getdoc(member))


def test_every_class_is_an_extension_type(c: Core) -> None:
    """Without its declarations a class is slower compiled than not, and nothing else shows it."""
    for module in c.modules:
        classes = own_classes(module)
        assert classes, f"no class in {module.__name__}"
        for cls in classes.values():
            with pytest.raises(TypeError, match="immutable type"):
                cls.new_attribute = 1  # type: ignore[attr-defined]


def test_both_builds_have_the_same_classes(c: Core, python: Core) -> None:
    for name in ("hosts", "pool"):
        parts = parts_of(getattr(python, name))
        classes = {cls for part in parts for cls in own_classes(part)}
        assert own_classes(getattr(c, name)).keys() == classes


def test_public_names_signatures_and_docstrings_are_equal(c: Core, python: Core) -> None:
    assert describe_name(c.parking, "held_lock") == describe_name(python.parking, "held_lock")
    for compiled, source in ((c.hosts, python.hosts), (c.pool, python.pool)):
        for name in source.__all__:
            assert describe_name(compiled, name) == describe_name(source, name)


def test_modules_of_a_build_use_only_that_build(core: Core) -> None:
    package = core.hosts.__name__.rpartition(".")[0]
    for module in core.modules:
        for value in vars(module).values():
            origin = getattr(value, "__module__", None) or ""
            if isinstance(value, type) and origin.startswith("ybsmart."):
                assert origin.rpartition(".")[0] == package, f"{module.__name__}: {value}"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_compiled_core_leaves_the_gil_off(c: Core) -> None:
    assert sys.version_info < (3, 13) or not sys._is_gil_enabled()
