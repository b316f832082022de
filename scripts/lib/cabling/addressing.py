"""Which ports of the matrix lack an IPv4 address of their own, and the commands that give one.

JACCL finds the far end of a cable by the IPv4 address of the interface (as an RDMA GID). A port
that macOS has put into the Thunderbolt Bridge has none, and in a mesh of three or more the bridge
is a loop. The commands are macOS's own and lasting. Each cable has a small subnet of its own, so
where one end needs an address, the other end needs one to match. Nothing is run here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scripts.lib.cabling.cabling import End
from scripts.lib.cabling.finding import Finding
from scripts.lib.cabling.plan import Plan
from scripts.lib.cabling.survey import Facts

SUBNET = "10.77.{cable}.{side}"
SUBNET_MASK = "255.255.255.252"


@dataclass(frozen=True)
class Need:
    """A port that needs this address. why: bridged, bare, or peer (the far end's alone changes)."""

    end: End
    address: str
    why: str


def advise_addresses(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    """A warning for each host that has such ports among those that the plan uses."""
    needs = find_needs(facts, plan)
    for host in plan.order or ():
        mine = [need for need in needs if need.end.host == host]
        if not mine:
            continue
        bridged = [need for need in mine if need.why == "bridged"]
        bare = [need for need in mine if need.why == "bare"]
        wrong = []
        if bridged:
            verb = "are" if len(bridged) > 1 else "is"
            wrong.append(f"{_names(bridged)} {verb} in the Thunderbolt Bridge (bridge0)")
        if bare:
            verb = "have" if len(bare) > 1 else "has"
            wrong.append(f"{_names(bare)} {verb} no IPv4 address")
        if wrong:
            text = f"{'; '.join(wrong)}; JACCL needs an address of its own on each port"
        else:
            text = f"{_names(mine)}: the far end needs an address, and this end one to match it"
        fix = [f"on {host}, once:"]
        if bridged:
            fix.append('sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off')
        for need in mine:
            fix += commands(need)
        yield Finding("warning", f"{host}: {text}", tuple(fix))


def find_needs(facts: Mapping[str, Facts], plan: Plan) -> list[Need]:
    """Every port that needs an address. A cable with an address at both ends is left as it is."""
    needs = []
    for number, link in enumerate(plan.used, 1):
        states = [(end, _state(facts[end.host], end)) for end in (link.a, link.b)]
        if all(state == "fine" for _, state in states):
            continue
        for side, (end, state) in enumerate(states, 1):
            address = SUBNET.format(cable=number, side=side)
            if state != "fine":
                needs.append(Need(end, address, state))
            elif facts[end.host].addresses[end.interface] != address:
                needs.append(Need(end, address, "peer"))
    return needs


def _state(fact: Facts, end: End) -> str:
    if end.interface in fact.bridged:
        return "bridged"
    return "fine" if end.interface in fact.addresses else "bare"


def commands(need: Need) -> list[str]:
    """What to run on the port's Mac. The service may exist already; then the first one says so."""
    service = f'"RDMA {need.end.interface}"'
    port = f'"Thunderbolt {need.end.port.receptacle}"'
    return [
        f"sudo networksetup -createnetworkservice {service} {port}",
        f'sudo networksetup -setmanual {service} {need.address} {SUBNET_MASK} ""',
    ]


def _names(needs: list[Need]) -> str:
    return ", ".join(str(need.end.interface) for need in needs)
