"""Does the rdma matrix match the cables, and are the cables fast. Pure.

What is plugged in where comes from the domain UUIDs of system_profiler, so cables to a host that
did not answer cannot be told from cables to a stranger, and are not judged.
"""

from collections.abc import Iterator

from scripts.lib.cabling.cabling import RDMA_GBPS, End
from scripts.lib.cabling.plan import is_beside_ethernet
from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, SKIP, WARN, Finding, Fix, listed


def speed(cluster: Cluster) -> Iterator[Finding]:
    """Every cable of the matrix runs at 80 Gb/s."""
    for facts in cluster.macs:
        if facts.thunderbolt is None:
            yield Finding("speed", facts.host, SKIP, "see cabling")
            continue
        for device, peer in cluster.row(facts):
            port = cluster.port(facts, device)
            if port is None or not port.plugged or port.speed_gbps is None:
                continue
            if port.speed_gbps < RDMA_GBPS:
                yield Finding(
                    "speed",
                    facts.host,
                    FAIL,
                    f"the cable in {port.label}, to {peer}, runs at {port.speed_gbps:.0f} Gb/s",
                    f"no RDMA on it: {device} stays down",
                    Fix(
                        f"a Thunderbolt 5 cable ({RDMA_GBPS:.0f} Gb/s), in Thunderbolt 5 ports "
                        f"of {facts.host} and {peer}"
                    ),
                )


def wrong_cables(cluster: Cluster, facts: HostFacts) -> dict[str, str]:
    """Device to what is wrong with it, for the devices that do not lead where the matrix says."""
    if facts.thunderbolt is None:
        return {}
    wrong = {}
    told = {f.host for f in cluster.reached if f.thunderbolt is not None}
    for device, peer in cluster.row(facts):
        port = cluster.port(facts, device)
        link = cluster.cable(facts, device)
        if port is None or peer not in told:
            continue  # such a device does not exist (see devices), or its far end did not tell
        if link is None:
            lead = "nowhere" if port.peer is None else "to a Mac that is not in the hostfile"
            if port.attached and port.peer is None:
                lead = f"to {listed(port.attached)}"
            wrong[device] = f"{device} ({port.label}) leads {lead}, the matrix says to {peer}"
            continue
        other = link.b if link.a == End(facts.host, port) else link.a
        if other.host != peer:
            wrong[device] = f"{device} ({port.label}) leads to {other.host}, the matrix says {peer}"
    return wrong


def _wrong_orders(cluster: Cluster, facts: HostFacts) -> Iterator[str]:
    """Lists of several cables that do not name the same cable at the same place on both sides."""
    for peer, cell in cluster.plan.row(facts.host).items():
        other = cluster.facts.get(peer)
        back = cluster.plan.row(peer).get(facts.host, ())
        if other is None or not other.reached or len(cell) < 2:
            continue
        here = [cluster.cable(facts, device) for device in cell]
        there = [cluster.cable(other, device) for device in back]
        if None not in here and here != there and set(here) == set(there):
            yield f"{', '.join(cell)} to {peer} stand in another order than {', '.join(back)} back"


def _beside_ethernet(cluster: Cluster, facts: HostFacts) -> Iterator[str]:
    for device, peer in cluster.row(facts):
        port = cluster.port(facts, device)
        if port is not None and is_beside_ethernet(End(facts.host, port)):
            yield f"{device}, to {peer}, is the port beside Ethernet of a Mac Studio"


def cabling(cluster: Cluster) -> Iterator[Finding]:
    """Each device of the matrix leads where the matrix says."""
    for facts in cluster.macs:
        if facts.thunderbolt is None:
            reason = facts.why("system_profiler", "networksetup") or "system_profiler did not say"
            yield Finding(
                "cabling",
                facts.host,
                WARN,
                f"the cabling could not be read: {reason}",
                "a matrix that does not match the cables says RTR errno 60 after a wait",
                Fix(
                    "look there by hand: System Information, Thunderbolt/USB4, or "
                    "/usr/sbin/system_profiler SPThunderboltDataType"
                ),
            )
            continue
        problems = [*wrong_cables(cluster, facts).values(), *_wrong_orders(cluster, facts)]
        for problem in problems:
            yield Finding(
                "cabling",
                facts.host,
                FAIL,
                problem,
                "RTR errno 60, after a wait",
                Fix(
                    "writes the matrix from the cabling as it is; or move the cable",
                    command=cluster.plan.make_hostfile,
                    here=True,
                ),
            )
        for problem in _beside_ethernet(cluster, facts):
            yield Finding(
                "cabling",
                facts.host,
                WARN,
                problem,
                "RDMA is reported not to work there",
                Fix(
                    f"move the cable to another port of {facts.host}; then this writes the matrix",
                    command=cluster.plan.make_hostfile,
                    here=True,
                ),
            )
