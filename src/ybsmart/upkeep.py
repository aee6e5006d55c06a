"""Work on a cluster that no caller should wait for: the node list, and nodes that are down.

Asks for the list and looks whether dead nodes are back, in one thread at a time for each of the
two, started when there is something to do and ended when there is not. They are daemons that hold
nothing: a process may end while they run. What they find out is the cluster's to judge.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING

import psycopg

from ._core import hosts
from .alarm import Alarm, Completion
from .candidates import ControlSource, ProbeSource
from .dialing import dial
from .discovery import NoDiscovery
from .listing import list_nodes
from .request import Request
from .waiting import run

if TYPE_CHECKING:
    from .cluster import Cluster

logger = logging.getLogger("ybsmart")

# In seconds.
CONNECT_TIMEOUT = 5.0  # for the node list, over all servers
PROBE_TIMEOUT = 5.0
UNDELAYED = 1.0  # between looks at a node that nobody passes over
FIRST_RETRY, LAST_RETRY = 1.0, 60.0  # after a refresh that failed; doubled in between


class _Outage:
    """A node that is being watched."""

    def __init__(self, delay: float, now: float, wait: float, error: str) -> None:
        self.delay = delay  # seconds, by who found it down; 0: it is looked at, not passed over
        self.due = now + wait  # time of the next look
        self.wait = self.pause  # seconds from there to the one after it
        self.error = error
        self.silent = False  # at the last look
        self.mute = False  # likewise, although its system has taken the connection

    @property
    def pause(self) -> float:
        """Seconds between looks, at least."""
        return self.delay or UNDELAYED


class Upkeep:
    """The background work on one cluster.

    `_lock` guards the fields below it. A finaliser, or a signal's handler, may come here while its
    own thread has it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster_ref = weakref.ref(cluster)  # a thread keeps no cluster that is forgotten
        self._lock = threading.RLock()
        self._refresh: Completion | None = None  # under way
        self._not_before = 0.0  # no refresh before that time of the monotonic clock
        self._refreshed = time.monotonic()
        self._retry = 0.0  # seconds after which a failed refresh is repeated; 0 after a success
        self._outages: dict[hosts.Host, _Outage] = {}
        self._prober: Alarm | None = None  # what the thread that looks sleeps on, if there is one

    # The node list

    def refresh_if_due(self, interval: float, request: Request) -> Completion | None:
        """Start a refresh if the list is older than `interval` seconds; return it if it runs.

        Nobody needs to wait for it.
        """
        under_way = self._refresh
        now = time.monotonic()
        if (
            under_way is not None
            or now < self._not_before
            or (now - self._refreshed < interval and not self._retry)
        ):
            return under_way
        refresh = Completion()
        started = False
        try:
            with self._lock:
                if self._refresh is not None:
                    return self._refresh
                self._refresh = refresh
            started = _start("ybsmart-refresh", self._run_refresh, refresh, request)
        finally:
            # Also after an interrupt, or the list would never be refreshed again.
            if not started:
                self._end_refresh(refresh, succeeded=False)
        return refresh

    def refresh_soon(self, request: Request) -> None:
        """Start a refresh, unless the last one was just now."""
        self.refresh_if_due(FIRST_RETRY, request)

    def _run_refresh(self, refresh: Completion, request: Request) -> None:
        succeeded = False
        try:
            succeeded = self._ask(request)
        except Exception:
            logger.exception("looking for the nodes failed; keeping the list there is")
        finally:
            self._end_refresh(refresh, succeeded=succeeded)

    def _end_refresh(self, refresh: Completion, *, succeeded: bool) -> None:
        with self._lock:
            if self._refresh is not refresh:
                return  # it never was, or an interrupt has ended it although its thread had started
            now = time.monotonic()
            self._refreshed = now
            self._retry = 0.0 if succeeded else min(max(2 * self._retry, FIRST_RETRY), LAST_RETRY)
            # With some scatter, so that many processes do not come back all at once.
            self._not_before = now + self._retry * random.uniform(0.8, 1.2)
            self._refresh = None
        refresh.end()

    def _ask(self, request: Request) -> bool:
        """Fetch the list: as the latest that was let in, else as the one who asks."""
        cluster = self._cluster_ref()
        if cluster is None:
            return False
        requests = [r for r in (cluster.request, request) if r is not None]
        for who in dict.fromkeys(requests):
            try:
                listing = list_nodes(ControlSource(who, cluster), CONNECT_TIMEOUT)
            except (psycopg.Error, NoDiscovery) as exc:
                reason: Exception = exc
            else:
                cluster.learn(listing.records, listing.ways_in, who)
                return True
        logger.warning("no server lists the nodes; keeping the list there is: %s", reason)
        return False

    # Nodes that are down

    def watch(
        self, host: hosts.Host, delay: float, error: str, *, at_once: bool, passed_over: bool
    ) -> None:
        """Look at a node until it is back: at once, or after `delay` seconds.

        It is passed over from now on, or only once a look has failed; never if the delay is 0."""
        now = time.monotonic()
        wait = 0.0 if at_once else (delay or UNDELAYED) * random.uniform(1.0, 1.1)
        begun: Alarm | None = None
        started = False
        try:
            with self._lock:
                outage = self._outages.get(host)
                if outage is None:
                    outage = self._outages[host] = _Outage(delay, now, wait, error)
                else:
                    # Those who try it nevertheless, as a last resort, do not make it wait longer.
                    outage.due = min(outage.due, now + wait)
                    outage.delay = outage.delay or delay
                outage.error = error
                if passed_over:
                    self._pass_over(host, outage)
                if self._prober is None:
                    begun = self._prober = Alarm()
            if begun is None:
                self._look_sooner()
            else:
                started = _start("ybsmart-probe", self._run_probes, begun)
        finally:
            # Also after an interrupt, or nobody would ever look again.
            if begun is not None and not started:
                self._end_probes(begun)

    def look_at(self, moved: list[hosts.Host]) -> None:
        """Look at once at those that are down: they have another address now."""
        with self._lock:
            for host in moved:
                if (outage := self._outages.get(host)) is not None:
                    outage.due = time.monotonic()
        self._look_sooner()

    def _look_sooner(self) -> None:
        """An outage is due before what the prober waits for."""
        prober = self._prober
        if prober is not None:
            prober.ring()

    def is_watching(self, host: hosts.Host) -> bool:
        return host in self._outages

    def is_silent(self, host: hosts.Host) -> bool:
        """Whether it said nothing when it was looked at."""
        outage = self._outages.get(host)
        return outage is not None and outage.silent

    def is_mute(self, host: hosts.Host) -> bool:
        """Whether it did so although its system had taken the connection: what it has not answered
        so far will hardly be answered, and the network will never say so."""
        outage = self._outages.get(host)
        return outage is not None and outage.mute

    def is_back(self, host: hosts.Host) -> None:
        """Take the node into service, and look no more."""
        # In one step, or somebody who finds it down meanwhile would have nobody watch it.
        with self._lock:
            self._outages.pop(host, None)
            cluster = self._cluster_ref()
            if cluster is not None:
                cluster.table.mark_up(host)

    def _pass_over(self, host: hosts.Host, outage: _Outage) -> None:
        until = now = time.monotonic()
        if outage.delay:
            # Until the look at it is over. Should there be no look, callers will try it themselves.
            until = max(outage.due, now) + PROBE_TIMEOUT + 1.0
        cluster = self._cluster_ref()
        if cluster is not None:
            cluster.table.mark_down(host, until, outage.error)

    def _run_probes(self, alarm: Alarm) -> None:
        try:
            while (pause := self._look(alarm)) is not None:
                alarm.sleep(pause)
        finally:
            self._end_probes(alarm)

    def _end_probes(self, alarm: Alarm) -> None:
        with self._lock:
            if self._prober is alarm:
                self._prober = None

    def _look(self, alarm: Alarm) -> float | None:
        """One round; the time until the next, None if this thread is to look no more."""
        with self._lock:
            for host in [host for host in list(self._outages) if not host.listed]:
                self._outages.pop(host, None)
            if self._cluster_ref() is None:
                self._outages.clear()
            if self._prober is None:
                # An interrupt has made it seem that this thread had not been started.
                self._prober = alarm
            if self._prober is not alarm or not self._outages:
                self._end_probes(alarm)
                return None
            now = time.monotonic()
            dues = {host: outage.due for host, outage in list(self._outages.items())}
        due = [host for host, at in dues.items() if at <= now]
        if due:
            self._probe(due)
            return 0.0
        return min(dues.values(), default=now) - now

    def _probe(self, due: list[hosts.Host]) -> None:
        cluster = self._cluster_ref()
        request = cluster.request if cluster is not None else None
        dead: dict[hosts.Host, str] = {}
        silent: set[hosts.Host] = set()
        mute: set[hosts.Host] = set()
        if cluster is not None and request is not None:
            source = ProbeSource(cluster, request, list(due))
            try:
                run(dial(source, time.monotonic() + PROBE_TIMEOUT))
            except psycopg.Error:
                pass  # as always: a probe has no winner
            except Exception:
                logger.exception("looking at nodes that are down failed")
            dead, silent, mute = source.dead, source.silent, source.mute
        with self._lock:
            now = time.monotonic()
            for host in due:
                outage = self._outages.get(host)
                if outage is None:
                    continue
                outage.error = dead.get(host, outage.error)
                outage.silent, outage.mute = host in silent, host in mute
                outage.due = now + outage.wait * random.uniform(0.9, 1.1)
                outage.wait = min(2 * outage.wait, 2 * outage.pause)
                self._pass_over(host, outage)


def _start(name: str, target: object, *args: object) -> bool:
    """Start a daemon thread; False where there can be no more, as when the process ends."""
    try:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()  # type: ignore[arg-type]
    except RuntimeError:
        return False
    return True
