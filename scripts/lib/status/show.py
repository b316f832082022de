"""The reports as text for people. Pure."""

from collections.abc import Sequence
from typing import Any

from scripts.lib.status.judge import NOTHING

GB = 1e9
LINE_MOST = 160
MODELS_MOST = 12  # of several, that have a line of their own
HEAD = (
    "rank",
    "host",
    "state",
    "pid",
    "up",
    "process",
    "model",
    "GPU limit",
    "host memory",
    "beat",
)


def render(reports: list[dict[str, Any]]) -> str:
    """All servers that run or should; or that nothing runs."""
    shown = [one for one in reports if one["state"] != NOTHING]
    if shown:
        return "\n\n".join(render_one(one) for one in shown)
    if not reports:
        return "nothing runs: no server was started from this checkout"
    ended = "; ".join(f"port {one['port']}: {one['detail']}" for one in reports)
    return f"nothing runs ({ended})"


def render_one(one: dict[str, Any]) -> str:
    """One server: its state, its load, its ranks, and what is wrong."""
    lines = [f"port {one['port']}: {one['state']}{_what(one)}"]
    if one["state"] != "ok":
        lines.append(f"  {one['detail']}")
    lines += [f"  {line}" for line in (_since(one), _load(one)) if line]
    lines += [f"  {line}" for line in _models(one)]
    if one["last_failure"]:
        lines.append(f"  last failure: {one['last_failure']}")
    if one["state"] not in ("ok", "elsewhere") and one["last_line"]:
        lines.append(f"  last line of the log: {one['last_line'][:LINE_MOST]}")
    if one["state"] != "elsewhere":
        lines.append(f"  log: {one['log']}")
    if one["ranks"]:
        lines += ["", *(f"  {line}" for line in _table(one))]
    wrong = [text for text in one["problems"] if text != one["detail"]]
    if wrong:
        lines += ["", *(f"  ! {text}" for text in wrong)]
    if one["hint"]:
        lines += ["", f"  {one['hint']}"]
    return "\n".join(lines)


def _what(one: dict[str, Any]) -> str:
    how = ", ".join(
        str(one[key]) for key in ("parallel", "backend") if one[key] != "none" and one[key]
    )
    ranks = f" on {one['world_size']} rank(s)" if one["world_size"] else ""
    model = f", {one['model']}" if one["model"] else ""
    return f"{model}{ranks}{f' ({how})' if how else ''} at {one['url']}"


def _since(one: dict[str, Any]) -> str:
    parts = []
    if one["uptime_s"] is not None:
        parts.append(f"up {age(one['uptime_s'])}")
    if one["supervisor_pid"]:
        parts.append(f"supervisor {one['supervisor_pid']}")
    if one["state"] != "elsewhere":
        parts.append(f"restarts {one['restarts']}")
    return ", ".join(parts)


def _load(one: dict[str, Any]) -> str:
    """Queue and speed, as far as rank 0 told them."""
    if one["running"] is None:
        return ""
    text = f"running {one['running']}{_of(one['max_batch'])}"
    text += f", waiting {one['queued']}{_of(one['queue_max'])}"
    if one["paused"]:
        text += f", paused {one['paused']}"
    speeds = [
        f"{one[key]:.1f} tokens/s {what}"
        for key, what in (("generated_tokens_per_s", "out"), ("prompt_tokens_per_s", "in"))
        if one[key] is not None
    ]
    if one["ttft_p50_s"] is not None:
        speeds.append(f"first token after {one['ttft_p50_s']:.2f} s")
    text += "".join(f", {speed}" for speed in speeds)
    kv = one["kv_tokens"] or {}
    if kv.get("capacity"):
        text += f", KV {kv.get('used')} of {kv['capacity']} tokens"
    disk = one["prefix_disk"] or {}
    if disk.get("limit_bytes"):
        used, limit = (size(disk.get(name, 0)) for name in ("bytes", "limit_bytes"))
        text += f", prefixes on disk {used} of {limit}, {disk.get('hit_tokens')} tokens read back"
    return text


def _models(one: dict[str, Any]) -> list[str]:
    """Those that are loaded, or of which there is something to say; then the others."""
    lines, others = [], []
    for model in one["models"]:
        name, state, why = model.get("id"), model.get("state"), model.get("why")
        if state == "unloaded" and not why or len(lines) == MODELS_MOST:
            others.append(str(name))
            continue
        words = [f"loading {model.get('loaded_share', 0):.0%}" if state == "loading" else state]
        if state != "unloaded" and model.get("size_bytes"):
            words.append(size(model["size_bytes"]))
        words += ["pinned"] * bool(model.get("pinned"))
        why = f": {why}" if why and why != state else ""
        lines.append(f"model {name}: {', '.join(map(str, words))}{why}")
    if others:
        more = f" and {len(others) - MODELS_MOST} more" if len(others) > MODELS_MOST else ""
        lines.append(f"not loaded: {', '.join(others[:MODELS_MOST])}{more}")
    return [line[:LINE_MOST] for line in lines]


def _of(limit: Any) -> str:
    return "" if limit is None else f" of {limit}"


def _table(one: dict[str, Any]) -> list[str]:
    hosts = {host["host"]: host for host in one["hosts"]}
    rows = [HEAD, *(_row(rank, hosts[rank["host"]]) for rank in one["ranks"])]
    # A column in which nothing is known says nothing.
    kept = [i for i in range(len(HEAD)) if i < 4 or any(row[i] != "-" for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in kept]
    return [
        "  ".join(row[i].ljust(w) for i, w in zip(kept, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(rank: dict[str, Any], host: dict[str, Any]) -> Sequence[str]:
    state = rank["state"]
    if state == "loading" and rank["total_bytes"]:
        state = f"loading {100 * (rank['loaded_bytes'] or 0) // rank['total_bytes']}%"
    limit = size(rank["gpu_limit_bytes"])
    if host["gpu_wired_limit_mb"] == 0:
        limit = "default" if limit == "-" else f"{limit} (default)"
    memory = "-"
    if host["memory_total_bytes"]:
        memory = f"{size(host['memory_used_bytes'])} of {size(host['memory_total_bytes'])}"
    beat = rank["heartbeat_age_s"]
    return (
        str(rank["rank"]),
        rank["host"],
        state,
        "-" if rank["pid"] is None else str(rank["pid"]),
        "-" if rank["uptime_s"] is None else age(rank["uptime_s"]),
        size(rank["rss_bytes"]),
        size(rank["model_memory_bytes"]),
        limit,
        memory,
        "-" if beat is None else f"{beat:.1f} s",
    )


def size(count: int | None) -> str:
    """Bytes in words."""
    if count is None:
        return "-"
    return f"{count / GB:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def age(seconds: float) -> str:
    """A time that has passed, in its two largest units."""
    whole = int(seconds)
    for unit, letter, smaller, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {letter} {whole % unit // smaller} {small}"
    return f"{whole} s"
