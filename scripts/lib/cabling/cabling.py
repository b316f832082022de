"""Which port is cabled to which, over all hosts, and the rdma matrix that follows.

A cable is known by domain UUIDs: each end reports its own and its peer's. Hosts are named as the
caller names them (their ssh names), in rank order. Nothing here asks a host.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scripts.lib.cabling.ports import Port, natural

RDMA_GBPS = 80.0  # Below it a link was seen to carry no RDMA

Matrix = tuple[tuple[tuple[str, ...] | None, ...], ...]


@dataclass(frozen=True)
class End:
    """One end of a cable."""

    host: str
    port: Port

    @property
    def interface(self) -> str | None:
        return self.port.interface

    @property
    def device(self) -> str | None:
        """The RDMA device, even while ibv_devices does not list it (RDMA off)."""
        return self.port.device or (self.interface and f"rdma_{self.interface}")

    def __str__(self) -> str:
        return f"{self.host} {self.port.label}"


@dataclass(frozen=True)
class Cable:
    """A cable between two of the hosts. a is the end of the host that was listed first.

    both_ways: each end reports the other. A cable that only one end sees is one that is being
    plugged, or whose other end did not answer whole.
    """

    a: End
    b: End
    both_ways: bool = True

    @property
    def speed_gbps(self) -> float | None:
        """The slower of what the ends report; None when neither does."""
        speeds = [end.port.speed_gbps for end in (self.a, self.b)]
        return min((speed for speed in speeds if speed is not None), default=None)

    @property
    def fast_enough(self) -> bool:
        """RDMA can be expected of it. A speed that nobody reports is not held against it."""
        return self.speed_gbps is None or self.speed_gbps >= RDMA_GBPS

    @property
    def via(self) -> tuple[str, ...]:
        """Names of the devices between the two, such as a hub."""
        return next((end.port.peer.via for end in (self.a, self.b) if end.port.peer), ())

    def end_at(self, host: str) -> End:
        """Its end at that host, one of the two."""
        return self.a if self.a.host == host else self.b

    def __str__(self) -> str:
        return f"{self.a} to {self.b}"


def cables(hosts: Mapping[str, Sequence[Port]]) -> list[Cable]:
    """Every cable between two ports of these hosts, by host, then by receptacle of end a.

    A cable from a host to itself is included, since somebody plugged it; one that leaves the
    list of hosts is not (see strangers).
    """
    at = {port.domain: End(host, port) for host, ports in hosts.items() for port in ports}
    found: dict[frozenset[str], Cable] = {}
    for end in at.values():
        peer = end.port.peer
        if peer is None or peer.domain not in at or peer.domain == end.port.domain:
            continue
        other = at[peer.domain]
        seen_back = other.port.peer is not None and other.port.peer.domain == end.port.domain
        found.setdefault(
            frozenset((end.port.domain, peer.domain)), Cable(end, other, both_ways=seen_back)
        )
    order = {host: place for place, host in enumerate(hosts)}

    def place(end: End) -> tuple:
        return order[end.host], natural(end.port.receptacle or end.port.domain)

    straight = []
    for cable in found.values():
        a, b = sorted((cable.a, cable.b), key=place)
        straight.append(Cable(a, b, cable.both_ways))
    return sorted(straight, key=lambda cable: (place(cable.a), place(cable.b)))


def strangers(hosts: Mapping[str, Sequence[Port]]) -> list[End]:
    """The ends of cables that lead to a computer that is not one of these hosts."""
    known = {port.domain for ports in hosts.values() for port in ports}
    return [
        End(host, port)
        for host, ports in hosts.items()
        for port in ports
        if port.peer is not None and port.peer.domain not in known
    ]


def same_macs(hosts: Mapping[str, Sequence[Port]]) -> Iterator[tuple[str, str]]:
    """Pairs of names that are one and the same Mac: they have a port in common."""
    names = list(hosts)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if {port.domain for port in hosts[a]} & {port.domain for port in hosts[b]}:
                yield a, b


def between(links: Sequence[Cable], a: str, b: str) -> list[Cable]:
    """The cables between two hosts, in one order, whichever of the two is asked for first."""
    return [link for link in links if {link.a.host, link.b.host} == {a, b} and a != b]


def matrix(hosts: Sequence[str], links: Sequence[Cable], width: int | None = None) -> Matrix:
    """The rdma matrix of a hostfile: entry i, j holds the devices of host i that lead to host j.

    An entry is None where no cable goes, its own place included. Entries i, j and j, i list the
    same cables in the same order. With width at most that many cables of each pair are used.
    """
    return tuple(
        tuple(
            tuple(link.end_at(a).device or "" for link in between(links, a, b)[:width]) or None
            for b in hosts
        )
        for a in hosts
    )
