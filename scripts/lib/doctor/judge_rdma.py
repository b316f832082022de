"""RDMA on each Mac: switched on, its devices, their ports. Pure.

One cause often shows in several tools. Each judge leaves to another what is that one's: ports are
not blamed where RDMA is off, where the cable is missing or too slow, and so on.
"""

from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster, interface_of
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, Finding, Fix, listed
from scripts.lib.doctor.judge_cabling import wrong_cables
from scripts.lib.doctor.judge_system import no_thunderbolt_5


def rdma(cluster: Cluster) -> Iterator[Finding]:
    """rdma_ctl says enabled."""
    for facts in cluster.macs:
        if no_thunderbolt_5(facts):
            yield Finding("rdma", facts.host, SKIP, "see chip")
            continue
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


def no_devices(facts: HostFacts) -> str:
    """Why nothing can be said of this host's devices; "" when something can."""
    if no_thunderbolt_5(facts):
        return "see chip"
    if facts.rdma is not None and facts.rdma != "enabled":
        return "RDMA is off: see rdma"
    if facts.rdma is None and facts.why("rdma_ctl"):
        return "see rdma"
    return ""


def devices(cluster: Cluster) -> Iterator[Finding]:
    """The devices of the host's row of the matrix exist."""
    for facts in cluster.macs:
        wanted = cluster.plan.devices(facts.host)
        if reason := no_devices(facts):
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
        if reason := no_devices(facts):
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
