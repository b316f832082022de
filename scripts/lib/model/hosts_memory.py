"""How much memory the ranks of a model would have: asked of the hosts as the doctor does, of this
machine, or said by whoever has not bought them yet.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.lib.doctor import checks
from scripts.lib.doctor.ask import ask_hosts
from scripts.lib.doctor.facts import HostFacts, read_facts
from scripts.lib.doctor.judge_memory import limit
from scripts.lib.doctor.plan import Plan
from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.verbs.verb_settings import ROOT

GIB = 1 << 30
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Machines:
    """names: of hosts, in rank order. usable: bytes that ranks may have on each, None where that is
    not known, and then why says it. metal: whether they have Apple's GPU. alike: there are as many
    more as anybody wants. shared: all ranks are on the one."""

    names: tuple[str, ...]
    usable: tuple[int | None, ...]
    why: tuple[str, ...]
    metal: bool
    alike: bool = False
    shared: bool = False

    def of_ranks(self, count: int) -> tuple[int | None, ...] | None:
        """Each rank's memory with so many ranks; None where there are not so many hosts."""
        if self.shared:
            (all_of_it,) = self.usable
            return (None if all_of_it is None else all_of_it // count,) * count
        if self.alike:
            return self.usable * count
        return self.usable[:count] if count <= len(self.usable) else None


def said(gigabytes: Sequence[float]) -> Machines:
    """Macs with so much memory each. One number: as many as are wanted."""
    facts = [HostFacts("", system="Darwin", memory=round(size * GIB)) for size in gigabytes]
    return Machines(
        names=tuple(f"{size:g} GB" for size in gigabytes),
        usable=tuple(_usable(one) for one in facts),
        why=("",) * len(facts),
        metal=True,
        alike=len(facts) == 1,
    )


def asked(hosts: Sequence[str], python: str) -> Machines:
    """What these hosts tell, or this machine (LOCAL_HOST)."""
    plan = Plan(
        ranks=tuple(hosts),
        asked=tuple(hosts),
        checks=frozenset({"memory"}),
        backend="ring",
        local=tuple(hosts) == (LOCAL_HOST,),
        checkout=str(ROOT),
        python=python,
        http_port=0,
        cluster_ports=((),) * len(hosts),
        deadline_s=DEADLINE_S,
    )
    raws = {raw.host: raw for raw in ask_hosts(plan, checks.needed(plan), lambda answer: None)}
    facts = [read_facts(raws[host]) for host in hosts]
    return Machines(
        names=tuple(hosts),
        usable=tuple(_usable(one) for one in facts),
        why=tuple(one.trouble or one.why("sysctl", "meminfo") for one in facts),
        metal=all(one.is_mac for one in facts if one.reached)
        if any(one.reached for one in facts)
        else sys.platform == "darwin",
        shared=plan.local,
    )


def _usable(facts: HostFacts) -> int | None:
    most = limit(facts) if facts.reached else None
    return None if most is None else int(most)
