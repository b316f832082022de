"""The last ten minutes, a point every five seconds: what /cluster's charts are drawn from.

They begin with what the run's earlier processes have seen, where that is kept (series_file.py).

One thread of rank 0 makes the points; HTTP threads read them. Imports no mlx.
"""

import collections
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.observe.recorder import Recorder
from server.observe.views import Load

INTERVAL_S = 5
KEEP_S = 600


@dataclass(frozen=True)
class Kept:
    """earlier: points from before this process, oldest first. on_point hears of each new one."""

    earlier: tuple[dict[str, Any], ...] = ()
    on_point: Callable[[dict[str, Any]], None] = lambda point: None


class Series:
    """Points of the load, oldest first. record and load are what it looks at."""

    def __init__(self, record: Recorder, load: Callable[[], Load], kept: Kept = Kept()) -> None:
        self._record = record
        self._load = load
        self._points: collections.deque[dict[str, Any]] = collections.deque(
            kept.earlier, maxlen=KEEP_S // INTERVAL_S
        )
        self._on_point = kept.on_point
        self._last = (time.monotonic(), 0, 0)

    def start(self) -> None:
        """Makes points until the process ends."""
        threading.Thread(target=self._run, name="series", daemon=True).start()

    def points(self) -> list[dict[str, Any]]:
        """What there is of the last minutes. Any thread."""
        oldest = time.time() - KEEP_S - INTERVAL_S
        return [point for point in list(self._points) if point["t"] >= oldest]

    def tick(self, now: float) -> None:
        """Adds the point for the time since the last one. now: time.monotonic()."""
        record, load = self._record, self._load()
        before, generated, prefilled = self._last
        self._last = (now, record.tokens().generated, record.prefilled_tokens)
        seconds = max(now - before, 1e-9)
        waits = [record.first_tokens.popleft() for _ in range(len(record.first_tokens))]
        point = {
            "t": round(time.time(), 1),
            "generated_tokens_per_s": round((self._last[1] - generated) / seconds, 2),
            "prompt_tokens_per_s": round((self._last[2] - prefilled) / seconds, 2),
            "ttft_p50_s": round(statistics.median(waits), 4) if waits else None,
            "running": load.running,
            "queued": load.waiting,
        }
        self._points.append(point)
        self._on_point(point)

    def _run(self) -> None:
        while True:
            time.sleep(INTERVAL_S)
            self.tick(time.monotonic())
