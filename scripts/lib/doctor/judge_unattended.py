"""Can each Mac serve with nobody beside it: its display, power failures, FileVault. Pure.

Sleep is in judge_system.
"""

from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.findings import PASS, SKIP, WARN, Finding, Fix
from scripts.lib.doctor.mac_text import version_numbers

INTERACTIVITY_MACOS = (26,)  # the first reported to end work on the GPU for the display's sake
DISPLAY_SLEEP_MIN = 10


def display(cluster: Cluster) -> Iterator[Finding]:
    """No display is on for good: macOS ends long work on the GPU to keep it fluent."""
    for facts in cluster.macs:
        old = facts.macos and version_numbers(facts.macos[0]) < INTERACTIVITY_MACOS
        if old or facts.display_sleep or facts.displays == 0:
            yield Finding("display", facts.host, PASS)
        elif facts.displays is None or facts.display_sleep is None:
            reason = facts.why("pmset", "displays") or "macOS did not say"
            yield Finding("display", facts.host, SKIP, reason)
        else:
            yield Finding(
                "display",
                facts.host,
                WARN,
                "it has a display, which never turns off",
                "kIOGPUCommandBufferCallbackErrorImpactingInteractivity: while a display is on, "
                "macOS 26 may end long work on the GPU, and the rank with it",
                Fix(
                    "or unplug the display",
                    command=f"sudo /usr/bin/pmset -a displaysleep {DISPLAY_SLEEP_MIN}",
                    undo="sudo /usr/bin/pmset -a displaysleep 0",
                ),
            )


def power(cluster: Cluster) -> Iterator[Finding]:
    """A Mac starts again when its power comes back. Those with a battery have no such setting."""
    for facts in cluster.macs:
        if facts.why("pmset"):
            yield Finding("power", facts.host, SKIP, facts.why("pmset"))
        elif facts.starts_after_power is False:
            yield Finding(
                "power",
                facts.host,
                WARN,
                "it stays off after a power failure",
                "ssh: Operation timed out, until somebody presses its power button",
                Fix(
                    "or System Settings, Energy: start up automatically after a power failure",
                    command="sudo /usr/bin/pmset -a autorestart 1",
                    undo="sudo /usr/bin/pmset -a autorestart 0",
                ),
            )


def filevault(cluster: Cluster) -> Iterator[Finding]:
    """Where a service is to start at boot, no disk waits for a password first."""
    wanted = any(facts.service for facts in cluster.macs)
    for facts in cluster.macs:
        if facts.filevault is None:
            reason = facts.why("fdesetup") or "fdesetup did not say"
            yield Finding("filevault", facts.host, SKIP, reason)
        elif facts.filevault and wanted:
            yield Finding(
                "filevault",
                facts.host,
                WARN,
                "FileVault is on, and a service of ours is to start at boot",
                "after a boot ssh says Permission denied to every key, and nothing is served, "
                "until somebody unlocks this disk",
                Fix(
                    f"after each boot, once, with the password: ssh {facts.host} (macOS 26 or "
                    "later; it hangs up, and lets keys in a moment later); before a restart that "
                    "you want yourself: sudo fdesetup authrestart; or turn FileVault off"
                ),
            )
        else:
            words = "on" if facts.filevault else "off"
            yield Finding("filevault", facts.host, PASS, words)
