"""What still runs on the hosts: our ranks, and whoever has the RDMA devices. Pure."""

from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, listed
from scripts.lib.doctor.processes import OurProcess
from server.protocol.domains import MOST

MAX_QUEUE_PAIRS = 10  # of a device; the next one fails with errno 16


def ranks(cluster: Cluster) -> Iterator[Finding]:
    """No rank is left over from a server that nobody looks after any more."""
    port = str(cluster.plan.http_port)
    for facts in cluster.reached:
        if not facts.tasks_ran:
            yield Finding("ranks", facts.host, SKIP, "it could not be looked at without Python")
        living = [p for p in facts.processes if p.kind.startswith("rank-")]
        stale = [p for p in living if p.run_id not in cluster.running]
        others = [p for p in living if p not in stale and p.port != port]
        for http_port in dict.fromkeys(process.port for process in stale):
            yield _left_over(facts.host, [p for p in stale if p.port == http_port])
        if others:
            yield Finding(
                "ranks",
                facts.host,
                WARN,
                f"the server on port {listed(dict.fromkeys(p.port for p in others))} runs here",
                "two models share the memory; with JACCL, errno 16: a device carries one job",
                Fix(
                    f"HTTP_PORT={others[0].port} scripts/stop_openai_cluster_server.sh, "
                    "unless both are meant to run",
                    here=True,
                ),
            )
        elif living and not stale:
            words = listed(f"{p.kind} runs since {p.age}" for p in living)
            yield Finding("ranks", facts.host, PASS, words)


def _left_over(host: str, stale: list[OurProcess]) -> Finding:
    port = stale[0].port
    return Finding(
        "ranks",
        host,
        FAIL,
        listed(f"{p.kind} (pid {p.pid}) still runs, {p.age} old, without a server" for p in stale),
        "errno 16, later 96; its port and its memory are taken",
        Fix(
            "ends by recorded pid what is left of that server, on every host",
            command=f"HTTP_PORT={port} scripts/stop_openai_cluster_server.sh",
            here=True,
            harmless=True,
        ),
    )


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


def domains(cluster: Cluster) -> Iterator[Finding]:
    """Failed starts have left enough protection domains for another, and none is lost at best."""
    for facts in cluster.macs:
        held, needed = facts.domains, len(cluster.plan.devices(facts.host))
        in_use = any(use.holders for use in (facts.device_use or {}).values())
        if held is None:
            reason = facts.why("ioclasscount") or "ioclasscount did not say"
            yield Finding("domains", facts.host, SKIP, reason)
        elif in_use or cluster.our_pids(facts):
            yield Finding("domains", facts.host, SKIP, f"{held} in use by what runs: see queues")
        elif not held:
            yield Finding("domains", facts.host, PASS, "0")
        else:
            most = cluster.plan.domains
            fits = not most or held + needed < most
            yield Finding(
                "domains",
                facts.host,
                WARN if fits else FAIL,
                f"{held} of about {most or MOST} protection domains are held, and no job runs",
                "each start that fails loses as many as it opens devices; then \"Couldn't allocate "
                'protection domain", until the Mac is restarted',
                Fix(f"restart {facts.host}" + (", before more are lost" if fits else "")),
            )
