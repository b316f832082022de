"""What /health, /queue, /cluster and /v1/models say: one object, written by rank 0's main thread.

Single attributes are replaced whole, so HTTP threads may read them without a lock.
"""

import collections
import time
from collections.abc import Callable
from typing import Any

from server.observe.fleet import Fleet, Member
from server.observe.recorder import Recorder
from server.observe.series import Series
from server.protocol.printable import printable

EVENTS_KEPT = 50
EVENT_CHARS = 500
RANK_IN_HEALTH = ("rank", "host", "pid", "loaded_bytes", "total_bytes")


class Status:
    """phase: "loading", then "ok", then "draining"; "failed" just before the process ends.

    record counts what happens, fleet knows the ranks, series the last minutes.
    """

    def __init__(self, model_id: str, run_id: str, restarts: int = 0, last_failure: str = ""):
        self.model_id = model_id
        self.run_id = run_id
        self.restarts = restarts
        self.last_failure = last_failure
        self.started = time.time()
        self.phase = "loading"
        self.detail = "starting"
        self.trouble = ""  # what is wrong beside that, and does not keep it from serving
        self.record = Recorder()
        self.fleet = Fleet()
        self.series = Series(self)
        self.world_size = 0  # as the launcher promises; the members are those that have joined
        self.backend = "none"
        self.context = 0  # tokens; 0 until the model is loaded
        self.running = 0
        self.waiting = 0
        self.paused = 0  # of those that wait: how many had begun
        self.kv_capacity = 0  # tokens
        self.kv_used = 0
        self.kv_token_bytes = 0  # that a token costs rank 0
        self.canary_seconds = 0.0  # of the fastest so far
        self.link: Any = None  # a LinkSpeed, once it is measured; None for one rank
        self.prefix_entries = 0
        self.prefix_tokens = 0  # in the entries
        self.prefix_hit_tokens = 0  # of prompts, that need not be computed; so far
        self.prefix_miss_tokens = 0  # that had to be
        self.prefix_evicted_tokens = 0
        self.events: collections.deque[tuple[float, str]] = collections.deque(maxlen=EVENTS_KEPT)
        self.log_dropped: Callable[[], int] = lambda: 0  # lines of rank 0's log, so far
        self.on_note: Callable[[tuple[float, str]], None] = lambda event: None
        if restarts:
            self.note(
                f"restarted (restart {restarts}); the end before: {last_failure or 'unknown'}"
            )
        else:
            self.note("started")

    @property
    def members(self) -> tuple[Member, ...]:
        """The ranks, once they have introduced themselves."""
        return self.fleet.members

    def with_trouble(self, detail: str) -> str:
        """detail, and what else is wrong on rank 0."""
        return f"{detail}; {self.trouble}" if self.trouble else detail

    def note(self, text: str) -> None:
        """Remembers an event, for whoever looks at the cluster. Any thread of rank 0."""
        event = (round(time.time(), 1), printable(text[:EVENT_CHARS])[:EVENT_CHARS])
        self.events.append(event)
        self.on_note(event)

    def health(self) -> dict[str, Any]:
        """The body of GET /health."""
        return {
            "status": self.phase,
            "detail": self.with_trouble(self.detail),
            "model": self.model_id,
            "model_dir": self.members[0].model_dir if self.members else None,
            "world_size": len(self.members),
            "ranks": [
                {name: rank[name] for name in RANK_IN_HEALTH}
                for rank in self.fleet.describe(loading=self.phase == "loading")
            ],
            "running": self.running,
            "queued": self.waiting,
            "kv_tokens": {"used": self.kv_used, "capacity": self.kv_capacity},
            "uptime_s": round(time.time() - self.started, 1),
            "restarts": self.restarts,
            "last_failure": self.last_failure or None,
            "run_id": self.run_id,
        }
