"""`Tier`: hosts in order of load, among which the next is found at once."""

from __future__ import annotations

import random
from typing import Any

from tests.core.tables import counts, make_table, reserve


def test_a_thousand_hosts_stay_in_order_of_load(core: Any) -> None:
    table, hosts = make_table(core, *map(str, range(1000)))
    tiers, half = table.arrange((hosts,)), table.arrange((hosts[::2],))
    draw = random.Random(3)
    leases: list[Any] = []

    for step in range(4000):
        if leases and draw.random() < 0.4:
            leases.pop(draw.randrange(len(leases))).release()
        else:
            leases.append(table.reserve(half if draw.random() < 0.2 else tiers))
        if step % 500 == 0:
            table.check()

    for lease in draw.sample(leases, 200):
        lease.release()
        chosen = table.reserve(tiers)
        assert chosen.host.count - 1 <= min(host.count for host in hosts if host != chosen.host)
        leases.append(chosen)
    table.check()


def test_many_policies_are_served_alike(core: Any) -> None:
    """Though not all of their tiers are kept in order."""
    table, hosts = make_table(core, *"abc")
    policies = [table.arrange((hosts,)) for _ in range(30)]

    leases = [table.reserve(tiers) for tiers in policies]

    assert counts(table) == {"a": 10, "b": 10, "c": 10}
    assert all(lease.release() for lease in leases)
    table.check()


def test_a_tier_has_its_hosts_as_they_were_given_and_each_once(core: Any) -> None:
    table, (a, b) = make_table(core, *"ab")
    lease = reserve(table, ((b,),))

    (tier,) = table.arrange([[b, a, b]])

    assert tier.hosts == (b, a)
    assert repr(tier) == "<Tier [<Host b count=1>, <Host a count=0>]>"
    assert table.reserve((tier,)).host is a
    assert lease.active
    table.check()
