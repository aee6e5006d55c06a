"""A critical section is whole: nobody else is in it, and no finaliser comes back to it."""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import GIL, load_core
from tests.core import test_hosts_model, test_model
from tests.core.shell import MakePool
from tests.support import asleep, until


@pytest.mark.skipif(GIL, reason="with the GIL, what is done inside a section never has to wait")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whether a thread sleeps")
def test_who_has_to_wait_inside_a_section_lets_nobody_in(make_pool: MakePool) -> None:
    pool = make_pool(3)
    pool.stock("a")
    (slot,) = pool._list_slots()
    (slots,) = [held for held in gc.get_referents(pool) if held == {slot}]
    comparing: list[bool] = []
    go_on: list[bool] = []

    class Equal:
        """Looked for in the set of slots, it keeps the set locked."""

        def __hash__(self) -> int:
            return hash(slot)

        def __eq__(self, _: object) -> bool:
            comparing.append(True)
            while not go_on:  # a wait of any kind would give up the lock
                pass
            return False

    snapshots: list[dict[str, Any]] = []
    looking, adding, asking = (
        threading.Thread(target=action, daemon=True)
        for action in (
            lambda: Equal() in slots,
            lambda: pool.grow("b"),
            lambda: snapshots.append(pool._snapshot()),
        )
    )
    gc.disable()  # it would stop the comparison as well
    try:
        looking.start()
        until(lambda: bool(comparing))
        held = pool.getconn()  # so that another is opened, and added to the set in a section
        adding.start()
        until(lambda: pool.connecting_count == 1 and asleep(adding))
        asking.start()
        until(lambda: asleep(asking))
        assert snapshots == [], "in the middle of a section of another thread"
    finally:
        go_on.append(True)
        gc.enable()
    for thread in (looking, adding, asking):
        thread.join(30.0)
        assert not thread.is_alive()
    assert snapshots[0]["connecting"] == 0  # as the section has left it
    pool.putconn(held)


@pytest.fixture
def collections_inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Where in a section the garbage collector has run, and so might have run a finaliser."""
    found: set[str] = set()
    inside: list[Any] = []

    def note(phase: str, _: object) -> None:
        if phase == "start" and inside:
            found.add("".join(traceback.format_stack(limit=4)))

    def inviting_mutex() -> Any:
        """In whose section the first thing that the collector tracks makes it collect."""
        guard = threading.Lock()

        def enter() -> None:
            guard.acquire()
            inside.append([[], []])  # so many are due
            gc.enable()

        def leave(kind: object, error: object, trace: object) -> None:
            gc.disable()
            inside.clear()
            guard.release()

        # As the shim's own: a method that is bound anew each time is tracked itself.
        class Guard:
            __enter__ = staticmethod(enter)
            __exit__ = staticmethod(leave)
            locked = guard.locked

        return Guard()

    monkeypatch.setattr(load_core("python").pool.cython, "pymutex", inviting_mutex)

    threshold = gc.get_threshold()
    gc.disable()
    gc.set_threshold(1)
    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)
    gc.set_threshold(*threshold)
    gc.enable()


# Others collect between any two bytecodes, or when a function of Python is called.
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="it is seen on Python 3.11 alone")
@pytest.mark.parametrize(
    "use",
    [
        test_model.test_any_sequence_of_operations_ends_as_in_lists,
        test_hosts_model.test_any_sequence_of_operations_counts_as_a_dictionary_would,
    ],
)
def test_a_section_makes_nothing_that_the_garbage_collector_tracks(
    collections_inside: set[str], use: Callable[[list[Any]], None]
) -> None:
    use([load_core("python")])

    assert not collections_inside, next(iter(collections_inside))
