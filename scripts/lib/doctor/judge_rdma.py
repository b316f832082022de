"""RDMA on each Mac: switched on, its devices, their ports and addresses, the bridge. Pure.

One cause often shows in several tools. Each judge leaves to another what is that one's: ports are
not blamed where RDMA is off, where the cable is missing or too slow, and so on.
"""

from collections.abc import Iterator

from doctor.cluster import Cluster, interface_of
from doctor.facts import HostFacts
from doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, listed
from doctor.judge_cabling import wrong_cables

MESH_NEEDS_NO_BRIDGE = 3  # with so many nodes a bridge is a loop
MAX_QUEUE_PAIRS = 10  # of a device; the next one fails with errno 16


def rdma(cluster: Cluster) -> Iterator[Finding]:
    """rdma_ctl says enabled."""
    for facts in cluster.macs:
        if facts.rdma == "enabled":
            continue
        found = facts.why("rdma_ctl") or f"rdma_ctl status says {facts.rdma or 'nothing'}"
        yield Finding(
            "rdma",
            facts.host,
            FAIL,
            found,
            '"does not seem to have RDMA enabled"',
            Fix(
                "shut that Mac down, hold its power button until the start-up options appear, "
                "Options, Utilities, Terminal: rdma_ctl enable; restart (newer macOS: System "
                "Settings, search for RDMA)"
            ),
        )


def _no_devices(facts: HostFacts) -> str:
    """Why nothing can be said of this host's devices; "" when something can."""
    if facts.rdma is not None and facts.rdma != "enabled":
        return "RDMA is off: see rdma"
    if facts.rdma is None and facts.why("rdma_ctl"):
        return "see rdma"
    return ""


def devices(cluster: Cluster) -> Iterator[Finding]:
    """The devices of the host's row of the matrix exist."""
    for facts in cluster.macs:
        wanted = cluster.plan.devices(facts.host)
        if reason := _no_devices(facts):
            yield Finding("devices", facts.host, SKIP, reason)
        elif facts.devices is None:
            yield Finding(
                "devices",
                facts.host,
                FAIL,
                facts.why("ibv_devices"),
                "the rank hangs or fails where it opens its devices",
                Fix(f"restart {facts.host}"),
            )
        elif not facts.devices:
            yield Finding(
                "devices",
                facts.host,
                FAIL,
                "RDMA is on, and ibv_devices lists none",
                f'"Could not find device {wanted[0] if wanted else "rdma_enN"} (0 available)"; '
                "older versions crash",
                Fix(
                    "restart that Mac; if there are still none, it has Thunderbolt 4, which has "
                    "no RDMA: look at its technical specifications"
                ),
            )
        elif missing := [name for name in wanted if name not in facts.devices]:
            yield Finding(
                "devices",
                facts.host,
                FAIL,
                f"no {listed(missing)}; it has {listed(facts.devices)}",
                f'"Could not find device {missing[0]} ({len(facts.devices)} available)"',
                Fix(
                    "writes the matrix from the cabling",
                    command=cluster.plan.make_hostfile,
                    here=True,
                ),
            )
        else:
            yield Finding("devices", facts.host, PASS, " ".join(wanted))


def ports(cluster: Cluster) -> Iterator[Finding]:
    """The port of each device is up."""
    for facts in cluster.macs:
        if reason := _no_devices(facts):
            yield Finding("ports", facts.host, SKIP, reason)
        elif not facts.devices:
            yield Finding("ports", facts.host, SKIP, "see devices")
        else:
            for device, peer in cluster.row(facts):
                if device in facts.devices:
                    yield _judge_port(cluster, facts, device, peer)


def _judge_port(cluster: Cluster, facts: HostFacts, device: str, peer: str) -> Finding:
    def finding(verdict: str, *words, **more) -> Finding:
        return Finding("ports", facts.host, verdict, *words, **more)

    command = f"ibv_devinfo:{device}"
    port = facts.device_ports.get(device)
    where = cluster.port(facts, device)
    label = where.label if where else interface_of(device)
    if port is not None and port.active:
        return finding(PASS)
    if facts.hangs(command):
        return finding(
            FAIL,
            f"ibv_devinfo -d {device} hangs",
            "the rank hangs where it opens the device",
            Fix(f"reseat the cable in {label} of {facts.host}; restart {facts.host}"),
        )
    if port is None:
        return finding(
            FAIL,
            f"ibv_devinfo tells nothing of {device}: {facts.why(command) or 'no port in its text'}",
            '"Couldn\'t allocate protection domain", or a crash',
            Fix(f"restart {facts.host}"),
        )
    if reason := _other_cause(cluster, facts, device, peer):
        return finding(SKIP, f"{device} is down: {reason}")
    return finding(
        FAIL,
        f"{device} is {port.state}",
        '"Couldn\'t allocate protection domain"',
        Fix(
            f"reseat or replace the cable between {label} of {facts.host} and {peer}; see that "
            f"RDMA is on at the far end: ssh {peer} /usr/bin/rdma_ctl status"
        ),
    )


def _other_cause(cluster: Cluster, facts: HostFacts, device: str, peer: str) -> str:
    """What else explains a port that is down; "" when nothing does."""
    if device in wrong_cables(cluster, facts):
        return "see cabling"
    link = cluster.cable(facts, device)
    if link is not None and not link.fast_enough:
        return "see speed"
    other = cluster.facts.get(peer)
    if cluster.rdma_is_off(peer):
        return f"RDMA is off on {peer}"
    if other is not None and other.devices == ():
        return f"{peer} has no RDMA devices"
    return ""


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
            yield Finding("gid", facts.host, SKIP, _no_devices(facts) or "see devices and ports")
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
                    _address_fix(cluster, facts, interface),
                )
            else:
                yield Finding(
                    "gid",
                    facts.host,
                    FAIL,
                    f"{device} has no IPv4-mapped GID: {interface} has no IPv4 address",
                    '"No IPv4-mapped GID for this device", or RTR errno 22 or 96',
                    _address_fix(cluster, facts, interface),
                )


def _address_fix(cluster: Cluster, facts: HostFacts, interface: str) -> Fix:
    port = cluster.port(facts, f"rdma_{interface}")
    name = (
        f"Thunderbolt {port.receptacle}"
        if port and port.receptacle
        else f"Thunderbolt N of {interface}"
    )
    return Fix(
        f"gives {interface} itself (not bridge0) an address until the next restart; wait some "
        f"20 s for it. To stay: sudo networksetup -createnetworkservice 'RDMA {interface}' "
        f"'{name}' and -setmanual it an address, or System Settings, Network",
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


def queues(cluster: Cluster) -> Iterator[Finding]:
    """No device is in use by somebody else, and none has lost its queue pairs to a dead job."""
    for facts in cluster.macs:
        if facts.device_use is None:
            yield Finding("queues", facts.host, SKIP, facts.why("ioreg") or "ioreg did not say")
            continue
        for device in cluster.plan.devices(facts.host):
            use = facts.device_use.get(device)
            if use is None:
                continue
            holders = [item for item in use.holders if item[0] not in cluster.our_pids(facts)]
            if len(holders) < len(use.holders):
                yield Finding("queues", facts.host, SKIP, f"{device} is used by ranks: see ranks")
            elif holders:
                who = listed(f"{name} (pid {pid})" for pid, name in holders)
                yield Finding(
                    "queues",
                    facts.host,
                    FAIL,
                    f"{device} is in use by {who}, with {use.queue_pairs} queue pairs",
                    "errno 16 when queue pairs are made, later 96: a device carries one job",
                    Fix(
                        "ends that job; see first that nobody needs it",
                        command="kill -TERM " + " ".join(str(pid) for pid, _ in holders),
                    ),
                )
            elif use.queue_pairs:
                yield Finding(
                    "queues",
                    facts.host,
                    FAIL if use.queue_pairs >= MAX_QUEUE_PAIRS - 1 else WARN,
                    f"{device} has {use.queue_pairs} queue pairs that no process holds, "
                    f"of {MAX_QUEUE_PAIRS}",
                    "errno 16 when queue pairs are made, and it does not pass by itself",
                    Fix(f"restart {facts.host}"),
                )
