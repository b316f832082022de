"""The body of GET /health: whether it serves, and what it does instead.

Called on rank 0's HTTP threads. Imports no mlx.
"""

import time
from typing import Any

from server.observe.views import View

OF_A_RANK = ("rank", "host", "pid", "loaded_bytes", "total_bytes")


def describe_health(view: View) -> dict[str, Any]:
    """Few things that monitors look for; GET /cluster tells the rest."""
    members, start = view.ranks.members, view.start
    return {
        "status": view.state.phase,
        "detail": view.detail,
        "model": start.model_id,
        "model_dir": members[0].model_dir if members else None,
        "world_size": len(members),
        "ranks": [
            {name: rank[name] for name in OF_A_RANK} for rank in view.ranks.describe(view.loading)
        ],
        "running": view.load.running,
        "queued": view.load.waiting,
        "kv_tokens": {"used": view.load.kv_used, "capacity": view.capacity.kv_tokens},
        "uptime_s": round(time.time() - start.at, 1),
        "restarts": start.restarts,
        "last_failure": start.last_failure or None,
        "run_id": start.run_id,
    }
