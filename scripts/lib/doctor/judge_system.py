"""The state of each machine: macOS, sleep, wired memory, disk, open files. Pure."""

import re
from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, gigabytes, most_common
from scripts.lib.doctor.mac_text import version_numbers
from server.protocol.limits import FILES_LEAST, RAISE_FILES_DARWIN, RAISE_FILES_LINUX

LEAST_MACOS = (26, 2)  # the first with RDMA over Thunderbolt
LARGE_FRAMES_MACOS = (26, 3)  # the first with frames above 4 KiB
# macOS itself keeps a few GB wired, more of them on a larger machine.
WIRED_BASE, WIRED_SHARE = 4e9, 0.1
DISK_LEAST, DISK_GOOD = 1e9, 5e9
# With Thunderbolt 4 or older. Of later chips nobody says so here before it is known.
NO_THUNDERBOLT_5 = re.compile(
    r"Apple M[1-5]|Apple M[12] (Pro|Max|Ultra)|Apple M3 (Pro|Max)|Intel.*"
)


def macos(cluster: Cluster) -> Iterator[Finding]:
    """A macOS with RDMA, and the same build everywhere."""
    usual = most_common(facts.macos for facts in cluster.macs if facts.macos)
    for facts in cluster.reached:
        host = facts.host
        if not facts.is_mac:
            if cluster.plan.rdma:
                yield Finding(
                    "macos",
                    host,
                    FAIL,
                    f"it runs {facts.distribution}, and {cluster.plan.backend} needs macOS",
                    '"Cannot initialize jaccl distributed backend"',
                    Fix("use Macs with Thunderbolt 5, or BACKEND=ring"),
                )
            else:
                yield Finding("macos", host, PASS, facts.distribution)
            continue
        if facts.macos is None:
            yield Finding("macos", host, SKIP, facts.why("sw_vers") or "no version was found")
            continue
        version, build = facts.macos
        if cluster.plan.rdma and version_numbers(version) < LEAST_MACOS:
            yield Finding(
                "macos",
                host,
                FAIL,
                f"macOS {version} has no RDMA over Thunderbolt: 26.2 is the first",
                '"does not seem to have RDMA enabled"',
                Fix("on that Mac: System Settings, General, Software Update"),
            )
        elif facts.macos != usual:
            large = {version_numbers(v) >= LARGE_FRAMES_MACOS for v in (version, usual[0])}
            symptom = "frames that one side cannot read: garbled messages, or a hang"
            if len(large) == 1:
                symptom = "drivers that were never tried together: garbled messages, hangs"
            yield Finding(
                "macos",
                host,
                FAIL if cluster.plan.rdma else WARN,
                f"macOS {version} ({build}), the others {usual[0]} ({usual[1]})",
                symptom,
                Fix(
                    "bring all Macs to the same build, the newest of them: "
                    "softwareupdate --list, or System Settings, General, Software Update"
                ),
            )
        else:
            yield Finding("macos", host, PASS, f"{version} ({build})")


def chip(cluster: Cluster) -> Iterator[Finding]:
    """The Mac is one of those with Thunderbolt 5."""
    for facts in cluster.macs:
        if not facts.chip:
            yield Finding("chip", facts.host, SKIP, facts.why("sysctl") or "sysctl did not say")
        elif no_thunderbolt_5(facts):
            yield Finding(
                "chip",
                facts.host,
                FAIL,
                f"{facts.chip} has no Thunderbolt 5, which RDMA needs, whatever rdma_ctl says",
                '"Could not find device rdma_enN (0 available)", or "does not seem to have RDMA '
                'enabled"',
                Fix(
                    "leave it out, or serve without RDMA: scripts/make_hostfile.sh --ring-tcp. "
                    "Thunderbolt 5 have M3 Ultra, M4 Pro and Max, M5 Pro and Max, and later ones: "
                    "look at the technical specifications"
                ),
            )
        else:
            yield Finding("chip", facts.host, PASS, facts.chip)


def no_thunderbolt_5(facts: HostFacts) -> bool:
    """It is known that this Mac has none."""
    return NO_THUNDERBOLT_5.fullmatch(facts.chip) is not None


def sleep(cluster: Cluster) -> Iterator[Finding]:
    """A Mac that sleeps takes its links along."""
    for facts in cluster.macs:
        if facts.sleep is None:
            yield Finding("sleep", facts.host, SKIP, facts.why("pmset") or "pmset did not say")
        elif facts.sleep:
            yield Finding(
                "sleep",
                facts.host,
                WARN,
                f"it sleeps after {facts.sleep} min",
                "unreachable in the morning; links dead after idleness",
                Fix(
                    "or System Settings, Energy: prevent automatic sleeping",
                    command="sudo /usr/bin/pmset -a sleep 0",
                    undo=f"sudo /usr/bin/pmset -a sleep {facts.sleep}",
                ),
            )


def wired(cluster: Cluster) -> Iterator[Finding]:
    """Memory that a crashed job left wired comes back with a restart alone."""
    for facts in cluster.macs:
        if facts.wired is None or facts.memory is None:
            yield Finding("wired", facts.host, SKIP, facts.why("vm_stat", "sysctl"))
        elif cluster.busy(facts):
            yield Finding("wired", facts.host, SKIP, "a rank runs there")
        elif facts.wired > WIRED_BASE + WIRED_SHARE * facts.memory:
            yield Finding(
                "wired",
                facts.host,
                WARN,
                f"{gigabytes(facts.wired)} are wired, and no rank of ours runs",
                "out of memory while loading, or a kernel panic: a job that was killed left it",
                Fix("stop what else uses the GPU; if it stays, restart that Mac"),
            )
        else:
            yield Finding("wired", facts.host, PASS, gigabytes(facts.wired))


def disk(cluster: Cluster) -> Iterator[Finding]:
    """Room for the log and the environment."""
    for facts in cluster.reached:
        free = facts.disk_free
        if free is None:
            yield Finding("disk", facts.host, SKIP, facts.why("disk") or "not looked at")
        elif free >= DISK_GOOD:
            yield Finding("disk", facts.host, PASS, f"{gigabytes(free)} free")
        else:
            yield Finding(
                "disk",
                facts.host,
                FAIL if free < DISK_LEAST else WARN,
                f"{gigabytes(free)} free where {cluster.plan.checkout} is",
                '"No space left on device" in the middle of a copy, an update or a log',
                Fix("make room: old models are the largest; du -sh on the folders above it"),
            )


def files(cluster: Cluster) -> Iterator[Finding]:
    """The hard limit of open files, to which mlx-lm raises its own."""
    for facts in cluster.reached:
        hard = facts.open_files
        if hard is None:
            yield Finding("files", facts.host, SKIP, facts.why("files") or "not looked at")
        elif hard >= FILES_LEAST:
            yield Finding("files", facts.host, PASS)
        else:
            how = RAISE_FILES_DARWIN if facts.is_mac else RAISE_FILES_LINUX
            yield Finding(
                "files",
                facts.host,
                FAIL,
                f"at most {hard:.0f} files may be open: must be at least {FILES_LEAST}",
                "the start is refused, as mlx-lm cannot be imported there",
                Fix(f"{how}; log in anew"),
            )
