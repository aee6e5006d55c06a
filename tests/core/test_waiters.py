"""`Waiter` and `WaiterQueue`: the order of arrival, and one outcome for each."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)


def wake() -> None:
    raise AssertionError("the queue is not to wake anybody")


def make_queue(core: Any, length: int) -> tuple[Any, list[Any]]:
    queue = core.pool.WaiterQueue()
    waiters = [core.pool.Waiter(wake) for _ in range(length)]
    for waiter in waiters:
        queue.append(waiter)
    return queue, waiters


def test_a_waiter_keeps_what_the_shell_gave_it(core: Any) -> None:
    parked_on = object()

    waiter = core.pool.Waiter(wake, parked_on)

    assert waiter.wake is wake
    assert waiter.parked_on is parked_on
    assert (waiter.state, waiter.outcome) == (core.pool.WAITING, None)


def test_an_empty_queue_grants_nothing(core: Any) -> None:
    queue, _ = make_queue(core, 0)

    assert queue.grant("connection") is None
    assert queue.first() is None
    assert (len(queue), list(queue)) == (0, [])


def test_grants_follow_the_order_of_arrival(core: Any) -> None:
    queue, waiters = make_queue(core, 3)

    assert [queue.grant(number) for number in range(3)] == waiters

    assert [(w.state, w.outcome) for w in waiters] == [(core.pool.GRANTED, n) for n in range(3)]
    assert len(queue) == 0


def test_the_first_stays_in_the_queue_when_it_is_looked_at(core: Any) -> None:
    queue, (first, second) = make_queue(core, 2)

    assert queue.first() is first
    assert list(queue) == [first, second]


def test_a_waiter_that_comes_later_is_behind_those_who_are_left(core: Any) -> None:
    queue, (first, second) = make_queue(core, 2)
    queue.grant("connection")
    third = core.pool.Waiter(wake)

    queue.append(third)

    assert list(queue) == [second, third]
    assert first.state == core.pool.GRANTED


@pytest.mark.parametrize("which", [0, 1, 2, 3, 4], ids=["head", "2nd", "middle", "4th", "tail"])
def test_a_cancelled_waiter_leaves_the_others_in_order(core: Any, which: int) -> None:
    queue, waiters = make_queue(core, 5)

    assert queue.cancel(waiters[which])

    left = [waiter for i, waiter in enumerate(waiters) if i != which]
    assert list(queue) == left
    assert len(queue) == 4
    assert queue.first() is left[0]
    assert [queue.grant(None) for _ in range(4)] == left
    assert (waiters[which].state, waiters[which].outcome) == (core.pool.CANCELLED, None)


def test_the_only_waiter_can_be_cancelled(core: Any) -> None:
    queue, (waiter,) = make_queue(core, 1)

    assert queue.cancel(waiter)

    assert (len(queue), queue.first()) == (0, None)
    queue.append(core.pool.Waiter(wake))
    assert len(queue) == 1


@pytest.mark.parametrize("which", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_failed_waiter_leaves_the_queue_with_its_error(core: Any, which: int) -> None:
    queue, waiters = make_queue(core, 3)
    error = ValueError()

    assert queue.fail(waiters[which], error)

    assert (waiters[which].state, waiters[which].outcome) == (core.pool.FAILED, error)
    assert list(queue) == [waiter for i, waiter in enumerate(waiters) if i != which]


@pytest.mark.parametrize("second", ["cancel", "fail"])
@pytest.mark.parametrize("first", ["grant", "fail", "cancel"])
def test_a_wait_that_has_ended_cannot_end_again(core: Any, first: str, second: str) -> None:
    queue, (waiter, other) = make_queue(core, 2)
    {
        "grant": lambda: queue.grant("connection"),
        "fail": lambda: queue.fail(waiter, "error"),
        "cancel": lambda: queue.cancel(waiter),
    }[first]()
    before = (waiter.state, waiter.outcome)

    settled_again = queue.cancel(waiter) if second == "cancel" else queue.fail(waiter, "another")

    assert not settled_again
    assert (waiter.state, waiter.outcome) == before
    assert list(queue) == [other]


def test_a_waiter_cannot_be_queued_twice(core: Any) -> None:
    queue, (first, second) = make_queue(core, 2)

    with pytest.raises(RuntimeError, match="bug: <Waiter waiting> has been queued before"):
        queue.append(first)

    assert list(queue) == [first, second]


@pytest.mark.parametrize("state", ["granted", "failed", "cancelled"])
def test_a_waiter_cannot_be_queued_again_after_its_wait(core: Any, state: str) -> None:
    queue, (waiter,) = make_queue(core, 1)
    {
        "granted": lambda: queue.grant("connection"),
        "failed": lambda: queue.fail(waiter, "error"),
        "cancelled": lambda: queue.cancel(waiter),
    }[state]()

    with pytest.raises(RuntimeError, match=f"bug: <Waiter {state}> has been queued before"):
        queue.append(waiter)

    assert len(queue) == 0


def test_a_waiter_in_another_queue_is_refused(core: Any) -> None:
    _, (waiter,) = make_queue(core, 1)
    queue, _ = make_queue(core, 0)

    with pytest.raises(RuntimeError, match="bug"):
        queue.append(waiter)


def test_ten_thousand_waiters_leave_in_any_order(core: Any) -> None:
    queue, waiters = make_queue(core, 10_000)
    order = list(range(10_000))
    random.Random(20240229).shuffle(order)
    stay = set(order[:100])

    for which in order[100:]:
        assert queue.cancel(waiters[which])

    assert len(queue) == 100
    assert list(queue) == [waiters[which] for which in sorted(stay)]


def test_a_waiter_that_left_keeps_no_other_alive(core: Any) -> None:
    class Sentinel:
        pass

    queue, waiters = make_queue(core, 2)
    sentinel = Sentinel()
    last = core.pool.Waiter(wake, sentinel)
    queue.append(last)
    queue.cancel(waiters[1])
    queue.cancel(last)
    gone = weakref.ref(sentinel)

    del last, sentinel
    gc.collect()

    assert gone() is None


def test_a_long_queue_can_be_dropped_as_a_whole(core: Any) -> None:
    queue, waiters = make_queue(core, 200_000)

    del queue, waiters
    gc.collect()  # one by one, and not by a recursion that has no room


def test_the_reprs_tell_the_state(core: Any) -> None:
    queue, (waiter, _) = make_queue(core, 2)

    assert (repr(queue), repr(waiter)) == ("<WaiterQueue length=2>", "<Waiter waiting>")


@pytest.mark.parametrize("name", ["Waiter", "WaiterQueue", "Shelf", "Slot", "Opening", "Checkout"])
def test_the_classes_cannot_be_subclassed(core: Any, name: str) -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (getattr(core.pool, name),), {})


# Any sequence of operations, against a list


class QueueMachine(RuleBasedStateMachine):
    """Both builds, and the obvious: a list of numbers."""

    def __init__(self, cores: list[Any]) -> None:
        super().__init__()
        self.cores = cores
        self.queues = [core.pool.WaiterQueue() for core in cores]
        self.waiters: list[list[Any]] = [[] for _ in cores]  # all that ever were
        self.queue: list[int] = []
        self.ends: dict[int, tuple[str, Any]] = {}

    @rule()
    def append(self) -> None:
        self.queue.append(len(self.waiters[0]))
        for core, queue, waiters in zip(self.cores, self.queues, self.waiters, strict=True):
            waiters.append(core.pool.Waiter(wake))
            queue.append(waiters[-1])

    @rule(what=st.integers())
    def grant(self, what: int) -> None:
        granted = self.queue.pop(0) if self.queue else None
        if granted is not None:
            self.ends[granted] = ("granted", what)
        for queue, waiters in zip(self.queues, self.waiters, strict=True):
            waiter = queue.grant(what)
            assert waiter is (None if granted is None else waiters[granted])

    @rule(data=st.data(), error=st.none() | st.integers())
    def leave(self, data: st.DataObject, error: int | None) -> None:
        """Cancel (without an error) or fail any waiter there has been."""
        if not self.waiters[0]:
            return
        which = data.draw(st.integers(0, len(self.waiters[0]) - 1))
        waits = which in self.queue
        if waits:
            self.queue.remove(which)
            self.ends[which] = ("cancelled", None) if error is None else ("failed", error)
        for queue, waiters in zip(self.queues, self.waiters, strict=True):
            waiter = waiters[which]
            left = queue.cancel(waiter) if error is None else queue.fail(waiter, error)
            assert left is waits

    @invariant()
    def agree(self) -> None:
        for queue, waiters in zip(self.queues, self.waiters, strict=True):
            assert len(queue) == len(self.queue)
            assert list(queue) == [waiters[which] for which in self.queue]
            assert queue.first() is (waiters[self.queue[0]] if self.queue else None)
            for which, waiter in enumerate(waiters):
                end = self.ends.get(which, ("waiting", None))
                assert (waiter.state, waiter.outcome) == end


def test_any_sequence_of_operations_ends_as_in_a_list(cores: list[Any]) -> None:
    run_state_machine_as_test(
        cast(Any, lambda: QueueMachine(cores)),
        settings=settings(max_examples=100, stateful_step_count=40),
    )
