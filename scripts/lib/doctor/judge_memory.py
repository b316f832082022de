"""Does each host hold its share of the model, and some context. Pure; an estimate.

The server measures the same once the model is loaded. Here it is reckoned from config.json, so
that nobody loads half a terabyte to learn that it does not fit; what the KV cache takes is what
check_model.py says.
"""

from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN, Finding, Fix, gigabytes, listed
from scripts.lib.doctor.mac_text import MIB

# macOS lets the GPU wire about two thirds of a small memory and three quarters of a large one.
SMALL_MEMORY, SMALL_SHARE, LARGE_SHARE = 36 * 1024 * MIB, 2 / 3, 3 / 4
LIMIT_DAEMON = "/Library/LaunchDaemons/mlx-cluster.wired-limit"
FOR_THE_SYSTEM = 8 * 1024 * MIB  # left to macOS when the limit is raised
UNEVEN = 0.9  # the smallest, as part of the largest, below which they count as uneven
KV_CONTEXT = 32768  # tokens that a single request should at least have, if the model knows them


def limit(facts: HostFacts) -> float | None:
    """Bytes that the ranks of this host can have."""
    if facts.gpu_limit:
        return facts.gpu_limit
    if facts.memory is None or not facts.is_mac:
        return facts.memory
    if facts.wired_limit:
        return facts.wired_limit
    return default_limit(facts.memory)


def default_limit(memory: int) -> float:
    """What macOS lets the GPU have when nobody has said otherwise."""
    return memory * (SMALL_SHARE if memory <= SMALL_MEMORY else LARGE_SHARE)


def weights(cluster: Cluster) -> int:
    """Bytes of the whole model; 0 when nobody knows."""
    return max((facts.model.weights for facts in cluster.reached if facts.model), default=0)


def share(cluster: Cluster, facts: HostFacts) -> float:
    """Bytes of weights that the ranks of this host will hold; rank 0's the draft model's, too."""
    drafts = (facts.split or {}).get("draft_bytes", 0)
    if dealt(cluster):
        every = sum(limit(one) or 0 for one in cluster.reached)
        return weights(cluster) * (limit(facts) or 0) / every + drafts
    return _even_share(cluster, facts) + drafts


def dealt(cluster: Cluster) -> bool:
    """Whether each host gets layers by its memory: in a pipeline, which PARALLEL=auto takes, too,
    where an even share is too much for a host."""
    limits = [limit(facts) for facts in cluster.reached]
    if not all(limits) or len(cluster.plan.ranks) < 2:
        return False
    ways = next((f.split.get("ways") for f in cluster.reached if f.split), None) or []
    if cluster.plan.parallel == "tensor" or not any("pipeline" in way for way in ways):
        return False
    small = any(
        _even_share(cluster, facts) > most
        for facts, most in zip(cluster.reached, limits, strict=True)
    )
    return small or all("pipeline" in way for way in ways)


def _even_share(cluster: Cluster, facts: HostFacts) -> float:
    return weights(cluster) * len(cluster.plan.ranks_on(facts.host)) / len(cluster.plan.ranks)


def kv_bytes(cluster: Cluster, facts: HostFacts) -> float:
    """Bytes for KV caches on this host: KV_BUDGET_GB, or one request of a good length."""
    here = len(cluster.plan.ranks_on(facts.host))
    if cluster.plan.kv_budget_gb:
        return cluster.plan.kv_budget_gb * 1e9 * here
    config = next((f.model.config for f in cluster.reached if f.model and f.model.config), {})
    text = config.get("text_config")
    sizes = {**config, **(text if isinstance(text, dict) else {})}
    most = sizes.get("max_position_embeddings")
    most = most if isinstance(most, int) else KV_CONTEXT
    tokens = cluster.plan.context_max or min(most, KV_CONTEXT)
    kv = next((f.full["kv"] for f in cluster.reached if f.full and f.full.get("kv")), [])
    # A request too short for KV_BITS has other ones.
    kind = "token_bytes" if tokens >= cluster.plan.kv_bits_from else "whole_token_bytes"
    return sum(
        kv[rank]["request_bytes"] + tokens * kv[rank].get(kind, kv[rank]["token_bytes"])
        for rank in cluster.plan.ranks_on(facts.host)
        if rank < len(kv)
    )


def memory(cluster: Cluster) -> Iterator[Finding]:
    """The host's share of the weights fits, and room for a request beside it."""
    small = _too_small(cluster)
    for facts in cluster.reached:
        most = limit(facts)
        if most is None:
            yield Finding("memory", facts.host, SKIP, facts.why("sysctl", "meminfo") or "not told")
        elif not weights(cluster):
            words = f"{gigabytes(facts.memory or most)}; no model to compare it with"
            yield Finding("memory", facts.host, SKIP, words)
        elif facts.host in small:
            yield Finding("memory", facts.host, SKIP, "smaller than the others: see even")
        else:
            yield _judge_memory(cluster, facts, most)


def _judge_memory(cluster: Cluster, facts: HostFacts, most: float) -> Finding:
    need, kv = share(cluster, facts), kv_bytes(cluster, facts)
    words = f"{gigabytes(need)} of weights, {gigabytes(most)} for the GPU"
    if not facts.is_mac:
        words = f"{gigabytes(need)} of weights, {gigabytes(most)} of memory"
    if need + kv <= most:
        return _kept_over_restarts(facts, need + kv) or Finding("memory", facts.host, PASS, words)
    if need > most:
        symptom = (
            "kIOGPUCommandBufferCallbackErrorOutOfMemory or a kernel panic while loading"
            if facts.is_mac
            else "the kernel ends the rank (OOM) while it loads"
        )
        return Finding("memory", facts.host, FAIL, words, symptom, _more_memory(facts, need + kv))
    cause = "KV_BUDGET_GB" if cluster.plan.kv_budget_gb else "a long request's KV cache"
    return Finding(
        "memory",
        facts.host,
        WARN,
        f"{words}, and {gigabytes(kv)} for {cause}",
        '"no memory left for the KV cache", or long prompts refused with 400',
        _more_memory(facts, need + kv),
    )


def _kept_over_restarts(facts: HostFacts, need: float) -> Finding | None:
    """What it needs beyond macOS's own limit was allowed until the next restart alone."""
    if not facts.wired_limit or facts.memory is None or facts.limit_kept is not False:
        return None
    if need <= default_limit(facts.memory):
        return None
    limit_mb = facts.wired_limit // MIB
    return Finding(
        "memory",
        facts.host,
        WARN,
        f"it fits only with iogpu.wired_limit_mb={limit_mb}, which is gone after a restart",
        "after the next restart: out of memory, or a kernel panic, while loading",
        Fix(
            "writes what sets it at every boot",
            command=keep_limit(limit_mb),
            undo=f"sudo /bin/rm {LIMIT_DAEMON}.plist",
        ),
    )


def keep_limit(limit_mb: int) -> str:
    """The command for a LaunchDaemon that sets the limit; /etc/sysctl.conf is reported not to be
    read by every macOS."""
    write = f"sudo /usr/bin/defaults write {LIMIT_DAEMON}"
    return " && ".join(
        (
            f"{write} Label -string {LIMIT_DAEMON.rpartition('/')[2]}",
            f"{write} ProgramArguments -array /usr/sbin/sysctl iogpu.wired_limit_mb={limit_mb}",
            f"{write} RunAtLoad -bool true",
            f"sudo /bin/chmod 644 {LIMIT_DAEMON}.plist",
        )
    )


def _more_memory(facts: HostFacts, need: float) -> Fix:
    """Raise macOS's limit if that helps, else something has to shrink."""
    words = "a smaller model or quantisation, more nodes, or a lower CONTEXT_MAX or KV_BUDGET_GB"
    if not facts.is_mac or facts.memory is None or need > facts.memory - FOR_THE_SYSTEM:
        return Fix(words)
    new = int((facts.memory - FOR_THE_SYSTEM) / MIB)
    return Fix(
        f"until the next restart (docs/from-scratch.md, Memory, has what keeps it), and leaves "
        f"{gigabytes(FOR_THE_SYSTEM)} to macOS; "
        f"otherwise {words}",
        command=f"sudo /usr/sbin/sysctl iogpu.wired_limit_mb={new}",
        undo=f"sudo /usr/sbin/sysctl iogpu.wired_limit_mb={(facts.wired_limit or 0) // MIB}",
    )


def _too_small(cluster: Cluster) -> list[str]:
    """Hosts on which it does not fit, while it does on the largest one."""
    limits = {f.host: limit(f) for f in cluster.reached if limit(f)}
    if not limits or not weights(cluster):
        return []
    largest = max(limits.values())
    return [
        facts.host
        for facts in cluster.reached
        if facts.host in limits
        and limits[facts.host] < UNEVEN * largest
        and limits[facts.host] < share(cluster, facts) <= largest
    ]


def even(cluster: Cluster) -> Iterator[Finding]:
    """A tensor split is even, so the smallest host sets the limit for all. Layers of a pipeline are
    dealt by memory."""
    limits = {facts.host: limit(facts) for facts in cluster.reached}
    known = [value for value in limits.values() if value]
    small = _too_small(cluster)
    sizes = listed(gigabytes(value) for value in sorted(set(known)))
    for facts in cluster.reached:
        most = limits[facts.host]
        if not most or most >= UNEVEN * max(known):
            continue
        if dealt(cluster):
            words = f"memory is uneven ({sizes}), and layers are dealt by it"
            yield Finding("even", facts.host, PASS, words)
            continue
        need = share(cluster, facts) + kv_bytes(cluster, facts)
        if weights(cluster) and need <= most:
            yield Finding("even", facts.host, PASS, f"the smallest ({sizes}), and it suffices")
            continue
        yield Finding(
            "even",
            facts.host,
            FAIL if facts.host in small else WARN,
            f"memory is uneven ({sizes}), and each rank gets the same share"
            + (f", {gigabytes(share(cluster, facts))}" if weights(cluster) else ""),
            "out of memory, or a kernel panic, on this host first",
            Fix(
                "PARALLEL=auto, a smaller model, or leave this host out"
                if cluster.plan.parallel == "tensor"
                else "a smaller model, or leave this host out"
            ),
        )
