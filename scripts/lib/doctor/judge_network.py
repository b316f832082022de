"""Can the ranks meet over TCP: addresses, ports, the way to rank 0. Pure.

The way is tried on a port of the probe's own. Where ranks meet nobody connects to try: a rank 0
that is just starting would take the caller for a rank.
"""

import shlex
from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster, over_ssh
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, Finding, Fix, listed
from scripts.lib.doctor.judge_guards import LOCAL_NETWORK_ERROR, closed


def _wrong_addresses(cluster: Cluster, facts: HostFacts) -> dict[str, str]:
    """Address in the hostfile to why this host cannot listen there."""
    if facts.bound is not None:
        return {address: error for address, error in facts.bound.items() if error}
    # Without the probe's trial only the addresses of en0 and en1 are known.
    wanted = cluster.plan.addresses[0][:1] if facts.host == cluster.plan.rank0 else ()
    if not facts.addresses:
        return {}
    return {
        address: f"en0 and en1 have {listed(facts.addresses)}"
        for address in wanted
        if address not in facts.addresses
    }


def address(cluster: Cluster) -> Iterator[Finding]:
    """The hosts have the addresses at which the hostfile has the others look for them."""
    for facts in cluster.reached:
        for ip, reason in _wrong_addresses(cluster, facts).items():
            look = "/sbin/ifconfig" if facts.is_mac else "ip -4 address"
            own = (
                f' "ips": ["{facts.addresses[0]}"]'
                if facts.addresses
                else f" the one that {over_ssh(facts.host, look)} shows"
            )
            yield Finding(
                "address",
                facts.host,
                FAIL,
                f"{ip} is not an address of {facts.host}: {reason}",
                "rank 0 fails to bind with errno 49; the others get connect errors 60 or 65",
                Fix(
                    f"set in {cluster.plan.hostfile_name}, for {facts.host}:{own}; give it a "
                    "fixed address, so that it does not change again"
                ),
            )


def port(cluster: Cluster) -> Iterator[Finding]:
    """Nobody listens where the ranks and the HTTP server will."""
    plan = cluster.plan
    for facts in cluster.reached:
        if facts.listeners is None:
            yield Finding("port", facts.host, SKIP, facts.why("listeners") or "not looked at")
            continue
        serves = any(
            process.run_id in cluster.running and process.port == str(plan.http_port)
            for process in facts.processes
        )
        for number in plan.ports_on(facts.host):
            if number not in facts.listeners:
                continue
            pid, command = facts.listeners[number]
            if serves:
                yield Finding("port", facts.host, PASS, "taken by the server that runs")
            elif pid in cluster.our_pids(facts):
                yield Finding("port", facts.host, SKIP, f"{number} is held by a rank: see ranks")
            else:
                yield _taken(cluster, facts, number, pid, command)


def _taken(
    cluster: Cluster, facts: HostFacts, number: int, pid: int | None, command: str
) -> Finding:
    words = command.split()[0].rpartition("/")[2] if command else "another user's process"
    who = f"{words} (pid {pid})" if pid else words
    if number == cluster.plan.http_port:
        symptom = f"the start is refused: port {number} is taken by something else"
        other = "HTTP_PORT=8081"
    else:
        symptom = (
            "rank 0 fails to bind with errno 48; or a stale process takes the other ranks, and "
            "the start hangs"
        )
        other = "CLUSTER_PORT=32423"
    stop = f"kill -TERM {pid}"
    words = f"ends it; or start with another port: {other}"
    if not pid:
        stop = f"sudo /usr/sbin/lsof -nP -iTCP:{number} -sTCP:LISTEN"
        words = f"tells whose it is; or start with another port: {other}"
    return Finding(
        "port",
        facts.host,
        FAIL,
        f"TCP port {number} is taken by {who}",
        symptom,
        Fix(words, command=stop),
    )


def path(cluster: Cluster) -> Iterator[Finding]:
    """Every rank reaches the one that it connects to."""
    for facts in cluster.reached:
        if not facts.tasks_ran:
            yield Finding("path", facts.host, SKIP, "it could not be tried without Python")
        for target in facts.connections:
            finding = _judge_connection(cluster, facts, target)
            if finding is not None:
                yield finding


def _judge_connection(cluster: Cluster, facts: HostFacts, target: dict) -> Finding | None:
    error, peer, ip = target["error"], target["to"], target["address"]
    there = cluster.facts.get(peer)
    if not error:
        return Finding("path", facts.host, PASS, f"reaches {peer}")
    if there is None or not there.reached:
        return Finding("path", facts.host, SKIP, f"{peer} did not answer: see ssh")
    if ip in _wrong_addresses(cluster, there):
        return Finding("path", facts.host, SKIP, f"{ip} is not {peer}'s: see address")
    if there.listen_error or not there.tasks_ran:
        return Finding("path", facts.host, SKIP, f"{peer} could not listen: {there.listen_error}")
    if closed(cluster, there):
        return Finding("path", facts.host, SKIP, f"{peer} keeps others out: see firewall")
    python = there.binary or cluster.plan.python
    if facts.is_mac and LOCAL_NETWORK_ERROR in error:
        fix = Fix(
            f"on {facts.host}: System Settings, Privacy & Security, Local Network: allow the "
            "program that starts python (Terminal, sshd-keygen-wrapper); or start from an ssh "
            "session or a daemon"
        )
    elif there.is_mac:
        fix = Fix(
            f"on {peer}: System Settings, Network, Firewall, Options: allow incoming connections "
            f"for {python}; or there: "
            f"sudo /usr/libexec/ApplicationFirewall/socketfilterfw --add {shlex.quote(python)}"
        )
    else:
        fix = Fix(
            f"let {facts.host} through the firewall of {peer}, to ports "
            + listed(cluster.plan.ports_on(peer))
        )
    return Finding(
        "path",
        facts.host,
        FAIL,
        f"no TCP connection to {peer} at {ip}: {error} (tried on port {target['port']})",
        'connect errors 60 or 65, or a start that hangs at "joining the other ranks"',
        fix,
    )
