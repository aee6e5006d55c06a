"""A critical section is whole: nobody else is in it, whatever happens to the thread that is."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import pytest

from tests.conftest import GIL
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
