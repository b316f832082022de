"""The list of checks, in the order of the table: what each is about, when it applies, what the
hosts are asked for it, and the judge. To add one: a judge, and its line here. Pure.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from scripts.lib.cabling.network import ASKED
from scripts.lib.doctor import (
    judge_access,
    judge_cabling,
    judge_ends,
    judge_gid,
    judge_guards,
    judge_memory,
    judge_model,
    judge_models,
    judge_network,
    judge_rdma,
    judge_running,
    judge_software,
    judge_system,
    judge_unattended,
)
from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.findings import PASS, SKIP, Finding
from scripts.lib.doctor.plan import Plan


@dataclass(frozen=True)
class Check:
    """needs: tools (as commands.py names them) and tasks (as probe.py does)."""

    name: str
    about: str
    judge: Callable[[Cluster], Iterator[Finding]]
    needs: tuple[str, ...] = ()
    when: Callable[[Plan], bool] = lambda plan: True
    macs_only: bool = False
    whole_cluster: bool = False


def _rdma(plan: Plan) -> bool:
    return plan.rdma


def _several(plan: Plan) -> bool:
    return len(plan.hosts) > 1


def _hostfile(plan: Plan) -> bool:
    return plan.hostfile is not None


def _matrix(plan: Plan) -> bool:
    return plan.rdma and plan.hostfile is not None


CABLES = ("rdma_ctl", "sysctl", "ibv_devices", "system_profiler", "networksetup")
PORTS = (*CABLES, "ibv_devinfo")
FOLDER = ("model", "check_model", "ls")
MEMORY = ("sysctl", "limit_kept", "meminfo", "mlx", "formats", *FOLDER)

CHECKS = (
    Check(
        "hostfile",
        "the file can be launched: no placeholder left, a whole rdma matrix",
        judge_access.hostfile,
        when=_hostfile,
        whole_cluster=True,
    ),
    Check(
        "ssh",
        "the host lets us in without asking, and its shell prints nothing by itself",
        judge_access.ssh,
    ),
    Check(
        "environment",
        "no variable of another job, no MLX_METAL_FAST_SYNCH that nobody asked for",
        judge_access.environment,
        ("environment",),
    ),
    Check(
        "folders",
        "checkout, Python and model are where ssh may read",
        judge_guards.folders,
        ("ls",),
    ),
    Check(
        "python",
        "the ranks' interpreter is there and has the packages",
        judge_software.python,
        ("versions", "brew", "ls"),
    ),
    Check(
        "versions",
        "Python and packages are the same on all hosts, and those pinned",
        judge_software.versions,
        ("versions",),
    ),
    Check(
        "checkout",
        "the same code at the same path",
        judge_software.checkout,
        ("code", "ls"),
        when=lambda plan: not plan.local,
    ),
    Check("compute", "MLX computes, in time", judge_software.compute, ("mlx", "versions")),
    Check("wheel", "MLX has JACCL", judge_software.wheel, ("mlx",), when=_rdma),
    Check(
        "macos",
        "the same build everywhere, and one that has RDMA",
        judge_system.macos,
        ("sw_vers", "os-release"),
    ),
    Check("chip", "it has Thunderbolt 5", judge_system.chip, ("sysctl",), _rdma, macs_only=True),
    Check(
        "rdma", "RDMA is enabled", judge_rdma.rdma, ("rdma_ctl", "sysctl"), _rdma, macs_only=True
    ),
    Check(
        "devices",
        "the devices of the host's row of the matrix exist",
        judge_rdma.devices,
        ("rdma_ctl", "sysctl", "ibv_devices"),
        _rdma,
        macs_only=True,
    ),
    Check("ports", "their ports are up", judge_rdma.ports, PORTS, _matrix, macs_only=True),
    Check(
        "gid",
        "they have an IPv4-mapped GID, at index 1",
        judge_gid.gid,
        (*PORTS, *ASKED),
        _matrix,
        macs_only=True,
    ),
    Check(
        "bridge",
        "none is in the Thunderbolt Bridge",
        judge_gid.bridge,
        (*PORTS, *ASKED),
        _matrix,
        macs_only=True,
    ),
    Check(
        "ends",
        "the two ends of each cable have addresses that fit, and each hears the other",
        judge_ends.ends,
        (*PORTS, *ASKED),
        _matrix,
        macs_only=True,
    ),
    Check("speed", "their cables run at 80 Gb/s", judge_cabling.speed, CABLES, _matrix, True),
    Check(
        "cabling",
        "each device leads where the matrix says",
        judge_cabling.cabling,
        CABLES,
        _matrix,
        macs_only=True,
    ),
    Check(
        "queues",
        "no other process uses the devices, no queue pairs are lost",
        judge_running.queues,
        ("ioreg", "ranks"),
        _matrix,
        macs_only=True,
    ),
    Check(
        "domains",
        "no protection domains are lost to failed starts",
        judge_running.domains,
        ("ioclasscount", "ioreg", "ranks"),
        _rdma,
        macs_only=True,
    ),
    Check("ranks", "no rank is left over", judge_running.ranks, ("ranks",)),
    Check(
        "address",
        "the hosts have the addresses of the hostfile",
        judge_network.address,
        ("addresses", "getifaddr"),
        _hostfile,
    ),
    Check(
        "port",
        "nobody else listens where ranks meet, or on HTTP_PORT",
        judge_network.port,
        ("listeners", "lsof", "ranks"),
    ),
    Check(
        "firewall",
        "macOS's firewall lets connections in to the ranks' Python",
        judge_guards.firewall,
        ("firewall", "versions", "listen", "connect", "addresses"),
        macs_only=True,
    ),
    Check(
        "path",
        "the ranks reach each other over TCP",
        judge_network.path,
        ("listen", "connect", "addresses", "getifaddr", "firewall", "versions"),
        lambda plan: _several(plan) and (plan.local or _hostfile(plan)),
    ),
    Check("model", "it is whole and the same everywhere", judge_model.model, FOLDER),
    Check(
        "heads",
        "its heads and widths divide by the number of ranks",
        judge_model.heads,
        FOLDER,
        whole_cluster=True,
    ),
    Check(
        "formats",
        "it is known how it writes tool calls, and its chat template shows it tools",
        judge_model.formats,
        ("model", "formats"),
        whole_cluster=True,
    ),
    Check(
        "models",
        "each of MODELS and MODELS_DIR is whole, the same everywhere, and fits",
        judge_models.models,
        ("check_models", "sysctl", "meminfo", "mlx", "ls"),
        lambda plan: plan.several,
    ),
    Check("memory", "the host's share of it fits", judge_memory.memory, MEMORY),
    Check("even", "no host is smaller than the others", judge_memory.even, MEMORY, _several),
    Check(
        "wired",
        "no memory is left wired by a dead job",
        judge_system.wired,
        ("vm_stat", "sysctl", "ranks"),
        macs_only=True,
    ),
    Check("sleep", "the Mac does not sleep", judge_system.sleep, ("pmset",), macs_only=True),
    Check(
        "display",
        "no display is on for good",
        judge_unattended.display,
        ("pmset", "displays", "sw_vers"),
        macs_only=True,
    ),
    Check(
        "power",
        "the Mac starts again after a power failure",
        judge_unattended.power,
        ("pmset",),
        macs_only=True,
    ),
    Check(
        "filevault",
        "no disk waits for a password where a service starts at boot",
        judge_unattended.filevault,
        ("fdesetup", "daemons"),
        macs_only=True,
    ),
    Check("disk", "there is room for logs", judge_system.disk, ("disk",)),
    Check("files", "enough files may be open for mlx-lm", judge_system.files, ("files",)),
)
NAMES = tuple(check.name for check in CHECKS)


def chosen(plan: Plan) -> list[Check]:
    """Those that apply to the plan and were asked for; ssh always, the rest depends on it."""
    return [
        check
        for check in CHECKS
        if (check.name in plan.checks or check.name == "ssh") and check.when(plan)
    ]


def needed(plan: Plan) -> set[str]:
    """What the hosts have to be asked for these."""
    return {name for check in chosen(plan) for name in check.needs}


def judge(cluster: Cluster, only: Iterable[Check] | None = None) -> list[Finding]:
    """Every finding of every check, at least one for each host that was asked."""
    findings = []
    for check in chosen(cluster.plan) if only is None else only:
        if check.macs_only and cluster.reached and not cluster.macs and not cluster.plan.rdma:
            continue  # nobody there for whom it would mean anything
        found = list(check.judge(cluster))
        findings += found
        if not check.whole_cluster:
            said = {finding.host for finding in found}
            findings += [
                _default(check, cluster, host) for host in cluster.facts if host not in said
            ]
    return findings


def _default(check: Check, cluster: Cluster, host: str) -> Finding:
    """Of a host about which the judge had nothing to say."""
    facts = cluster.facts[host]
    if not facts.reached:
        return Finding(check.name, host, SKIP, "no answer: see ssh")
    if check.macs_only and not facts.is_mac:
        return Finding(check.name, host, SKIP, "not a Mac")
    return Finding(check.name, host, PASS)
