"""What macOS keeps from ranks that start over ssh: folders of the user's, and connections. Pure."""

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.commands import FIREWALL
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, Finding, Fix, listed
from scripts.lib.hosts.on_hosts import LOCAL_HOST

LOCAL_NETWORK_ERROR = "EHOSTUNREACH"  # of the Mac that connects, not of the one that listens
PRIVACY = "Operation not permitted"  # what macOS says even to the owner; file modes say another
PRIVATE = "Documents, Desktop, Downloads, iCloud Drive and other volumes"


def folders(cluster: Cluster) -> Iterator[Finding]:
    """Checkout, Python and model are where a rank may read."""
    for facts in cluster.reached:
        paths = {cluster.plan.folders[name]: word for name, word in facts.unread.items()}
        # One that is in another of them fails for the same reason.
        tops = [
            path
            for path in paths
            if not any(str(parent) in paths for parent in PurePosixPath(path).parents)
        ]
        for word in dict.fromkeys(paths[path] for path in tops):
            denied = [path for path in tops if paths[path] == word]
            yield Finding(
                "folders",
                facts.host,
                FAIL,
                f"{listed(denied)} may not be read: {word}",
                f'the rank ends with "{word}", or the launcher does with "Failed to change '
                'directory"',
                let_in(facts, denied) if word == PRIVACY else _modes(denied),
            )


def let_in(facts: HostFacts, denied: list[str]) -> Fix:
    """What opens folders that say Operation not permitted."""
    if not facts.is_mac:
        return Fix(
            f"see what keeps that user from {listed(denied)}: ls -ld, and the mount's options"
        )
    who = (
        "System Settings, Privacy & Security, Full Disk Access: turn on the program that starts "
        "this (Terminal)"
        if facts.host == LOCAL_HOST
        else f"on {facts.host}: System Settings, General, Sharing, Remote Login, the (i) beside "
        'it: turn on "Allow full disk access for remote users"'
    )
    return Fix(
        f"move it out of the folders that macOS guards ({PRIVATE}), such as to ~/mlx-cluster, at "
        f"the same path on every Mac; or {who}, which does not help a service that starts at boot"
    )


def _modes(denied: list[str]) -> Fix:
    words = " ".join(shlex.quote(path) for path in denied)
    return Fix("let the user that ssh logs in as read it, folders above it, too", f"ls -ld {words}")


def firewall(cluster: Cluster) -> Iterator[Finding]:
    """Where ranks listen, macOS's firewall lets connections in to their Python."""
    for facts in cluster.macs:
        if not cluster.plan.ports_on(facts.host):
            continue
        wall = facts.firewall
        if wall is None:
            reason = facts.why("firewall:state") or "socketfilterfw did not say"
            yield Finding("firewall", facts.host, SKIP, reason)
        elif words := closed(cluster, facts):
            yield Finding(
                "firewall",
                facts.host,
                FAIL,
                words,
                'connect errors 60, or a start that hangs at "joining the other ranks"; clients '
                "cannot connect",
                _open(facts),
            )
        else:
            yield Finding("firewall", facts.host, PASS, "on" if wall.on else "off")


def closed(cluster: Cluster, facts: HostFacts) -> str:
    """How this host's firewall keeps others from its ranks; "" if it does not, as far as is known.

    One that is on and does not list the program is blamed where somebody was kept out: it lets in
    what is signed, without a list.
    """
    wall = facts.firewall
    if wall is None or not wall.on:
        return ""
    if wall.blocks_all:
        return "its firewall blocks all incoming connections"
    if facts.binary is None:
        return ""
    allowed = wall.lets_in(facts.binary)
    if allowed is False:
        return f"its firewall blocks {facts.binary}"
    listened = facts.tasks_ran and not facts.listen_error and not any((facts.bound or {}).values())
    kept_out = any(
        target["to"] == facts.host
        and target["error"]
        and LOCAL_NETWORK_ERROR not in target["error"]
        for other in cluster.reached
        for target in other.connections
    )
    if allowed is None and listened and kept_out:
        return f"its firewall is on and does not list {facts.binary}"
    return ""


def _open(facts: HostFacts) -> Fix:
    tool, program = f"sudo {FIREWALL}", shlex.quote(facts.binary or "")
    if facts.firewall.blocks_all:
        return Fix(
            "or System Settings, Network, Firewall, Options: block all incoming connections",
            command=f"{tool} --setblockall off",
            undo=f"{tool} --setblockall on",
        )
    if facts.firewall.lets_in(facts.binary) is False:
        return Fix(
            "or System Settings, Network, Firewall, Options: allow it there",
            command=f"{tool} --unblockapp {program}",
            undo=f"{tool} --blockapp {program}",
        )
    return Fix(
        "the program itself: bin/python3 of a Python for macOS is but what starts it. Homebrew's "
        "has another path after each update, and is to be added again",
        command=f"{tool} --add {program} && {tool} --unblockapp {program}",
        undo=f"{tool} --remove {program}",
    )
