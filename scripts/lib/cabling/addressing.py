"""Which ports need another IPv4 address, and the commands that give it.

The commands are macOS's own and lasting. Each cable has a small subnet of its own, so where one
end needs an address, the other end needs one to match. A subnet is taken that is free: no Mac of
ours has an address near it. Nothing is run here.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from scripts.lib.cabling import ends
from scripts.lib.cabling.bridge import quoted
from scripts.lib.cabling.cabling import Cable, End
from scripts.lib.cabling.ends import DOWN, MASKS, Fault, Side, find_faults
from scripts.lib.cabling.network import Network, Service
from scripts.lib.cabling.ports import natural

# The first that no network of ours overlaps. The last is kept for measurements, and is nobody's.
BASES = ("10.77", "172.30", "198.18")
SUBNET = "{base}.{cable}.{side}/30"
MOST_CABLES = 250


@dataclass(frozen=True)
class Need:
    """An end to change. address: what to give it, None where it only has to be switched on.

    faults: why; none where the far end alone has them.
    """

    end: End
    address: IPv4Interface | None
    faults: tuple[Fault, ...]

    def has(self, kind: str) -> bool:
        return any(fault.kind == kind for fault in self.faults)


def find_needs(
    networks: Mapping[str, Network],
    links: Sequence[Cable],
    order: Sequence[str],
    faults: Sequence[Fault] | None = None,
) -> list[Need]:
    """Every end to change, by cable. A cable without a fault is left as it is.

    order: hosts by rank. Cables are numbered along it, so that all who ask get the same addresses.
    faults: None for those that there are.
    """
    faults = find_faults(networks, links) if faults is None else faults
    needs = []
    kept = _kept(networks, links, faults)
    for number, link in enumerate(numbered(links, order), 1):
        mine = {end: tuple(f for f in faults if f.end == end) for end in (link.a, link.b)}
        kinds = {fault.kind for found in mine.values() for fault in found}
        if not kinds:
            continue
        pair = ends.sides(networks, link)
        if kinds == {DOWN}:
            needs += [Need(end, None, found) for end, found in mine.items() if found]
            continue
        if kinds == {MASKS} and (need := _same_mask(*pair, mine)):
            needs.append(need)
            continue
        addresses = _free_subnet(number, kept)
        kept.append(addresses[0].network)
        for side, address in zip(pair, addresses, strict=True):
            if mine[side.end] or side.address != address:
                needs.append(Need(side.end, address, mine[side.end]))
    return needs


def numbered(links: Sequence[Cable], order: Sequence[str]) -> list[Cable]:
    """Cables by the ranks of their ends, then by receptacle."""

    def place(link: Cable) -> tuple:
        ranks = sorted(
            (order.index(end.host), end.port.receptacle or "") for end in (link.a, link.b)
        )
        return ranks[0][0], ranks[1][0], natural(ranks[0][1])

    return sorted(links, key=place)


def _kept(
    networks: Mapping[str, Network], links: Sequence[Cable], faults: Sequence[Fault]
) -> list[IPv4Network]:
    """The subnets that stay: of all interfaces but those whose cable gets another."""
    wrong = {fault.end for fault in faults}
    changed = {
        (end.host, end.interface)
        for link in links
        if {link.a, link.b} & wrong
        for end in (link.a, link.b)
    }
    return [
        address.network
        for host, network in networks.items()
        for interface in network.interfaces.values()
        if (host, interface.name) not in changed
        and not (interface.point_to_point or interface.name.startswith(("lo", "bridge")))
        for address in interface.addresses
    ]


def _free_subnet(number: int, kept: Sequence[IPv4Network]) -> tuple[IPv4Interface, IPv4Interface]:
    """Both addresses of a cable's subnet: its own number, if that is free."""
    wide = [network for network in kept if network.prefixlen < 30]
    bases = [b for b in BASES if not any(n.overlaps(IPv4Network(f"{b}.0.0/16")) for n in wide)]
    for base, cable in itertools.product(bases or BASES, (number, *range(1, MOST_CABLES))):
        a, b = (IPv4Interface(SUBNET.format(base=base, cable=cable, side=s)) for s in (1, 2))
        if not any(network.overlaps(a.network) for network in kept):
            return a, b
    # All are taken, and the next look will name the network that is in the way.
    return a, b


def _same_mask(a: Side, b: Side, mine: Mapping[End, tuple[Fault, ...]]) -> Need | None:
    """The far end's netmask, if the address can stay with it."""
    side, other = (a, b) if mine[a.end] else (b, a)
    address = IPv4Interface(f"{side.address.ip}/{other.address.network.prefixlen}")
    edges = (address.network.network_address, address.network.broadcast_address)
    return None if address.ip in edges else Need(side.end, address, mine[side.end])


def commands(network: Network, need: Need) -> list[str]:
    """What to run on the end's Mac. A service that it has for the port already is used."""
    up = [f"sudo /sbin/ifconfig {need.end.interface} up"] if need.has(DOWN) else []
    if need.address is None:
        return up
    service, there = _service_for(network, need.end)
    port = f"Thunderbolt {need.end.port.receptacle}"
    create = [f"sudo networksetup -createnetworkservice {quoted(service)} {quoted(port)}"]
    address = f"{need.address.ip} {need.address.netmask}"
    return [
        *([] if there else create),
        # Another one that is active would give the port another address, too.
        *(_switch(s.name, s.name == service) for s in there if s.enabled != (s.name == service)),
        f'sudo networksetup -setmanual {quoted(service)} {address} ""',
        *up,
    ]


def undo(network: Network, need: Need) -> list[str]:
    """What takes these back."""
    if need.address is None:
        return [f"sudo /sbin/ifconfig {need.end.interface} down"]
    service, there = _service_for(network, need.end)
    if not there:
        return [f"sudo networksetup -removenetworkservice {quoted(service)}"]
    before = [a for a in network.addresses_of(need.end.interface) if not a.is_link_local]
    back = f"sudo networksetup -setdhcp {quoted(service)}"
    if before:
        address = f"{before[0].ip} {before[0].netmask}"
        back = f'sudo networksetup -setmanual {quoted(service)} {address} ""'
    changed = [s for s in there if s.enabled != (s.name == service)]
    return [back, *(_switch(s.name, s.enabled) for s in changed)]


def _service_for(network: Network, end: End) -> tuple[str, tuple[Service, ...]]:
    """The service to give the address to, and all that the settings have for the port."""
    own = f"RDMA {end.interface}"
    there = network.services_of(end.interface)
    best = min(there, key=lambda s: (s.name != own, not s.enabled), default=None)
    return (best.name if best else own), there


def _switch(service: str, on: bool) -> str:
    state = "on" if on else "off"
    return f"sudo networksetup -setnetworkserviceenabled {quoted(service)} {state}"
