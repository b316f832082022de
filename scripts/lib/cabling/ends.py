"""The two ends of each cable compared: does each have an address, and do the two fit together.

JACCL reaches the far end of a cable by the IPv4 address of the port (its GID), and the queue
pairs of ends that do not fit fail to connect (RTR errno 22 or 60). A fault names the end to
change, where that can be told; where it cannot, both. A cable that works has none. Pure, for
make_hostfile and the doctor.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from scripts.lib.cabling.cabling import Cable, End
from scripts.lib.cabling.network import Network

# What is wrong with an end.
BRIDGED, BARE, DOWN = "bridged", "bare", "down"
SELF_ASSIGNED, SUBNETS, TWICE, LAN, MASKS = "self-assigned", "subnets", "twice", "lan", "masks"
SILENT, UNCACHED = "silent", "uncached"  # See pings
# With these the cable works, or may, and something else breaks.
LESSER = (LAN, MASKS, UNCACHED)


@dataclass(frozen=True)
class Fault:
    """kind: as above. text: what is wrong, of that end; it names address and other end."""

    end: End
    kind: str
    text: str

    @property
    def serious(self) -> bool:
        return self.kind not in LESSER


@dataclass(frozen=True)
class Side:
    """An end with what ifconfig says of it. address: of several the one that fits the far end."""

    end: End
    network: Network
    address: IPv4Interface | None

    @property
    def words(self) -> str:
        """`studio-1 en3 (10.77.1.1/30)`."""
        return f"{self.end.host} {self.short}"

    @property
    def short(self) -> str:
        return f"{self.end.interface} ({self.address or 'no IPv4 address'})"

    @property
    def up(self) -> bool:
        found = self.network.interfaces.get(self.end.interface or "")
        return found is None or found.up


def sides(networks: Mapping[str, Network], link: Cable) -> tuple[Side, Side]:
    """Both ends of a cable. Needs the networks of both hosts."""
    ends = (link.a, link.b)
    ours, theirs = (networks[end.host].addresses_of(end.interface) for end in ends)
    pair = next(((a, b) for a in ours for b in theirs if mutual(a, b)), None)
    chosen = pair or (ours[0] if ours else None, theirs[0] if theirs else None)
    a, b = (
        Side(end, networks[end.host], address) for end, address in zip(ends, chosen, strict=True)
    )
    return a, b


def mutual(a: IPv4Interface, b: IPv4Interface) -> bool:
    """Each is where the other looks for it."""
    return a.ip != b.ip and a.ip in b.network and b.ip in a.network


def fits(a: Side, b: Side) -> bool:
    """A ping from one to the other can be expected to arrive."""
    ready = (side.address and side.up and not captured(side) for side in (a, b))
    return all(ready) and mutual(a.address, b.address)


def captured(side: Side) -> bool:
    return bool(side.network.bridge_of(side.end.interface))


def find_faults(networks: Mapping[str, Network], links: Sequence[Cable]) -> list[Fault]:
    """Every fault of these cables, by cable. Cables of hosts without a network are left out."""
    known = [link for link in links if {link.a.host, link.b.host} <= set(networks)]
    lans = {host: list(ordinary(network)) for host, network in networks.items()}
    found: list[Fault] = []
    for link in known:
        a, b = sides(networks, link)
        found += [*_of_one(a, b), *_of_one(b, a)]
        if all(side.address and not captured(side) for side in (a, b)):
            found += _of_both(a, b)
        found += [*_in_a_lan(a, b, lans), *_in_a_lan(b, a, lans)]
    found += _twice(networks, known, found)
    return list({(f.end.host, f.end.interface, f.kind): f for f in found}.values())


def _of_one(side: Side, other: Side) -> Iterator[Fault]:
    """What an end shows by itself. One that is in a bridge needs no other reason."""
    name, far = side.end.interface, f"to {other.end.host} {other.end.interface}"
    if bridge := side.network.bridge_of(name):
        yield Fault(side.end, BRIDGED, f"{name}, {far}, is in {bridge}")
    elif side.address is None:
        down = "is down and " if not side.up else ""
        yield Fault(
            side.end, BARE, f"{name}, {far}, {down}has no IPv4 address{in_its_place(side.network)}"
        )
    elif not side.up:
        yield Fault(side.end, DOWN, f"{side.short}, {far}, is down")


def in_its_place(network: Network) -> str:
    """For a port without an address: a bridge that has one; "" for none."""
    for interface in network.interfaces.values():
        if interface.addresses and interface.name in (network.bridges or ()):
            return f"; {interface.name} has one, {interface.addresses[0].ip}, in its place"
    return ""


def _of_both(a: Side, b: Side) -> list[Fault]:
    """What two ends with addresses show beside each other."""
    if a.address.ip == b.address.ip:
        return [Fault(b.end, TWICE, f"{b.short} has the address of the far end, {a.words}")]
    if mutual(a.address, b.address):
        if a.address.network == b.address.network:
            return []
        # The wider one takes in more than the cable reaches.
        wide, far = sorted((a, b), key=lambda side: side.address.network.prefixlen)
        return [
            Fault(
                wide.end, MASKS, f"{wide.short} has another netmask than the far end, {far.words}"
            )
        ]
    found = []
    for side, other in ((a, b), (b, a)):
        if side.address.is_link_local and not other.address.is_link_local:
            # The other one was given its address; this one found nobody to give it one.
            text = f"{side.short} is self-assigned, and the far end, {other.words}, is not"
            return [Fault(side.end, SELF_ASSIGNED, text)]
        text = f"{side.short} is in another subnet than the far end, {other.words}"
        found.append(Fault(side.end, SUBNETS, text))
    return found


def ordinary(network: Network) -> Iterator[tuple[str, IPv4Network]]:
    """(interface, subnet) of what else a Mac is connected to: neither cables nor itself."""
    for interface in network.interfaces.values():
        aside = interface.name.startswith(("lo", "bridge")) or interface.point_to_point
        off = not interface.up or interface.active is False
        if interface.name in network.thunderbolt or aside or off:
            continue
        for address in interface.addresses:
            if not (address.is_link_local or address.network.prefixlen > 30):
                yield interface.name, address.network


def _in_a_lan(
    side: Side, other: Side, lans: Mapping[str, Sequence[tuple[str, IPv4Network]]]
) -> Iterator[Fault]:
    """The port takes addresses of a network that its Mac, or another of ours, is in."""
    if side.address is None or side.address.is_link_local or captured(side):
        return
    own = [(side.end.host, *lan) for lan in lans[side.end.host]]
    others = [(host, *lan) for host, found in lans.items() for lan in found]
    for host, interface, lan in [*own, *others]:
        if lan.overlaps(side.address.network):
            where = interface if host == side.end.host else f"{interface} of {host}"
            yield Fault(
                side.end,
                LAN,
                f"{side.short}, to {other.words}, takes addresses of the ordinary network, {lan} "
                f"on {where}",
            )
            return


def _twice(
    networks: Mapping[str, Network], links: Sequence[Cable], found: Sequence[Fault]
) -> Iterator[Fault]:
    """The same address at ports of different cables, or at a port and elsewhere."""
    pairs = [sides(networks, link) for link in links]
    ports = {place_of(s.end): (s, o) for a, b in pairs for s, o in ((a, b), (b, a))}
    blamed = {place_of(fault.end) for fault in found}
    for places in _places(networks, ports).values():
        ours = [place for place in places if place in ports]
        if len(places) < 2 or not ours or _its_cables_own(*ports[ours[0]], places):
            continue
        wrong = [p for p in ours if {p, place_of(ports[p][1].end)} & blamed]
        right = [p for p in ours if p not in wrong]
        # One whose cable is right by itself keeps it, unless it is no port's.
        for place in [*wrong, *right[len(ours) == len(places) :]]:
            side, other = ports[place]
            rest = [
                f"{host} {interface}" for host, interface in places if (host, interface) != place
            ]
            text = f"{side.short}, to {other.words}, has the address of {' and '.join(rest)}"
            yield Fault(side.end, TWICE, text)


def _places(
    networks: Mapping[str, Network], ports: Collection[tuple[str, str | None]]
) -> dict[str, list[tuple[str, str]]]:
    """Each address to where it is: (host, interface). What nothing is plugged into has none."""
    at: dict[str, list[tuple[str, str]]] = {}
    for host, network in networks.items():
        for interface in network.interfaces.values():
            if interface.active is False and (host, interface.name) not in ports:
                continue
            for address in interface.addresses:
                if not address.is_loopback:
                    at.setdefault(str(address.ip), []).append((host, interface.name))
    return at


def _its_cables_own(side: Side, other: Side, places: Sequence[tuple[str, str]]) -> bool:
    """Both ends of one cable have it, which is told already; or nobody else can meet it."""
    if set(places) == {place_of(side.end), place_of(other.end)}:
        return True
    lent = side.address is not None and side.address.is_link_local
    return lent and len({host for host, _ in places}) == len(places)


def place_of(end: End) -> tuple[str, str | None]:
    return end.host, end.interface


def self_assigned(
    networks: Mapping[str, Network], links: Sequence[Cable]
) -> list[tuple[Side, Side]]:
    """Cables with such an address at both ends: they work until macOS takes other ones."""
    known = [link for link in links if {link.a.host, link.b.host} <= set(networks)]
    pairs = [sides(networks, link) for link in known]
    return [(a, b) for a, b in pairs if fits(a, b) and a.address.is_link_local]
