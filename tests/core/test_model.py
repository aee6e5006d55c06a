"""Any sequence of operations on a pool, against a model that is made of lists."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.actors import Actor
from tests.core.shell import IN_TRANSACTION, Closed, Interrupt, NotLent, TimedOut, make_shell


class Model:
    """A pool, as obvious as can be. Connections and requests are numbers."""

    def __init__(self, max_size: int, max_connecting: int) -> None:
        self.max_size = max_size
        self.max_connecting = max_connecting
        self.now = 0  # which rule it is
        self.idle: dict[str, list[int]] = {}  # by node, in the order in which they returned
        self.turn = 0
        self.node: dict[int, str] = {}  # of every connection there is
        self.idle_since: dict[int, int] = {}
        self.suspect_since: dict[str, int] = {}
        self.dead: set[int] = set()
        self.looked_at: list[int] = []
        self.closed: list[int] = []
        self.queue: list[int] = []
        self.openings: list[int | None] = []  # the requesters
        self.got: dict[int, int | type[BaseException]] = {}  # by request
        self.closing = False

    @property
    def lent(self) -> set[int]:
        return set(self.node) - {conn for conns in self.idle.values() for conn in conns}

    def snapshot(self) -> dict[str, Any]:
        lent = [self.node[conn] for conn in self.lent]
        return {
            "total": len(self.node) + len(self.openings),
            "idle": sum(len(conns) for conns in self.idle.values()),
            "lent": len(lent),
            "connecting": len(self.openings),
            "waiting": len(self.queue),
            "closing": self.closing,
            "shelves": {node: (len(conns), lent.count(node)) for node, conns in self.idle.items()},
        }

    def take(self) -> int | None:
        nodes = list(self.idle)
        lent = [self.node[conn] for conn in self.lent]
        in_turn = nodes[self.turn :] + nodes[: self.turn]
        possible = [node for node in in_turn if self.idle[node]]
        if not possible:
            return None
        node = min(possible, key=lent.count)  # the first of the least
        self.turn = nodes.index(node) + 1
        return self.idle[node].pop()

    def take_alive(self) -> int | None:
        while (conn := self.take()) is not None:
            since, node = self.idle_since[conn], self.node[conn]
            if since > self.suspect_since.get(node, -1):
                break
            self.looked_at.append(conn)
            if conn not in self.dead:
                break
            self.suspect_since[node] = self.now
            self.close_conn(conn)
        return conn

    def close_conn(self, conn: int) -> None:
        del self.node[conn]
        self.closed.append(conn)
        self.open_more()

    def open_more(self) -> None:
        while (
            len(self.openings) < min(self.max_connecting, len(self.queue))
            and len(self.node) + len(self.openings) < self.max_size
        ):
            self.openings.append(self.without_opening())

    def without_opening(self) -> int | None:
        return next((request for request in self.queue if request not in self.openings), None)

    def leave(self, request: int, got: int | type[BaseException]) -> None:
        self.queue.remove(request)
        self.got[request] = got
        if request in self.openings:
            self.openings[self.openings.index(request)] = self.without_opening()

    def request(self, request: int) -> None:
        conn = None if self.closing else self.take_alive()
        if conn is not None:
            self.got[request] = conn
        elif self.closing:
            self.got[request] = Closed
        else:
            self.queue.append(request)
            self.open_more()

    def give(self, conn: int) -> None:
        self.idle_since[conn] = self.now
        if self.queue:
            self.leave(self.queue[0], conn)
        elif self.closing:
            self.close_conn(conn)
        else:
            self.idle[self.node[conn]].append(conn)

    def opened(self, which: int, conn: int, node: str) -> None:
        del self.openings[which]
        self.node[conn] = node
        self.idle.setdefault(node, [])
        self.give(conn)
        self.open_more()

    def failed(self, which: int) -> None:
        request = self.openings.pop(which)
        if request is not None:
            self.leave(request, OSError)
        self.open_more()

    def end(self) -> None:
        self.closing = True
        for conns in self.idle.values():
            while conns:
                self.close_conn(conns.pop())

    def close(self) -> None:
        self.closing = True
        while self.queue:
            self.leave(self.queue[0], Closed)
        self.end()


class PoolMachine(RuleBasedStateMachine):
    """Both builds and the model, in step."""

    def __init__(self, cores: list[Any]) -> None:
        super().__init__()
        self.cores = cores

    nodes = st.sampled_from("abc")

    @initialize(
        max_size=st.integers(1, 5),
        max_connecting=st.integers(1, 3),
        stock=st.lists(nodes, max_size=5),
    )
    def begin(self, max_size: int, max_connecting: int, stock: list[str]) -> None:
        self.model = Model(max_size, max_connecting)
        self.pools = [
            make_shell(core)(max_size, max_connecting=max_connecting) for core in self.cores
        ]
        self.conns: dict[int, list[Any]] = {}  # one for each build
        self.held: list[int] = []
        self.requests: dict[int, list[Actor]] = {}
        self.requested = 0
        for node in stock[:max_size]:
            self.request()
            self.open(0, node)
            self.agree()
        for number in self.held:
            self.return_(number, "clean")
        self.held.clear()

    def teardown(self) -> None:
        for pool in getattr(self, "pools", ()):
            for actor in pool.actors:
                actor.abandon()

    # What may happen

    @rule()
    def request(self) -> None:
        self.requested += 1
        self.model.request(self.requested)
        self.requests[self.requested] = [pool.request() for pool in self.pools]

    has_held = precondition(lambda self: self.held)
    has_waiting = precondition(lambda self: self.model.queue)
    has_openings = precondition(lambda self: self.model.openings)

    def draw(self, data: st.DataObject, things: list[Any]) -> Any:
        return data.draw(st.sampled_from(things))

    @has_held
    @rule(data=st.data(), how=st.sampled_from(["clean", "in transaction", "broken", "discarded"]))
    def give_back(self, data: st.DataObject, how: str) -> None:
        number = self.draw(data, self.held)
        self.held.remove(number)
        self.return_(number, how)

    def return_(self, number: int, how: str) -> None:
        for pool, conn in zip(self.pools, self.conns[number], strict=True):
            if how != "clean":
                conn.pgconn.transaction_status = IN_TRANSACTION
                conn.cleanable = how == "in transaction"
            pool.putconn(conn, discard=how == "discarded")
        if how in ("clean", "in transaction"):
            self.model.give(number)
        else:
            self.model.close_conn(number)

    @has_held
    @has_waiting
    @rule(data=st.data())
    def give_back_to_one_that_is_interrupted(self, data: st.DataObject) -> None:
        number = self.draw(data, self.held)
        self.held.remove(number)
        request = self.model.queue[0]
        for i, pool in enumerate(self.pools):
            pool.putconn(self.conns[number][i])
            self.requests[request][i].interrupt(Interrupt()).run()
        self.model.give(number)
        self.model.got[request] = Interrupt
        self.model.give(number)

    @has_held
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = self.draw(data, self.held)
        self.held.remove(number)
        del self.conns[number]
        for pool in self.pools:
            pool.check()  # takes notice
        self.model.close_conn(number)
        self.model.closed.remove(number)

    @has_held
    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        number = self.draw(data, self.held)
        for pool, conn in zip(self.pools, self.conns[number], strict=True):
            pool._suspect(conn)
        self.model.suspect_since[self.model.node[number]] = self.model.now

    @has_waiting
    @rule(data=st.data(), interrupted=st.booleans())
    def give_up(self, data: st.DataObject, interrupted: bool) -> None:
        request = self.draw(data, self.model.queue)
        for actor in self.requests[request]:
            if interrupted:
                actor.interrupt(Interrupt()).run()
            else:
                actor.time_is_up().run()
        self.model.leave(request, Interrupt if interrupted else TimedOut)

    @has_openings
    @rule(data=st.data(), node=nodes)
    def opened(self, data: st.DataObject, node: str) -> None:
        self.open(data.draw(st.integers(0, len(self.model.openings) - 1)), node)

    def open(self, which: int, node: str) -> None:
        conns = [pool.connected(node, which) for pool in self.pools]
        self.conns[conns[0].number] = conns
        self.model.opened(which, conns[0].number, node)

    @has_openings
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.model.openings) - 1))
        for pool in self.pools:
            pool.failed(OSError(), which)
        self.model.failed(which)

    @precondition(lambda self: self.conns)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """The server ends a connection, which only shows when somebody looks."""
        number = self.draw(data, list(self.conns))
        for conn in self.conns[number]:
            conn.alive = False
        self.model.dead.add(number)

    @precondition(lambda self: len(self.conns) > len(self.held))
    @rule(data=st.data())
    def give_back_what_is_not_lent(self, data: st.DataObject) -> None:
        number = self.draw(data, sorted(set(self.conns) - set(self.held)))
        for pool, conn in zip(self.pools, self.conns[number], strict=True):
            with pytest.raises(NotLent):
                pool.putconn(conn)

    # Late and rarely, as little can happen afterwards.

    @precondition(lambda self: self.requested > 8)
    @rule(how=st.sampled_from(["close", "end"]))
    def close(self, how: str) -> None:
        for pool in self.pools:
            getattr(pool, how)()
        getattr(self.model, how)()

    # What must be true after each

    @invariant()
    def agree(self) -> None:
        for i, pool in enumerate(getattr(self, "pools", ())):
            self.settle(i)
            pool.check()
            assert pool._snapshot() == self.model.snapshot()
            assert len(pool.asked) == len(self.model.openings)
            assert pool.looked_at == self.model.looked_at
            assert sorted(pool.closed) == sorted(self.model.closed)
        for request, got in self.model.got.items():
            if isinstance(got, int):
                self.held.append(got)
            del self.requests[request]
        if hasattr(self, "model"):
            self.model.got.clear()
            self.model.now += 1

    def settle(self, i: int) -> None:
        """Those requests have ended that should, as they should, and no others."""
        for request, actors in self.requests.items():
            got = self.model.got.get(request)
            if got is None:
                assert actors[i].asleep
            elif isinstance(got, int):
                assert actors[i].result() is self.conns[got][i]
            else:
                with pytest.raises(got):
                    actors[i].result()


def test_any_sequence_of_operations_ends_as_in_lists(cores: list[Any]) -> None:
    run_state_machine_as_test(
        cast(Any, lambda: PoolMachine(cores)),
        settings=settings(max_examples=200, stateful_step_count=40),
    )
