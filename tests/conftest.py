"""What is tested: the header that says it, and the fixture that provides both builds of the core.

`YBSMART_IMPL` decides what the package under test runs on, `--impl` which builds `core` provides.
"""

from __future__ import annotations

import gc
import platform
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from filecmp import cmp
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import none

import ybsmart
from ybsmart._core import MODULES

IMPLS = ("c", "python")

GIL = bool(getattr(sys, "_is_gil_enabled", lambda: True)())
# For `gc.set_threshold`: collect as often as is bearable. Without the GIL each collection goes
# through all that the session has made, not just what is new.
EAGER = 1 if GIL else 500

# A run is repeated with the seed that the header shows, so no database of failures is kept.
# Without the phase that explains failures, which takes minutes. How long anything takes says more
# about what else the machine does.
settings.register_profile(
    "ybsmart",
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ybsmart")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--impl",
        choices=("all", *IMPLS),
        default="all",
        help="which build of the core to test (python: also skips what needs a compiler)",
    )


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads the seed
def pytest_configure(config: pytest.Config) -> None:
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.getrandbits(32))


def pytest_report_header(config: pytest.Config) -> list[str]:
    impl = config.option.impl
    tested = ", ".join(
        (
            f"ybsmart {ybsmart.__version__} ({ybsmart.__impl__})",
            f"core: {'c and python' if impl == 'all' else f'{impl} only'}",
            f"{platform.python_implementation()} {platform.python_version()}",
            f"GIL {'on' if GIL else 'off'}",
            f"--hypothesis-seed={config.option.hypothesis_seed}",
        )
    )
    changed = changed_since_installed()
    return [tested, *([f"NOT INSTALLED YET (run make): {', '.join(changed)}"] if changed else [])]


def changed_since_installed() -> list[str]:
    """The files of src that differ from what is installed, and so from what is tested."""
    src = Path(__file__).parents[1] / "src"
    installed = Path(ybsmart.__file__).parent
    pairs = [
        (path, installed / path.relative_to(src / "ybsmart" if top == "ybsmart" else src))
        for top in ("ybsmart", "_core")
        for path in (src / top).rglob("*.py")
    ]
    return [
        path.relative_to(src).as_posix()
        for path, copy in pairs
        if not (copy.exists() and cmp(path, copy, shallow=False))
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    impl = config.option.impl
    if impl == "all":
        return

    def is_wanted(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        return callspec is None or callspec.params.get("core", impl) == impl

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = filter(is_wanted, items)


def pytest_collection_finish() -> None:
    """Many tests run the garbage collector. What is there before the first of them is a great
    deal, and none of it garbage: let it be passed over."""
    # The first property test has Hypothesis make a generator, which it then wants the collector to
    # know of: on Python 3.14 it would not, and Hypothesis warns.
    settings(max_examples=1)(given(none())(lambda nothing: None))()
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Core:
    """One build of the core, its modules under the names they have in `ybsmart._core`."""

    name: str
    hosts: ModuleType
    parking: ModuleType
    pool: ModuleType

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        return (self.hosts, self.parking, self.pool)


def load_core(name: str) -> Core:
    package = {"c": "ybsmart._core._c", "python": "ybsmart._core"}[name]
    core = Core(name, **{module: import_module(f"{package}.{module}") for module in MODULES})
    for module in core.modules:
        # Without these a missing extension could mean that one build is tested twice.
        assert module.__name__.rpartition(".")[0] == package
        assert module.is_compiled() is (name == "c")
    return core


def parts_of(module: ModuleType) -> list[ModuleType]:
    """The modules that one of the core's consists of; compiled, it is one."""
    if module.is_compiled():
        return [module]
    classes = [cls for name in module.__all__ if isinstance(cls := getattr(module, name), type)]
    origins = {base.__module__ for cls in classes for base in cls.__mro__[:-1]}
    return [import_module(origin) for origin in sorted(origins)]


@pytest.fixture(scope="session", params=IMPLS)
def core(request: pytest.FixtureRequest) -> Core:
    """Each test that asks for it runs on both builds. A missing extension is an error."""
    return load_core(request.param)


@pytest.fixture
def fast_switching() -> Iterator[None]:
    """Threads are switched as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
