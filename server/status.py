"""What /health, /queue and /v1/models say: one object, written by the main thread of rank 0.

Single attributes are replaced whole, so HTTP threads may read them without a lock.
"""

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Member:
    """One rank as it introduced itself in the handshake."""

    rank: int
    host: str
    pid: int
    model_dir: str


class Status:
    """phase: "loading", then "ok", then "draining"; "failed" just before the process ends."""

    def __init__(self, model_id: str, run_id: str, restarts: int = 0, last_failure: str = ""):
        self.model_id = model_id
        self.run_id = run_id
        self.restarts = restarts
        self.last_failure = last_failure
        self.started = time.time()
        self.phase = "loading"
        self.detail = "starting"
        self.members: tuple[Member, ...] = ()
        self.context = 0  # tokens; 0 until the model is loaded
        self.running = 0
        self.waiting = 0
        self.kv_capacity = 0  # tokens
        self.kv_used = 0

    def health(self) -> dict[str, Any]:
        """The body of GET /health."""
        return {
            "status": self.phase,
            "detail": self.detail,
            "model": self.model_id,
            "model_dir": self.members[0].model_dir if self.members else None,
            "world_size": len(self.members),
            "ranks": [{"rank": m.rank, "host": m.host, "pid": m.pid} for m in self.members],
            "running": self.running,
            "queued": self.waiting,
            "kv_tokens": {"used": self.kv_used, "capacity": self.kv_capacity},
            "uptime_s": round(time.time() - self.started, 1),
            "restarts": self.restarts,
            "last_failure": self.last_failure or None,
            "run_id": self.run_id,
        }
