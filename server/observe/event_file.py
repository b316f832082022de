"""Events outlive the process: after a restart /cluster still tells of the failures before it.

Kept in RUN_DIR/events.jsonl of rank 0's host, for one run: from a start by hand to the stop, with
all restarts between. Read once at the start, on the main thread; written by a LineFile's thread.
"""

import json
from pathlib import Path
from typing import Any

from server.observe.rotating_file import LineFile
from server.observe.status import EVENT_CHARS, EVENTS_KEPT, Status

FILE = "events.jsonl"
MAX_BYTES = 10**6
READ_BACK = 2 * EVENTS_KEPT * (EVENT_CHARS + 200)  # bytes that hold the newest of them


def keep_events(status: Status, run_dir: Path) -> LineFile:
    """Puts the run's earlier events before those of status, and keeps what is noted from now on."""
    path = run_dir / FILE
    earlier = _read(path, status.run_id)
    ours = list(status.events)
    status.events.clear()
    status.events.extend([*earlier, *ours])
    file = LineFile(path, lambda event: _write(event, status.run_id), MAX_BYTES)
    for event in ours:
        file.add(event)
    status.on_note = file.add
    return file


def _write(event: tuple[float, str], run_id: str) -> str:
    return json.dumps({"run": run_id, "t": event[0], "text": event[1]})


def _read(path: Path, run_id: str) -> list[tuple[float, str]]:
    """What can be read of the run's events; those of other runs are not ours to tell."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - READ_BACK))
            lines = file.read().splitlines()
    except OSError:
        return []
    events = [_parse(line) for line in lines]
    ours = [one for one in events if one is not None and one["run"] == run_id]
    return [(float(one["t"]), one["text"][:EVENT_CHARS]) for one in ours][-EVENTS_KEPT:]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    kinds = {"run": str, "t": int | float, "text": str}
    right = isinstance(event, dict) and all(isinstance(event.get(n), k) for n, k in kinds.items())
    return event if right else None
