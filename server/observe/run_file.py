"""What one run keeps beside its log, a line of JSON each: read back after a restart.

A run goes from a start by hand to the stop, with all restarts between. Files are in RUN_DIR of rank
0's host. Read once at the start, on the main thread; written by the RotatingFile's thread.
"""

import json
from pathlib import Path
from typing import Any

from server.observe.rotating_file import RotatingFile

MAX_BYTES = 10**6


def keep_lines(path: Path, run_id: str) -> RotatingFile:
    """The file that keeps objects, as the run's."""
    return RotatingFile(path, lambda one: json.dumps({"run": run_id, **one}), MAX_BYTES)


def read_lines(path: Path, run_id: str, most_bytes: int) -> list[dict[str, Any]]:
    """What can be read of the run's newest objects; those of other runs are not ours to tell."""
    lines: list[bytes] = []
    for part in (path.with_name(f"{path.name}.1"), path):  # it may just have been turned
        try:
            with part.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - most_bytes))
                lines += file.read().splitlines()
        except OSError:
            continue
    found = [_parse(line) for line in lines]
    return [one for one in found if one is not None and one.pop("run", None) == run_id]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
