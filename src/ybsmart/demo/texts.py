"""What the views say: headlines, reasons and numbers, in words.

Decides the wording, from the numbers of a snapshot. Must never let through a character that a
terminal might obey, whoever it comes from.
"""

from __future__ import annotations

from .load import REQUEST_SECONDS
from .scenario import CONNECTIONS, POOL_SIZE, THREADS, ZONE
from .states import LoadState, NodeState, Phase, Snapshot

TITLE = "ybsmart demo"
SHORT = {
    Phase.START: "servers",
    Phase.UNIFORM: f"{CONNECTIONS} connections",
    Phase.TOPOLOGY: "one zone",
    Phase.POOL: "pool",
    Phase.KILLED: "node killed",
    Phase.BACK: "node back",
    Phase.GROWN: "more load",
}
"""The phases in a few words, in their order."""


def headline(snapshot: Snapshot) -> str:
    """What happens now."""
    victim = printable(snapshot.victim)
    return {
        Phase.START: "Starting three real PostgreSQL servers",
        Phase.UNIFORM: f"{CONNECTIONS} connections with loadBalance=true",
        Phase.TOPOLOGY: f"{CONNECTIONS} connections with topologyKeys={ZONE}",
        Phase.POOL: f"A pool of up to {POOL_SIZE} connections, {THREADS} threads at work",
        Phase.KILLED: f"{victim}, the node in the URL, is killed (SIGKILL)",
        Phase.BACK: f"{victim} is back",
        Phase.GROWN: f"The load doubles: {POOL_SIZE} threads",
        Phase.CLOSED: "Done: everything is closed, nothing is left behind",
    }[snapshot.phase]


def reason(snapshot: Snapshot) -> str:
    """Why it happens as it does."""
    milliseconds = f"{REQUEST_SECONDS * 1000:.0f} ms"
    return {
        Phase.START: "Each answers yb_servers(), as the nodes of a YugabyteDB cluster do.",
        Phase.UNIFORM: "The first asks for the nodes. Each goes to the node that has the fewest.",
        Phase.TOPOLOGY: "The two nodes of that zone share them. The third is for when both fail.",
        Phase.POOL: f"A request takes {milliseconds}, on the node that has the fewest under way.",
        Phase.KILLED: "Requests that were on it fail once. The pool connects to the others "
        "instead.",
        Phase.BACK: "Connections of the others move there, one by one, until all have the same.",
        Phase.GROWN: "New connections go to the node that has the fewest.",
        Phase.CLOSED: "",
    }[snapshot.phase]


def state(node: NodeState) -> str:
    """How a node is."""
    if not node.running:
        return "killed"
    return "passed over" if node.passed_over else "up"


def full_bar(snapshot: Snapshot) -> int:
    """The number of connections that a bar of full length stands for."""
    return (CONNECTIONS if snapshot.load is None else POOL_SIZE) // 2


def rate(node: NodeState) -> str:
    """Requests per second, without the digits that change all the time; empty if unknown."""
    return "" if node.rate is None else f"{round(node.rate, -1):.0f}"


def totals(load: LoadState) -> str:
    """The load in one line."""
    return (
        f"{load.threads} threads, {load.requests} requests, {load.failed} failed, "
        f"longest wait {load.longest * 1000:.0f} ms"
    )


def last_error(load: LoadState) -> str:
    """Why a request failed; empty if none did. The rest of a long message is advice."""
    text = printable(load.error.partition("\n")[0])
    return text if len(text) <= 70 else f"{text[:67]}..."


def printable(text: str) -> str:
    """The text on one line, in ASCII, with everything unusual in it spelled out."""
    return "".join(
        c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode()
        for c in " ".join(text.split())
    )
