"""From the facts of all hosts to a hostfile's content: mesh or ring, rank order, devices.

Pure: nothing is asked, printed or written here. make_plan always returns a Plan; where the cabling
does not carry the topology, its hosts are None and its findings hold errors.

What JACCL does with a matrix, from MLX's source: a mesh joins each pair over every device of its
entry, and from 0.32.4 on divides messages of 512 KB and more among them; shorter ones, and all of
an older MLX, go over the first. A ring uses every device of an entry, up to four.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scripts.lib.cabling.cabling import Cable, End, between, cables, matrix
from scripts.lib.cabling.survey import Facts
from scripts.lib.hosts.reach import MOST_RANKS

RING_MAX_CABLES = 4
RINGS_LOOKED_AT = 10_000  # More than a mesh of eight has
TOPOLOGIES = ("mesh", "ring")
BACKENDS = {"mesh": "jaccl", "ring": "jaccl-ring"}


@dataclass(frozen=True)
class Plan:
    """What a hostfile would hold.

    order: hosts by rank; None when the cabling does not carry the topology. links: every cable
    between two hosts, those to prefer first. width: cables of a pair that the matrix names.
    """

    topology: str
    order: tuple[str, ...] | None
    links: tuple[Cable, ...]
    width: int = 0

    @property
    def usable(self) -> list[Cable]:
        return [link for link in self.links if is_usable(link)]

    @property
    def used(self) -> list[Cable]:
        """The cables that the matrix names."""
        if self.order is None:
            return []
        pairs = neighbours(self.order) if self.topology == "ring" else pairs_of(self.order)
        return [link for a, b in pairs for link in between(self.usable, a, b)[: self.width]]

    def hostfile(self, facts: Mapping[str, Facts], envs: Sequence[str] = ()) -> dict:
        """The file's content, in the format of mlx.launch. Needs an order."""
        rows = matrix(self.order, self.used)
        return {
            "backend": BACKENDS[self.topology],
            "envs": list(envs),
            "hosts": [
                {
                    "ssh": host,
                    # Rank 0's is where the ranks meet; with the others' BACKEND=ring works, too.
                    "ips": [address] if (address := facts[host].lan_address) else [],
                    "rdma": [_cell(devices) for devices in row],
                }
                for host, row in zip(self.order, rows, strict=True)
            ],
        }


def _cell(devices: tuple[str, ...] | None) -> None | str | list[str]:
    return list(devices) if devices and len(devices) > 1 else devices and devices[0]


def ring_hostfile(hosts: Sequence[str], facts: Mapping[str, Facts], envs: Sequence[str]) -> dict:
    """A hostfile for the ring backend over the ordinary network: no RDMA, no Thunderbolt."""
    return {
        "backend": "ring",
        "envs": list(envs),
        "hosts": [{"ssh": host, "ips": [facts[host].lan_address]} for host in hosts],
    }


def make_plan(facts: Mapping[str, Facts], topology: str | None = None) -> Plan:
    """The best plan for these hosts, in their order. topology: mesh, ring, or None to choose.

    A mesh is chosen where there is one, since a message then takes one hop; a ring otherwise. In
    a ring the ranks follow the cables, with the first host as rank 0.
    """
    links = cables({host: fact.ports for host, fact in facts.items()})
    links.sort(key=lambda link: doubts(link, facts))  # Stable: by receptacle among equals.
    usable = [link for link in links if is_usable(link)]
    hosts = tuple(facts)
    if topology != "ring" and len(hosts) <= MOST_RANKS:
        width = min(len(between(usable, a, b)) for a, b in pairs_of(hosts))
        if width:
            return Plan("mesh", hosts, tuple(links), width)
    if topology != "mesh":
        found = _widest_ring(hosts, usable)
        if found:
            return Plan("ring", found[0], tuple(links), found[1])
    return Plan(topology or "mesh", None, tuple(links))


def is_usable(link: Cable) -> bool:
    """A matrix can name it: it links two hosts, fast enough, by interfaces that have names."""
    named = link.a.interface and link.b.interface
    return bool(named and link.fast_enough and link.a.host != link.b.host)


def doubts(link: Cable, facts: Mapping[str, Facts]) -> int:
    """How much speaks against a cable where there is a choice; the least comes first."""
    ends = (link.a, link.b)
    return (
        8 * any(is_beside_ethernet(end) for end in ends)
        + 4 * (not link.both_ways or bool(link.via))
        + 2 * any(end.port.device is None for end in ends)
        + any(end.interface in facts[end.host].bridged for end in ends)
    )


def is_beside_ethernet(end: End) -> bool:
    """The port of a Mac Studio on which RDMA is reported not to work."""
    return end.port.computer == "Mac Studio" and end.interface == "en2"


def pairs_of(hosts: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair, in rank order."""
    return list(itertools.combinations(hosts, 2))


def neighbours(order: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a ring, each once, in rank order."""
    pairs = [(host, order[(i + 1) % len(order)]) for i, host in enumerate(order)]
    return pairs[:1] if len(order) == 2 else pairs


def _widest_ring(hosts: tuple[str, ...], usable: list[Cable]) -> tuple[tuple[str, ...], int] | None:
    """An order of hosts along the cables, back to the first, and the cables of each step."""
    count = {pair: len(between(usable, *pair)) for pair in itertools.permutations(hosts, 2)}

    def walk(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if len(path) == len(hosts):
            if count[path[-1], path[0]]:
                yield path
            return
        for host in hosts:
            if host not in path and count[path[-1], host]:
                yield from walk((*path, host))

    best = None
    for path in itertools.islice(walk(hosts[:1]), RINGS_LOOKED_AT):
        width = min(min(count[pair] for pair in neighbours(path)), RING_MAX_CABLES)
        if best is None or width > best[1]:
            best = path, width
    return best
