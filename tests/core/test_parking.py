"""What waiters sleep on: a wake-up comes through once, whenever it comes, and nothing else does."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import asleep, until

FOR_EVER = 20.0  # seconds


@pytest.fixture
def compiled(core: Any) -> Any:
    if core.name == "python":
        pytest.skip("uncompiled, it is Python's own lock")
    return core.parking


class Sleeper:
    """A thread that sleeps on a lock."""

    def __init__(self, lock: Any, timeout: float = FOR_EVER) -> None:
        self.lock = lock
        self.timeout = timeout
        self.woken: bool | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.woken = self.lock.acquire(True, self.timeout)

    def result(self) -> bool | None:
        self.thread.join(FOR_EVER + 10)
        assert not self.thread.is_alive(), "it sleeps on"
        return self.woken


@pytest.mark.parametrize("timeout", [-1, 0, 0.001, FOR_EVER, threading.TIMEOUT_MAX])
def test_woken_before_it_sleeps(core: Any, timeout: float) -> None:
    lock = core.parking.held_lock()
    lock.release()

    assert lock.acquire(True, timeout)
    assert not lock.acquire(True, 0), "woken twice"


@pytest.mark.parametrize("timeout", [-1, FOR_EVER, threading.TIMEOUT_MAX])
def test_woken_while_it_sleeps(core: Any, timeout: float) -> None:
    lock = core.parking.held_lock()
    sleeper = Sleeper(lock, timeout)
    if sys.platform == "linux":
        until(lambda: asleep(sleeper.thread))
    lock.release()

    assert sleeper.result() is True


@pytest.mark.parametrize("timeout", [0, 0.000_001, 0.02])
def test_it_sleeps_no_less_than_it_was_told(core: Any, timeout: float) -> None:
    lock = core.parking.held_lock()
    started = time.monotonic()

    assert lock.acquire(True, timeout) is False
    assert time.monotonic() - started >= timeout
    lock.release()
    assert lock.acquire(True, timeout) is True


def test_no_time_is_an_error(core: Any) -> None:
    lock = core.parking.held_lock()

    with pytest.raises(ValueError, match="NaN"):
        lock.acquire(True, float("nan"))
    with pytest.raises(TypeError):
        lock.acquire(True, None)
    assert lock.acquire(False) is False


def test_the_lock_that_has_replaced_pythons_is_taken(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after gevent's `patch_all()`."""

    class Replacement:
        def acquire(self) -> bool:
            return True

    monkeypatch.setattr(threading, "Lock", Replacement)

    assert type(core.parking.held_lock()) is Replacement


def test_many_wake_ups_from_everywhere(core: Any, fast_switching: None) -> None:
    """A ring of threads that wake each other, each dropping what it slept on at once: a lock must
    outlive its release, and no wake-up may get lost."""
    size, rounds = 8, 400
    slots: list[Any] = [core.parking.held_lock() for _ in range(size)]
    late: list[int] = []

    def work(i: int) -> None:
        for _ in range(rounds):
            lock = slots[i]
            if not lock.acquire(True, FOR_EVER):
                late.append(i)
                return
            slots[i] = core.parking.held_lock()
            del lock
            slots[(i + 1) % size].release()

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(size)]
    for thread in threads:
        thread.start()
    slots[0].release()
    for thread in threads:
        thread.join(FOR_EVER + 10)

    assert late == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def patient(compiled: Any) -> Iterator[Any]:
    """None is woken before the one before it has gone on, and the interpreter changes hands only
    when its holder goes to sleep."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("without the GIL, there is nothing to wait for")
    interval = sys.getswitchinterval()
    patience = compiled._set_patience(1000)
    sys.setswitchinterval(1000)
    yield compiled
    sys.setswitchinterval(interval)
    compiled._set_patience(patience)


class Sleepers:
    """Threads that sleep, one lock each, and tell in which order they went on."""

    def __init__(self, parking: Any, timeouts: list[float]) -> None:
        self.locks = [parking.held_lock() for _ in timeouts]
        self.order: list[int] = []
        self.in_time: set[int] = set()
        self.threads = [
            threading.Thread(target=self._run, args=(i, timeout), daemon=True)
            for i, timeout in enumerate(timeouts)
        ]
        for thread in self.threads:
            thread.start()
        until(lambda: all(asleep(thread) for thread in self.threads))

    def _run(self, i: int, timeout: float) -> None:
        if self.locks[i].acquire(True, timeout):
            self.in_time.add(i)
        self.order.append(i)

    def join(self) -> list[int]:
        for thread in self.threads:
            thread.join(FOR_EVER)
            assert not thread.is_alive(), f"asleep still; gone on: {self.order}"
        return self.order


def work(seconds: float) -> None:
    """For so long, and without giving the interpreter away."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
class TestOneAtATime:
    def test_they_go_on_in_the_order_in_which_they_were_woken(self, patient: Any) -> None:
        for _ in range(20):
            sleepers = Sleepers(patient, [FOR_EVER] * 8)
            order = random.sample(range(8), 8)
            for i in order:
                sleepers.locks[i].release()
            assert sleepers.join() == order

    def test_one_that_has_timed_out_wakes_the_next(self, patient: Any) -> None:
        sleepers = Sleepers(patient, [FOR_EVER, 0.3, FOR_EVER, 0.3, FOR_EVER])
        for lock in sleepers.locks:
            lock.release()
        work(0.5)
        assert sorted(sleepers.join()) == [0, 1, 2, 3, 4]

    def test_when_patience_ends_those_kept_back_are_woken(self, patient: Any) -> None:
        sleepers = Sleepers(patient, [2.0] * 4)
        for lock in sleepers.locks[:3]:
            lock.release()
        patient._set_patience(0)
        sleepers.locks[3].release()
        work(2.5)
        sleepers.join()
        assert sleepers.in_time == {0, 1, 2, 3}

    def test_nobody_waits_for_a_signal_handler(self, patient: Any) -> None:
        """The one that has been woken may be running it, and it may take its time."""
        others = Sleepers(patient, [FOR_EVER] * 2)
        mine = patient.held_lock()
        seen: list[list[int]] = []

        def handler(*_: object) -> None:
            mine.release()
            for lock in others.locks:
                lock.release()
            seen.append(others.join())

        assert in_main_thread_with(handler, 1, lambda: mine.acquire(True, FOR_EVER))
        assert seen == [[0, 1]]

    def test_one_that_is_woken_when_a_handler_raises_wakes_the_next(self, patient: Any) -> None:
        others = Sleepers(patient, [FOR_EVER] * 2)
        mine = patient.held_lock()

        def handler(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            in_main_thread_with(handler, 1, lambda: mine.acquire(True, FOR_EVER))
        for lock in (others.locks[0], mine, others.locks[1]):
            lock.release()
        assert others.join() == [0, 1]

    def test_one_in_a_handler_is_passed_over(self, patient: Any) -> None:
        others = Sleepers(patient, [FOR_EVER] * 2)
        mine = patient.held_lock()

        def interrupt() -> None:
            until(lambda: asleep(threading.main_thread()))
            os.kill(os.getpid(), signal.SIGUSR1)
            work(0.1)  # so that the main thread is the first in line for the interpreter
            for lock in (others.locks[0], mine, others.locks[1]):
                lock.release()

        def handler(*_: object) -> None:
            others.join()

        before = signal.signal(signal.SIGUSR1, handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            assert mine.acquire(True, FOR_EVER)
        finally:
            signal.signal(signal.SIGUSR1, before)
            thread.join()
        assert (others.order, others.in_time) == ([0, 1], {0, 1})

    def test_a_forked_child_waits_for_nobody_in_its_parent(self, patient: Any) -> None:
        program = """
            from threading import Thread
            import warnings

            warnings.simplefilter("ignore")  # of forking with threads
            parking = sys.modules[held_lock.__module__]
            parking._set_patience(1000)
            sys.setswitchinterval(1000)


            def sleeper():
                lock = held_lock()
                thread = Thread(target=lock.acquire)
                thread.start()
                while state(thread) != "S":
                    time.sleep(0.001)
                return lock, thread


            def state(thread):
                with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
                    return stat.read().rpartition(")")[2].split()[0]


            lock, thread = sleeper()
            lock.release()
            pid = os.fork()
            if not pid:
                lock, thread = sleeper()
                lock.release()
                thread.join(10)
                os._exit(thread.is_alive())
            thread.join()
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
        done = run(types.SimpleNamespace(parking=patient), program)

        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_releases_it_twice_is_told(core: Any) -> None:
    lock = core.parking.held_lock()
    lock.release()

    with pytest.raises(RuntimeError, match="release unlocked lock"):
        lock.release()


def in_main_thread_with(handler: Any, signals: int, action: Callable[[], Any]) -> Any:
    """Run an action while that many signals come, each after it has gone to sleep."""
    assert threading.current_thread() is threading.main_thread()
    main = threading.main_thread()
    over = threading.Event()

    def send() -> None:
        for _ in range(signals):
            until(lambda: over.is_set() or asleep(main))
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGUSR1)
                over.wait(0.01)  # not to find it asleep for the last one

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        return action()
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
class TestSignals:
    def test_an_exception_of_a_handler_ends_the_sleep(self, core: Any) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        lock = core.parking.held_lock()
        with pytest.raises(KeyboardInterrupt):
            in_main_thread_with(interrupt, 1, lambda: lock.acquire(True, -1))
        lock.release()
        assert lock.acquire(True, 0)

    def test_other_signals_are_handled_in_the_sleep(self, core: Any) -> None:
        calls: list[None] = []
        lock = core.parking.held_lock()

        def wake(*_: object) -> None:
            calls.append(None)
            if len(calls) == 3:
                lock.release()

        assert in_main_thread_with(wake, 3, lambda: lock.acquire(True, FOR_EVER))

    def test_signals_do_not_put_off_the_end(self, core: Any) -> None:
        calls: list[None] = []
        lock = core.parking.held_lock()
        started = time.monotonic()

        def sleep() -> Any:
            return lock.acquire(True, 0.3)

        assert in_main_thread_with(lambda *_: calls.append(None), 1000, sleep) is False
        assert time.monotonic() - started >= 0.3
        assert 0 < len(calls) < 1000


def test_an_exception_from_another_thread_comes_after_the_sleep(core: Any) -> None:
    class Interrupt(BaseException):
        pass

    lock = core.parking.held_lock()
    got: list[object] = []

    def sleep() -> None:
        try:
            try:
                got.append(lock.acquire(True, FOR_EVER))
            finally:
                got.append("over")
        except Interrupt:
            got.append("interrupted")

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    if sys.platform == "linux":
        until(lambda: asleep(thread))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupt)
    )
    lock.release()
    thread.join(FOR_EVER)

    assert not thread.is_alive()
    assert got[-1] == "interrupted"


def run(core: Any, program: str) -> subprocess.CompletedProcess[str]:
    beginning = f"""
        import atexit, gc, os, sys, threading, time
        from importlib import import_module
        held_lock = import_module({core.parking.__name__!r}).held_lock
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(beginning) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_sleepers_do_not_keep_the_interpreter_from_ending(core: Any) -> None:
    """Neither those that sleep on, nor those that wake up in the middle of it."""
    program = """
        locks = [held_lock() for _ in range(20)]
        timeouts = [-1, 1000, 0.005, 0.01, 0.02]
        for i, lock in enumerate(locks):
            threading.Thread(target=lock.acquire, args=(True, timeouts[i % 5]), daemon=True).start()


        class Late:
            def __del__(self, locks=locks[10:]):  # its globals may be gone by then
                for lock in locks:
                    lock.release()


        late = Late()
        atexit.register(lambda: [lock.release() for lock in locks[:10]])
    """
    done = run(core, program)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_may_drop_what_its_parent_sleeps_on(core: Any) -> None:
    program = """
        import warnings

        warnings.simplefilter("ignore")  # of forking with threads
        locks = [held_lock() for _ in range(4)]
        threads = [threading.Thread(target=lock.acquire) for lock in locks]
        for thread in threads:
            thread.start()
        pid = os.fork()
        if not pid:
            threads.clear()
            locks.clear()
            gc.collect()
            lock = held_lock()
            lock.release()
            os._exit(0 if lock.acquire(True, 1) else 3)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for lock in locks:
            lock.release()
        for thread in threads:
            thread.join(20)
        sys.exit(status or any(thread.is_alive() for thread in threads))
    """
    done = run(core, program)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
