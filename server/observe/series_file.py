"""The charts' points outlive the process, as the events do: kept in RUN_DIR/series.jsonl.

What is read back was perhaps torn, or written by hand: a point without its numbers is none.
"""

import math
import time
from pathlib import Path
from typing import Any

from server.observe.rotating_file import RotatingFile
from server.observe.run_file import keep_lines, read_lines
from server.observe.series import INTERVAL_S, KEEP_S, Kept

FILE = "series.jsonl"
READ_BACK = 2 * KEEP_S // INTERVAL_S * 300  # bytes that hold the newest of them
NUMBERS = ("t", "generated_tokens_per_s", "prompt_tokens_per_s", "running", "queued")


def keep_points(run_id: str, run_dir: Path) -> tuple[Kept, RotatingFile]:
    """The run's points of the last minutes, and the file that keeps those from now on."""
    path = run_dir / FILE
    file = keep_lines(path, run_id)
    now = time.time()
    earlier = [one for one in read_lines(path, run_id, READ_BACK) if _is_point(one, now)]
    return Kept(tuple(sorted(earlier, key=lambda one: one["t"])), file.add), file


def _is_point(one: dict[str, Any], now: float) -> bool:
    wait = one.get("ttft_p50_s")
    numbers = [one.get(name) for name in NUMBERS] + ([] if wait is None else [wait])
    sound = all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) and n >= 0
        for n in numbers
    )
    return sound and now - KEEP_S < one["t"] <= now
