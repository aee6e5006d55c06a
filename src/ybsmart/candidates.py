"""Who is asked for a connection, in which order, and what the outcome means for whom.

Three sources for `dialing.dial`: a user's connection (`NodeSource`), one for the node list
(`ControlSource`), and a look whether nodes are back (`ProbeSource`). They reserve and return places
in the counts and tell the cluster about the health of its nodes. None of them does any I/O.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors, pq

from . import steering
from ._core import hosts
from .addresses import host_port
from .dialing import HEDGE_DELAY, Target, Trial
from .errors import Unreachable
from .faults import Fault, printable
from .request import Request

if TYPE_CHECKING:
    from .cluster import Cluster


# Seconds of silence after which a node of the next level is tried as well.
LEVEL_DELAY = 1.0


def describe(target: Target) -> str:
    """A configured host in a message."""
    host = target.host or target.hostaddr or "the default host"
    return host_port(host, target.port) if target.port else host


def _under_name(name: str, targets: Iterable[Target]) -> list[Target]:
    """The targets under another name, apart from those whose own has yet to be resolved."""
    return [t._replace(host=name) if t.hostaddr else t for t in targets]


class _Source:
    """What the sources have in common."""

    raises_callers_fault = True
    intro = "no host of the connection string could be reached"

    def __init__(self, request: Request) -> None:
        self._request = request
        self.reasons: dict[str, BaseException] = {}

    def conninfo(self, target: Target) -> bytes:
        return self._request.conninfo_for(target)

    def other_name(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> Target | None:
        return None

    def failed(self, trial: Trial, error: psycopg.OperationalError, fault: Fault) -> None:
        self.reasons[trial.name] = error

    def dropped(self, trial: Trial) -> None:
        pass

    def exhausted(self) -> psycopg.Error:
        return Unreachable.because(self.intro, self.reasons)


class NodeTrial(Trial):
    """A node, tried for a user's connection or to see whether it is back."""

    def __init__(
        self, host: hosts.Host, targets: list[Target], names: Iterable[str], hedge_delay: float
    ) -> None:
        super().__init__(host.info.address, targets, hedge_delay)
        self.host = host
        self.names = list(names)  # other names it may go by
        self.lease: hosts.Lease | None = None


class _NodesSource(_Source):
    """A source whose candidates are nodes of a known cluster."""

    def __init__(self, cluster: Cluster, request: Request) -> None:
        super().__init__(request)
        self._cluster = cluster

    def _trial(self, host: hosts.Host, hedge_delay: float) -> NodeTrial:
        request = self._request
        names = list(dict.fromkeys([request.preferred_name, host.info.host, *request.names]))
        names = [name for name in names if name]
        targets = self._cluster.targets(host.info, request.properties.address_map)
        first = names.pop(0)
        if first != host.info.host:
            targets = _under_name(first, targets)
        return NodeTrial(host, targets, names, hedge_delay)

    def other_name(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> Target | None:
        if not isinstance(trial, NodeTrial) or not trial.names:
            return None  # a configured host goes by its own name only
        if not self._request.may_need_another_name(pgconn):
            return None
        return target._replace(host=trial.names.pop(0))

    def _answered(self, trial: NodeTrial, target: Target, pgconn: pq.abc.PGconn) -> None:
        record = trial.host.info
        if target.host != record.host or self._request.preferred_name:
            self._request.preferred_name = target.host if target.host in self._request.names else ""
        self._cluster.answered(trial.host, time.monotonic() - trial.started, self._request)
        self._cluster.reached_by(record, target)


class NodeSource(_NodesSource):
    """The nodes that a user's request may go to, and at last the configured hosts."""

    def __init__(self, cluster: Cluster, request: Request) -> None:
        super().__init__(cluster, request)
        self.lease: hosts.Lease | None = None
        """The place of the connection that won; None if it goes to no known node."""
        policy = request.properties.policy
        self._policy = policy
        self._tiers = cluster.tiers(policy)
        self._tried: set[hosts.Host] = set()
        self._configured = list(request.targets) if policy.may_leave_the_list() else []
        self.intro = f"none of the {policy.describe()} could be connected to"

    def next(self) -> Trial | None:
        if self._configured and self._cluster.on_detour():
            # No node has been reachable for a while, and a configured host has.
            return self._next_configured()
        try:
            lease = steering.reserve(self._cluster.table, self._tiers, self._tried or None)
        except steering.NodesFull:
            if not self._tried:
                raise
            # Full but for what this request has tried or is trying: go on with that. The
            # configured hosts would be a way round the cap.
            return None
        if lease is None:
            return self._next_configured()
        self._tried.add(lease.host)
        delay = self._cluster.hedge_delay(lease.host)
        if not self._has_equal(lease.host):
            # A busy near node is better than a far one.
            delay = max(delay, LEVEL_DELAY)
        trial = self._trial(lease.host, delay)
        trial.lease = lease
        return trial

    def _has_equal(self, host: hosts.Host) -> bool:
        """Whether the level of this host has another one to try."""
        now = time.monotonic()
        tier = next(tier.hosts for tier in self._tiers if host in tier.hosts)
        return any(h not in self._tried and h.down_until <= now for h in tier)

    def _next_configured(self) -> Trial | None:
        tried = {host.info.address for host in self._tried}
        while self._configured:
            target = self._configured.pop(0)
            name = describe(target)
            if name not in tried:
                return Trial(f"{name} (as configured)", [target], HEDGE_DELAY)
        return None

    def won(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> bool:
        if isinstance(trial, NodeTrial):
            self._answered(trial, target, pgconn)
            self.lease = trial.lease
        else:
            self._cluster.start_detour(self._request)
        return True

    def failed(self, trial: Trial, error: psycopg.OperationalError, fault: Fault) -> None:
        super().failed(trial, error, fault)
        if isinstance(trial, NodeTrial):
            self._release(trial)
            if fault in (Fault.NODE, Fault.DOUBTFUL):
                self._cluster.failed(trial, error, fault, self._request.properties)

    def dropped(self, trial: Trial) -> None:
        if isinstance(trial, NodeTrial):
            self._release(trial)
            if trial.silent():
                error = errors.ConnectionTimeout(f"no answer within {trial.hedge_delay:.2f} s")
                self._cluster.failed(trial, error, Fault.NODE, self._request.properties)

    def give_back(self) -> None:
        """The connection that won has come to nothing."""
        if self.lease is not None:
            self.lease.release()

    def exhausted(self) -> psycopg.Error:
        if not self.reasons:
            return psycopg.OperationalError(
                f"the cluster has no {self._policy.describe()} (load_balance={self._policy.mode})"
            )
        self._cluster.lost(self._request)
        return super().exhausted()

    @staticmethod
    def _release(trial: NodeTrial) -> None:
        if trial.lease is not None:
            trial.lease.release()


class ControlSource(_Source):
    """Servers that can list the nodes: the known ones in service, the configured, the others."""

    def __init__(self, request: Request, cluster: Cluster | None = None) -> None:
        super().__init__(request)
        self.target: Target | None = None
        """The one that has been connected to."""
        configured = [(describe(target), [target]) for target in request.targets]
        if cluster is None:
            self._left = configured
            return
        in_service, down = cluster.known()
        # At random, so that not everybody asks the same server.
        random.shuffle(in_service)
        address_map = request.properties.address_map
        self._left = [(n.address, cluster.targets(n, address_map)) for n in in_service]
        self._left += configured
        self._left += [(n.address, cluster.targets(n, address_map)) for n in down]

    def next(self) -> Trial | None:
        if not self._left:
            return None
        name, targets = self._left.pop(0)
        if self._request.preferred_name:
            targets = _under_name(self._request.preferred_name, targets)
        return Trial(name, targets, HEDGE_DELAY)

    def other_name(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> Target | None:
        names = self._request.names
        if not names or target.host in names or not self._request.may_need_another_name(pgconn):
            return None
        return target._replace(host=names[0])

    def won(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> bool:
        self.target = target
        self.name = trial.name
        return True


class ProbeSource(_NodesSource):
    """Nodes that are down, all at the same time, to see which of them are back."""

    raises_callers_fault = False

    def __init__(self, cluster: Cluster, request: Request, down: list[hosts.Host]) -> None:
        super().__init__(cluster, request)
        self._left = down
        self.dead: dict[hosts.Host, str] = {}
        """Those that are not, and why."""
        self.silent: set[hosts.Host] = set()
        """Those of them that have said nothing in all the time there was."""
        self.mute: set[hosts.Host] = set()
        """Those of them whose system has taken the connection, and whose server says nothing."""

    def next(self) -> Trial | None:
        return self._trial(self._left.pop(), 0.0) if self._left else None

    def won(self, trial: Trial, target: Target, pgconn: pq.abc.PGconn) -> bool:
        assert isinstance(trial, NodeTrial)
        pgconn.finish()
        self._answered(trial, target, pgconn)
        return False

    def failed(self, trial: Trial, error: psycopg.OperationalError, fault: Fault) -> None:
        assert isinstance(trial, NodeTrial)
        if fault in (Fault.NODE, Fault.DOUBTFUL):
            self.dead[trial.host] = printable(str(error))
            if isinstance(error, errors.ConnectionTimeout):
                self.silent.add(trial.host)
                if trial.reached:
                    self.mute.add(trial.host)
        else:
            # It has answered; that the credentials may be out of date is not its fault.
            self._cluster.answered(trial.host, None, None)
