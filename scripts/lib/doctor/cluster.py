"""The facts of all hosts beside the plan: what every judge gets. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from scripts.lib.cabling.cabling import Cable, End, cables
from scripts.lib.cabling.network import Network
from scripts.lib.cabling.pings import Pings
from scripts.lib.cabling.ports import RDMA_PREFIX, Port
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.plan import Plan
from scripts.lib.hosts.on_hosts import LOCAL_HOST


@dataclass(frozen=True)
class Cluster:
    """facts holds every host that was asked, in rank order. supervised: run ids of our servers
    whose supervisor lives, so that their ranks are no leftovers. pings: what the ends of the cables
    heard from each other."""

    plan: Plan
    facts: dict[str, HostFacts]
    supervised: frozenset[str] = field(default_factory=frozenset)
    pings: Pings = field(default_factory=dict)

    @cached_property
    def reached(self) -> list[HostFacts]:
        return [facts for facts in self.facts.values() if facts.reached]

    @cached_property
    def macs(self) -> list[HostFacts]:
        return [facts for facts in self.reached if facts.is_mac]

    @cached_property
    def running(self) -> frozenset[str]:
        """Run ids of our servers that are looked after, here or on one of the hosts."""
        there = {
            process.run_id
            for facts in self.reached
            for process in facts.processes
            if process.kind == "supervisor"
        }
        return self.supervised | there

    def busy(self, facts: HostFacts) -> bool:
        """A rank of ours lives there."""
        return any(process.kind.startswith("rank-") for process in facts.processes)

    def our_pids(self, facts: HostFacts) -> set[int]:
        return {process.pid for process in facts.processes}

    @cached_property
    def links(self) -> list[Cable]:
        """Every cable between two hosts that told of their ports."""
        return cables({f.host: f.thunderbolt for f in self.reached if f.thunderbolt is not None})

    def port(self, facts: HostFacts, device: str) -> Port | None:
        """The port that an RDMA device belongs to."""
        for port in facts.thunderbolt or ():
            if interface_of(device) == port.interface:
                return port
        return None

    def cable(self, facts: HostFacts, device: str) -> Cable | None:
        """The cable that is plugged into a device's port, if it leads to another of our hosts."""
        port = self.port(facts, device)
        if port is None:
            return None
        end = End(facts.host, port)
        return next((link for link in self.links if end in (link.a, link.b)), None)

    @cached_property
    def networks(self) -> dict[str, Network]:
        """Of the Macs that told of their interfaces."""
        return {f.host: f.network for f in self.macs if f.network and f.network.interfaces}

    @cached_property
    def used(self) -> list[Cable]:
        """The cables that the matrix names and that lead where it says."""
        found = [
            link
            for facts in self.macs
            for device, peer in self.row(facts)
            if (link := self.cable(facts, device)) and peer in (link.a.host, link.b.host)
        ]
        return list(dict.fromkeys(found))

    def row(self, facts: HostFacts) -> Iterator[tuple[str, str]]:
        """(device, host that the hostfile says it leads to) for every device of this host."""
        for peer, cell in self.plan.row(facts.host).items():
            for device in cell:
                yield device, peer

    def rdma_is_off(self, host: str) -> bool:
        """That host says that it has no RDMA."""
        facts = self.facts.get(host)
        return facts is not None and facts.rdma is not None and facts.rdma != "enabled"


def interface_of(device: str) -> str:
    """rdma_en3 is the device of en3."""
    return device.removeprefix(RDMA_PREFIX)


def over_ssh(host: str, command: str) -> str:
    """How a person asks that host from here."""
    return command if host == LOCAL_HOST else f"ssh {host} {command}"
