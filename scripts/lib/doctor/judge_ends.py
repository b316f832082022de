"""The two ends of each cable: addresses that fit, and an answer from the far end. Pure.

What is compared, and who is at fault, is the cabling room's; here it becomes findings. An end in a
bridge or without any address is left to the checks that see it by the RDMA device.
"""

from collections.abc import Iterator, Sequence

from scripts.lib.cabling.addressing import Need, commands, find_needs, undo
from scripts.lib.cabling.advise_ends import fix_silent
from scripts.lib.cabling.ends import BARE, BRIDGED, Fault
from scripts.lib.cabling.pings import find_silent
from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.findings import FAIL, SKIP, WARN, Finding, Fix

SYMPTOMS = {
    "down": "RTR errno 22 or 96",
    "twice": "RTR errno 60, or the wrong Mac answers",
    "lan": "hosts of the ordinary network are looked for in the cable: connect errors 60 or 65, or "
    "no way to the router",
    "masks": "one end reaches the other for some addresses alone",
    "silent": "RTR errno 60 or 22, after a wait",
    "uncached": "RTR errno 60 or 22, if it stays so",
}
USUAL = "RTR errno 22 or 60"


def ends(cluster: Cluster) -> Iterator[Finding]:
    """Both ends of every cable of the matrix fit together, and answer each other."""
    for facts in cluster.macs:
        if facts.host not in cluster.networks:
            reason = facts.why("ifconfig") or "ifconfig did not say"
            yield Finding("ends", facts.host, SKIP, reason)
    needs = find_needs(cluster.networks, cluster.used, cluster.plan.hosts)
    for need in needs:
        if not need.faults:
            continue
        if reason := _told_by(cluster, need.faults[0]):
            yield Finding("ends", need.end.host, SKIP, f"{need.end.interface}: see {reason}")
        else:
            yield _misfit(cluster, need, needs)
    for fault in find_silent(cluster.networks, cluster.used, cluster.pings):
        port = cluster.facts[fault.end.host].device_ports.get(fault.end.device or "")
        if port is not None and not port.active:
            yield Finding("ends", fault.end.host, SKIP, f"{fault.end.interface}: see ports")
        else:
            fix = Fix("; ".join(fix_silent(cluster.networks, cluster.used, fault)))
            yield _finding([fault], fix)


def _told_by(cluster: Cluster, fault: Fault) -> str:
    """The check that blames the same end for the same cause; "" for none."""
    if fault.kind == BRIDGED:
        return "bridge"
    port = cluster.facts[fault.end.host].device_ports.get(fault.end.device or "")
    if port is None or not port.active:
        return "ports" if fault.kind == BARE else ""
    return "gid" if fault.kind == BARE and not port.mapped else ""


def _misfit(cluster: Cluster, need: Need, needs: Sequence[Need]) -> Finding:
    network = cluster.networks[need.end.host]
    other = _far_end(cluster, need, needs)
    words = "an address of the cable's own" if need.address else "switches the port on"
    if other is not None:
        words += f"; {other.end.host}, at the far end, gets one to match at the same time"
    if need.address:
        dry = cluster.plan.make_hostfile.replace("--force", "--dry-run")
        words += f": {dry} prints the commands for each"
    # One end alone would leave them apart, so then it is for a person.
    back = "" if other is not None else " && ".join(undo(network, need))
    return _finding(
        need.faults, Fix(words, command=" && ".join(commands(network, need)), undo=back)
    )


def _far_end(cluster: Cluster, need: Need, needs: Sequence[Need]) -> Need | None:
    """What the other end of the cable has to change at the same time."""
    link = next(link for link in cluster.used if need.end in (link.a, link.b))
    far = link.b if link.a == need.end else link.a
    return next((other for other in needs if other.end == far), None)


def _finding(faults: Sequence[Fault], fix: Fix) -> Finding:
    """Of one end. The first of its faults that keeps the cable from working tells the symptom."""
    worst = next((fault for fault in faults if fault.serious), faults[0])
    words = "; ".join(fault.text for fault in faults)
    symptom = SYMPTOMS.get(worst.kind, USUAL)
    return Finding("ends", worst.end.host, FAIL if worst.serious else WARN, words, symptom, fix)
