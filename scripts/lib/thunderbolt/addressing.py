"""Which ports of the matrix lack an IPv4 address of their own, and the commands that give one.

JACCL finds the far end of a cable by the IPv4 address of the interface (as an RDMA GID). A port
that macOS has put into the Thunderbolt Bridge has none, and in a mesh of three or more the bridge
is a loop. The commands are macOS's own and lasting; each cable gets a small subnet of its own,
numbered alike on both of its Macs. Nothing is run here.
"""

from collections.abc import Iterator, Mapping, Sequence

from thunderbolt.cabling import Cable, End
from thunderbolt.finding import Finding
from thunderbolt.plan import Plan
from thunderbolt.survey import Facts

SUBNET = "10.77.{cable}.{side}"
SUBNET_MASK = "255.255.255.252"


def advise_addresses(facts: Mapping[str, Facts], plan: Plan) -> Iterator[Finding]:
    """A warning for each host that has such ports among those that the plan uses."""
    used = plan.used
    for host in plan.order or ():
        fact = facts[host]
        mine = [link.end_at(host) for link in used if host in (link.a.host, link.b.host)]
        bridged = [end for end in mine if end.interface in fact.bridged]
        bare = [end for end in mine if end not in bridged and end.interface not in fact.addresses]
        wrong = []
        if bridged:
            verb = "are" if len(bridged) > 1 else "is"
            wrong.append(f"{_names(bridged)} {verb} in the Thunderbolt Bridge (bridge0)")
        if bare:
            verb = "have" if len(bare) > 1 else "has"
            wrong.append(f"{_names(bare)} {verb} no IPv4 address")
        if wrong:
            yield Finding(
                "warning",
                f"{host}: {'; '.join(wrong)}; JACCL needs an address of its own on each port",
                (f"on {host}, once:", *commands(host, used, bridge_off=bool(bridged))),
            )


def commands(host: str, used: Sequence[Cable], *, bridge_off: bool) -> list[str]:
    """What to run on that host so that each of its ports among these cables has an address."""
    lines = []
    if bridge_off:
        lines.append('sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off')
    for number, link in enumerate(used, 1):
        if host not in (link.a.host, link.b.host):
            continue
        end = link.end_at(host)
        service = f'"RDMA {end.interface}"'
        address = SUBNET.format(cable=number, side=1 if end == link.a else 2)
        lines += [
            "sudo networksetup -createnetworkservice "
            f'{service} "Thunderbolt {end.port.receptacle}"',
            f'sudo networksetup -setmanual {service} {address} {SUBNET_MASK} ""',
        ]
    return lines


def _names(ends: Sequence[End]) -> str:
    return ", ".join(str(end.interface) for end in ends)
