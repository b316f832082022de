"""The body of GET /cluster: the whole cluster at a glance, for the page and for status.sh.

Called on rank 0's HTTP threads; reads what others have written, and waits for nobody. Imports no
mlx.
"""

import time
from typing import Any

from server.observe.account import ANSWERED, CUT, FAILED, GENERATING, REFUSED
from server.observe.series import INTERVAL_S
from server.observe.status import Status
from server.observe.versions import versions
from server.protocol.settings import Settings


def describe_cluster(settings: Settings, status: Status) -> dict[str, Any]:
    """Everything that is known now. Sizes in bytes, times in seconds; t and now: Unix time."""
    now = time.time()
    loading = status.phase == "loading"
    fleet, link = status.fleet, status.link
    return {
        "status": status.phase,
        "detail": _detail(status),
        "model": status.model_id,
        "run_id": status.run_id,
        "uptime_s": round(now - status.started, 1),
        "now": round(now, 3),
        "world_size": len(fleet.members) or status.world_size,
        "parallel": settings.parallel,
        "backend": status.backend,
        "versions": versions(),
        "limits": {
            "max_batch": settings.max_batch,
            "queue_max": settings.queue_max,
            "context": status.context or None,
            "req_timeout_s": settings.req_timeout,
        },
        "ranks": fleet.describe(loading),
        "link": {
            "latency_us": link and round(link.latency * 1e6, 1),
            "bandwidth_gb_s": link and round(link.bandwidth / 1e9, 3),
        },
        "running": status.running,
        "queued": status.waiting,
        "paused": status.paused,
        "kv_tokens": {"used": status.kv_used, "capacity": status.kv_capacity},
        "prefix_cache": {
            "entries": status.prefix_entries,
            "tokens": status.prefix_tokens,
            "hit_tokens": status.prefix_hit_tokens,
            "miss_tokens": status.prefix_miss_tokens,
            "evicted_tokens": status.prefix_evicted_tokens,
        },
        "series": {"interval_s": INTERVAL_S, "points": status.series.points()},
        "totals": _totals(status),
        "restarts": status.restarts,
        "last_failure": status.last_failure or None,
        "events": [{"t": t, "text": text} for t, text in list(status.events)],
    }


def _detail(status: Status) -> str:
    if status.phase == "ok" and status.fleet.silent():
        return f"no step has ended for {status.fleet.age():.0f} s: a rank does not answer"
    return status.with_trouble(status.detail)


def _totals(status: Status) -> dict[str, int]:
    """Of the requests for answers: POST to one of the routes that generate."""
    received, closed = status.record.requests()
    outcomes = {ANSWERED: 0, REFUSED: 0, FAILED: 0, CUT: 0}
    for (method, route, _, outcome), count in closed.items():
        if method == "POST" and route in GENERATING:
            outcomes[outcome] += count
    tokens = status.record.tokens()
    return {
        "requests": sum(n for (m, r), n in received.items() if m == "POST" and r in GENERATING),
        **outcomes,
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "generated_tokens": tokens.generated,
    }
