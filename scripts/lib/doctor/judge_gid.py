"""The addresses of the RDMA ports: the GIDs that JACCL needs, the bridge that takes them. Pure."""

from collections.abc import Iterator

from scripts.lib.cabling.bridge import (
    Captor,
    by_hand,
    find_captors,
    find_returning,
    for_good,
    for_now,
    inactive,
    quoted,
    saved,
    undo,
)
from scripts.lib.cabling.ends import in_its_place
from scripts.lib.cabling.network import PREFERENCES
from scripts.lib.doctor.cluster import Cluster, interface_of
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, listed
from scripts.lib.doctor.judge_rdma import no_devices

SETTLES_S = 3  # until the bridge shows what its service has become
MESH_NEEDS_NO_BRIDGE = 3  # with so many nodes a bridge is a loop


def _captured(facts: HostFacts, devices: tuple[str, ...]) -> list[str]:
    """Interfaces of ours that some bridge has."""
    names = map(interface_of, devices)
    return [name for name in names if facts.network and facts.network.bridge_of(name)]


def gid(cluster: Cluster) -> Iterator[Finding]:
    """Each device has the IPv4-mapped GID that JACCL looks for, at index 1."""
    for facts in cluster.macs:
        ours = cluster.plan.devices(facts.host)
        captured = _captured(facts, ours)
        active = {
            device: facts.device_ports[device]
            for device in ours
            if device in facts.device_ports and facts.device_ports[device].active
        }
        if not active:
            yield Finding("gid", facts.host, SKIP, no_devices(facts) or "see devices and ports")
        for device, port in active.items():
            interface = interface_of(device)
            if port.mapped and 1 in port.mapped:
                continue
            if interface in captured:
                yield Finding("gid", facts.host, SKIP, f"{interface} is in the bridge: see bridge")
            elif port.mapped:
                yield Finding(
                    "gid",
                    facts.host,
                    WARN,
                    f"the IPv4-mapped GID of {device} is at index {port.mapped[0]}, not 1",
                    "versions of MLX that take index 1 unseen say RTR errno 22 or 60",
                    _address_fix(cluster, interface),
                )
            else:
                yield Finding(
                    "gid",
                    facts.host,
                    FAIL,
                    f"{device} has no IPv4-mapped GID: {_why_not(facts, interface)}",
                    '"No IPv4-mapped GID for this device", or RTR errno 22 or 96',
                    _address_fix(cluster, interface),
                )


def _why_not(facts: HostFacts, interface: str) -> str:
    """Of a port whose device has no such GID."""
    there = facts.network.interfaces.get(interface) if facts.network else None
    if there is not None and there.addresses:
        return f"{interface} has {there.addresses[0].ip}, and the device does not know it"
    has = "has" if there is None or there.up else "is down and has"
    elsewhere = in_its_place(facts.network) if facts.network else ""
    return f"{interface} {has} no IPv4 address{elsewhere}"


def _address_fix(cluster: Cluster, interface: str) -> Fix:
    plan = cluster.plan
    return Fix(
        f"gives {interface} itself (not bridge0) a self-assigned address until the next restart, "
        "after some 20 s; that does if the far end has one of 169.254, too. To stay, addresses "
        f"that match at both ends: {plan.make_hostfile.replace('--force', '--dry-run')} tells "
        "the commands",
        command=f"sudo /usr/sbin/ipconfig set {interface} DHCP",
        undo=f"sudo /usr/sbin/ipconfig set {interface} NONE",
    )


def bridge(cluster: Cluster) -> Iterator[Finding]:
    """No port of ours is in the Thunderbolt Bridge, nor will be after the next start."""
    for facts in cluster.macs:
        if facts.network is None:
            yield Finding(
                "bridge", facts.host, SKIP, facts.why("ifconfig") or "ifconfig did not say"
            )
            continue
        ours = [interface_of(device) for device in cluster.plan.devices(facts.host)]
        for captor in find_captors(facts.network, ours):
            yield _captured_now(cluster, facts, captor, ours)
        for captor in find_returning(facts.network, ours):
            yield _captured_later(facts, captor, ours)


def _captured_now(cluster: Cluster, facts: HostFacts, captor: Captor, ours: list[str]) -> Finding:
    nodes = len(cluster.plan.hosts)
    captured = [name for name in ours if facts.network.bridge_of(name) == captor.name]
    known = [facts.device_ports.get(f"rdma_{name}") for name in captured]
    no_gid = any(port is not None and port.active and not port.mapped for port in known)
    words = f"{captor.name} has {listed(captured)} as member{'s' * (len(captured) > 1)}"
    if captor.service is not None and not captor.service.enabled:
        words += f", although its service {quoted(captor.service.name)} is inactive"
    if nodes >= MESH_NEEDS_NO_BRIDGE:
        words += f", and {nodes} nodes make it a loop"
    elif no_gid:
        words += ", and the device has no IPv4-mapped GID"
        if captor.addresses:
            words += f" ({captor.name} has an address in its place, {captor.addresses[0]})"
    serious = no_gid or nodes >= MESH_NEEDS_NO_BRIDGE
    return Finding(
        "bridge",
        facts.host,
        FAIL if serious else WARN,
        words,
        "RTR errno 22 or 96, or packet storms that slow the whole network",
        _removal(captor),
    )


def _removal(captor: Captor) -> Fix:
    """All steps that are left; what was done already is not offered again."""
    rest = " && ".join([*for_good(captor), *for_now(captor)])
    words = by_hand(captor) or "until the next start, which makes it anew if the settings have it"
    if for_good(captor):
        words = "out of the network settings, of which it keeps a copy, and out of the bridge now"
    first = inactive(captor)
    if not first:
        return Fix(words, command=rest, undo=" && ".join(undo(captor)))
    # configd does its part of it a moment later.
    look = f"sleep {SETTLES_S}; if /sbin/ifconfig {captor.name} | grep -q 'member: '; then"
    return Fix(
        "Apple's TN3205 has it made inactive. macOS is known to leave the ports in, so this looks, "
        f"and only then takes them {words}",
        command=f"{first[0]} && {look} {rest}; fi",
        undo=" && ".join([first[0].removesuffix("off") + "on", *undo(captor)]),
    )


def _captured_later(facts: HostFacts, captor: Captor, ours: list[str]) -> Finding:
    """Its ports are free now. That they will not stay so is known while its service is active."""
    names = listed(name for name in ours if name in captor.ports)
    if captor.service is None or not captor.service.enabled:
        return Finding(
            "bridge", facts.host, PASS, f"{names}: not in {captor.name} now; the settings have it"
        )
    back = f"sudo cp -p {saved(captor)} {PREFERENCES}" if for_good(captor) else ""
    return Finding(
        "bridge",
        facts.host,
        WARN,
        f"{captor.name} takes {names} back at the next start, or when a cable is plugged in",
        "RTR errno 22 or 96, or packet storms that slow the whole network, then",
        Fix(
            by_hand(captor) or "out of the network settings, of which it keeps a copy",
            command=" && ".join(for_good(captor)),
            undo=back,
        ),
    )
