"""What the facts mean: one report a server, in words and numbers. Pure: facts in, a dict out.

The report is what `status.sh --json` prints. "well" is true when the server serves and nothing
is wrong; "problems" says in words what is not well.
"""

from collections.abc import Mapping
from typing import Any

from scripts.lib.hosts.our_process import is_of_run
from scripts.lib.status.ask import Gathered, LogFacts
from scripts.lib.status.facts import MIB, HostFacts, RankRecord

RUNNING = ("ok", "loading", "draining", "failed", "restarting")  # rank 0's own words
NOTHING = "stopped"  # as asked, or never started
WAITS = (
    "starting",
    "loading",
    "restarting",
    "waiting",
)  # ranks may be missing, and nothing is wrong


def report(gathered: Gathered) -> dict[str, Any]:
    """Everything about one server."""
    server, told, log = gathered.server, gathered.told, _log_of_this_run(gathered)
    body = told.body or {}
    run_id = _run_id(gathered)
    places = _places(gathered)
    ranks = [_rank(number, host, gathered.hosts[host], body, run_id) for number, host in places]
    state, detail = _state(gathered, log, ranks)
    if state in WAITS:
        for rank in ranks:
            rank["state"] = "awaited" if rank["state"] == "gone" else rank["state"]
    problems = [*_problems_of_hosts(gathered), *_problems_of_ranks(ranks, state)]
    if state not in ("ok", NOTHING):
        problems.insert(0, detail)
    return {
        "port": server.port,
        "state": state,
        "detail": detail,
        "well": state == "ok" and not problems,
        "problems": problems,
        "hint": told.hint,
        "url": server.url,
        "model": body.get("model") or server.model,
        "run_id": run_id,
        "supervisor_pid": gathered.supervisor,
        "log": str(server.log),
        "last_line": log.last_line,
        "uptime_s": body.get("uptime_s"),
        "restarts": body.get("restarts", log.restarts),
        "last_failure": body.get("last_failure") or log.last_failure or None,
        "world_size": len(server.hosts) or body.get("world_size"),
        "parallel": body.get("parallel"),
        "backend": body.get("backend"),
        **_load(body),
        "models": _models(body),
        "ranks": ranks,
        "hosts": [_host(facts, body, places) for facts in gathered.hosts.values()],
    }


def _run_id(gathered: Gathered) -> str:
    return gathered.server.run_id or str((gathered.told.body or {}).get("run_id") or "")


def _log_of_this_run(gathered: Gathered) -> LogFacts:
    """Nothing, if the log ends with an earlier run: this one has not written yet."""
    log, run_id = gathered.log, gathered.server.run_id
    return LogFacts() if log.run_id and run_id and log.run_id != run_id else log


def _places(gathered: Gathered) -> list[tuple[int, str]]:
    """Rank and host of each rank; of a server started elsewhere, of those that are here."""
    if gathered.server.hosts:
        return list(enumerate(gathered.server.hosts))
    return [(n, host) for host, facts in gathered.hosts.items() for n in sorted(facts.ranks)]


# -- the server


def _state(gathered: Gathered, log: LogFacts, ranks: list[dict[str, Any]]) -> tuple[str, str]:
    """A word and a sentence."""
    server, told = gathered.server, gathered.told
    alive = [rank for rank in ranks if rank["pid"] is not None]
    if not server.hosts and not gathered.service:
        if not alive:
            return NOTHING, "no rank runs here"
        return "elsewhere", "started on another machine: run status.sh there for all of it"
    if gathered.supervisor is None and gathered.service and not alive:
        return "waiting", f"its service says: {gathered.service}"
    if gathered.supervisor is None:
        return _state_unsupervised(log, alive, server.stopped)
    if told.body is not None:
        status = str(told.body.get("status"))
        detail = str(told.body.get("detail") or status)
        return (status, detail) if status in RUNNING else ("failed", f"unknown status {status!r}")
    if log.pausing:
        return "restarting", f"it failed: {log.last_failure}; {log.pausing}"
    if told.refused and not log.was_ready:
        return "starting", "the ranks are being started"
    if not told.refused and not log.was_ready and told.problem.startswith("no answer"):
        return "starting", "rank 0 does not answer: it waits for the other ranks to join it"
    return "silent", f"rank 0 does not answer: {told.problem}"


def _state_unsupervised(
    log: LogFacts, alive: list[dict[str, Any]], stopped: bool
) -> tuple[str, str]:
    if alive:
        numbers = ", ".join(str(rank["rank"]) for rank in alive)
        return "orphaned", (
            f"rank {numbers} still runs, but its supervisor is gone: ranks leave by themselves "
            "within 30 s; if not, scripts/stop_openai_cluster_server.sh ends them"
        )
    if log.over.startswith(("stopped as asked", "the ranks ended as planned")):
        return NOTHING, log.over
    if stopped:
        return NOTHING, "stopped as asked, its supervisor being gone"
    if log.over:
        return "gave up", f"it gave up: {log.over}"
    if log.last_line:
        return "ended", (
            "its supervisor ended without a word: it was killed, or the machine was started again"
        )
    return NOTHING, "it does not run"


def _load(body: Mapping[str, Any]) -> dict[str, Any]:
    """Queue and speed; None where rank 0 did not say."""
    limits = body.get("limits") or {}
    points = (body.get("series") or {}).get("points") or [{}]
    return {
        "running": body.get("running"),
        "max_batch": limits.get("max_batch"),
        "queued": body.get("queued"),
        "queue_max": limits.get("queue_max"),
        "paused": body.get("paused"),
        "kv_tokens": body.get("kv_tokens"),
        "prefix_disk": (body.get("prefix_cache") or {}).get("disk"),
        "generated_tokens_per_s": points[-1].get("generated_tokens_per_s"),
        "prompt_tokens_per_s": points[-1].get("prompt_tokens_per_s"),
        "ttft_p50_s": points[-1].get("ttft_p50_s"),
    }


def _models(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """As GET /cluster has them; none where there is but one, or rank 0 did not say."""
    told = [one for one in body.get("models") or () if isinstance(one, dict)]
    return told if len(told) > 1 else []


# -- ranks and hosts


def _rank(
    number: int, host: str, facts: HostFacts, body: Mapping[str, Any], run_id: str
) -> dict[str, Any]:
    told = next((r for r in body.get("ranks") or [] if r.get("rank") == number), {})
    record = facts.ranks.get(number)
    process = record.process if record and _is_ours(record) else None
    return {
        "rank": number,
        "host": host,
        "state": _rank_state(facts, record, told, run_id),
        "pid": record.pid if record and process else None,
        "uptime_s": process.age_s if process else None,
        "rss_bytes": process.rss_bytes if process else told.get("rss_bytes"),
        "model_memory_bytes": told.get("memory_used_bytes"),
        "model_memory_peak_bytes": told.get("memory_peak_bytes"),
        "gpu_limit_bytes": _gpu_limit(facts, told),
        "heartbeat_age_s": told.get("heartbeat_age_s"),
        "loaded_bytes": told.get("loaded_bytes"),
        "total_bytes": told.get("total_bytes"),
    }


def _is_ours(record: RankRecord) -> bool:
    return record.process is not None and is_of_run(record.process.command, record.run_id)


def _rank_state(
    facts: HostFacts, record: RankRecord | None, told: Mapping[str, Any], run_id: str
) -> str:
    if facts.problem:
        return "unknown"
    if record is None or not _is_ours(record):
        return "gone"
    if record.process.state.startswith("T"):
        return "stopped"
    if run_id and record.run_id != run_id:
        return "left over"
    return str(told.get("state") or "runs")


def _gpu_limit(facts: HostFacts, told: Mapping[str, Any]) -> int | None:
    """What the host allows the GPU: what was set there, or MLX's word of the system's choice."""
    return facts.wired_limit_mb * MIB if facts.wired_limit_mb else told.get("gpu_limit_bytes")


def _host(
    facts: HostFacts, body: Mapping[str, Any], places: list[tuple[int, str]]
) -> dict[str, Any]:
    here = [rank for rank, host in places if host == facts.host]
    told = next((r for r in body.get("ranks") or [] if r.get("rank") in here), {})
    return {
        "host": facts.host,
        "reached": not facts.problem,
        "problem": facts.problem or None,
        "system": told.get("os") or facts.system or None,
        "chip": told.get("chip"),
        "memory_total_bytes": facts.memory_total,
        "memory_used_bytes": facts.memory_used,
        "gpu_wired_limit_mb": facts.wired_limit_mb,
    }


def _problems_of_hosts(gathered: Gathered) -> list[str]:
    return [f"{facts.host} {facts.problem}" for facts in gathered.hosts.values() if facts.problem]


def _problems_of_ranks(ranks: list[dict[str, Any]], state: str) -> list[str]:
    """In words, but not what the state of the server has said already."""
    problems = []
    for rank in ranks:
        name = f"rank {rank['rank']} on {rank['host']}"
        if rank["state"] == "gone" and state in ("ok", "silent", "draining", "elsewhere"):
            problems.append(f"{name} is gone: the supervisor will start all ranks again")
        elif rank["state"] == "stopped":
            problems.append(f"{name} is stopped (SIGSTOP); kill -CONT {rank['pid']} continues it")
        elif rank["state"] == "left over":
            problems.append(
                f"{name} is left over from an earlier start (pid {rank['pid']}): "
                "stop_openai_cluster_server.sh ends it"
            )
        elif rank["state"] == "silent":
            age = rank["heartbeat_age_s"]
            since = "" if age is None else f" for {age:.0f} s"
            problems.append(f"{name} has been silent{since}: its watchdog will end it")
    return problems


def exit_code(reports: list[dict[str, Any]]) -> int:
    """0: all that should run is well; 1: something is not; 3: nothing runs, and nothing should."""
    shown = [one for one in reports if one["state"] != NOTHING]
    if not shown:
        return 3
    return 0 if all(one["well"] or _is_well_elsewhere(one) for one in shown) else 1


def _is_well_elsewhere(one: Mapping[str, Any]) -> bool:
    states = {rank["state"] for rank in one["ranks"]}
    return one["state"] == "elsewhere" and states == {"runs"}
