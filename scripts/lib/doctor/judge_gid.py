"""The addresses of the RDMA ports: the GIDs that JACCL needs, the bridge that takes them. Pure."""

from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster, interface_of
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, SKIP, WARN, Finding, Fix, listed
from scripts.lib.doctor.judge_rdma import no_devices

MESH_NEEDS_NO_BRIDGE = 3  # with so many nodes a bridge is a loop


def _captured(facts: HostFacts, devices: tuple[str, ...]) -> list[str]:
    """Interfaces of ours that the Thunderbolt Bridge has."""
    return [name for name in map(interface_of, devices) if name in (facts.bridge or ())]


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
                    f"{device} has no IPv4-mapped GID: {interface} has no IPv4 address",
                    '"No IPv4-mapped GID for this device", or RTR errno 22 or 96',
                    _address_fix(cluster, interface),
                )


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
    """No port of ours is in the Thunderbolt Bridge."""
    nodes = len(cluster.plan.hosts)
    for facts in cluster.macs:
        captured = _captured(facts, cluster.plan.devices(facts.host))
        if facts.bridge is None:
            yield Finding(
                "bridge", facts.host, SKIP, facts.why("ifconfig") or "ifconfig did not say"
            )
        if not captured:
            continue
        known = [facts.device_ports.get(f"rdma_{name}") for name in captured]
        no_gid = any(port is not None and port.active and not port.mapped for port in known)
        words = f"bridge0 has {listed(captured)} as member{'s' * (len(captured) > 1)}"
        if nodes >= MESH_NEEDS_NO_BRIDGE:
            words += f", and {nodes} nodes make it a loop"
        elif no_gid:
            words += ", and the device has no IPv4-mapped GID"
        serious = no_gid or nodes >= MESH_NEEDS_NO_BRIDGE
        yield Finding(
            "bridge",
            facts.host,
            FAIL if serious else WARN,
            words,
            "RTR errno 22 or 96, or packet storms that slow the whole network",
            Fix(
                "until the next restart; to stay: System Settings, Network, ..., Manage Virtual "
                "Interfaces, delete Thunderbolt Bridge, or "
                "sudo networksetup -setnetworkserviceenabled 'Thunderbolt Bridge' off",
                command=_bridge_command("deletem", captured),
                undo=_bridge_command("addm", captured),
            ),
        )


def _bridge_command(verb: str, members: list[str]) -> str:
    return " && ".join(f"sudo /sbin/ifconfig bridge0 {verb} {name}" for name in members)
