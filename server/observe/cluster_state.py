"""The body of GET /cluster: the whole cluster at a glance, for the page and for status.sh.

Called on rank 0's HTTP threads; reads what others have written, and waits for nobody. Imports no
mlx.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from server.observe.account import ANSWERED, CUT, FAILED, GENERATING, REFUSED, Account
from server.observe.live_requests import describe_live
from server.observe.phases import OK
from server.observe.series import INTERVAL_S
from server.observe.status import Status
from server.observe.versions import versions
from server.observe.views import View
from server.protocol.settings import Settings


def describe_cluster(
    settings: Settings,
    status: Status,
    may_stop: Callable[[Account], bool],
    models: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that is known now. Sizes in bytes, times in seconds; t and now: Unix time.
    may_stop: whether whoever asks may end that request. models: those that are served, as they
    stand."""
    now, view = time.time(), status.look()
    ranks, load, link = view.ranks, view.load, view.link
    return {
        "status": view.state.phase,
        "detail": _detail(view),
        "model": view.start.model_id,
        "models": list(models),
        "run_id": view.start.run_id,
        "uptime_s": round(now - view.start.at, 1),
        "now": round(now, 3),
        "world_size": len(ranks.members),
        "parallel": view.capacity.split or settings.parallel,
        "batching": view.capacity.batching or None,
        "kv_precision": view.capacity.kv_precision or None,
        "backend": view.group.backend,
        "versions": versions(),
        "limits": {
            "max_batch": settings.max_batch,
            "queue_max": settings.queue_max,
            "context": view.capacity.context or None,
            "req_timeout_s": settings.req_timeout,
            "req_total_timeout_s": settings.req_total_timeout,
        },
        "ranks": ranks.describe(view.loading),
        "link": {
            "latency_us": link and round(link.latency * 1e6, 1),
            "bandwidth_gb_s": link and round(link.bandwidth / 1e9, 3),
            "pairs": [
                {
                    "ranks": [member.rank, pair.other],
                    "latency_us": round(pair.latency * 1e6, 1),
                    "bandwidth_gb_s": round(pair.bandwidth / 1e9, 3),
                }
                for member in ranks.members
                for pair in member.pairs
            ],
        },
        "formats": view.formats and asdict(view.formats),
        "running": load.running,
        "queued": load.waiting,
        "paused": load.paused,
        "kv_tokens": {
            "used": load.kv_used,
            "capacity": view.capacity.kv_tokens,
            "row": view.capacity.row_tokens,
        },
        "prefix_cache": asdict(load.prefixes),
        "drafts": {"on": view.capacity.drafts or None, **asdict(load.drafts)},
        "series": {"interval_s": INTERVAL_S, "points": status.series.points()},
        "totals": _totals(status),
        "keys": _keys(status),
        "requests": describe_live(status.record.live(), view.capacity.row_tokens, may_stop),
        "restarts": view.start.restarts,
        "last_failure": view.start.last_failure or None,
        "events": [{"t": t, "text": text} for t, text in status.events.events],
    }


def _detail(view: View) -> str:
    if view.state.phase == OK and view.ranks.silent():
        return f"no step has ended for {view.ranks.age():.0f} s: a rank does not answer"
    return view.detail


def _keys(status: Status) -> list[dict[str, Any]]:
    """What was asked with each key, by label."""
    return [
        {
            "key": label,
            **usage.outcomes,
            "prompt_tokens": usage.tokens.prompt,
            "cached_tokens": usage.tokens.cached,
            "generated_tokens": usage.tokens.generated,
        }
        for label, usage in status.record.usages().items()
    ]


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
