"""Events outlive the process: after a restart /cluster still tells of the failures before it.

Kept in RUN_DIR/events.jsonl of rank 0's host, for one run: from a start by hand to the stop, with
all restarts between. Read once at the start, on the main thread; written by the RotatingFile's
thread.
"""

import json
from pathlib import Path
from typing import Any

from server.observe.event_log import EVENT_CHARS, EVENTS_KEPT, EventLog, Noted
from server.observe.rotating_file import RotatingFile

FILE = "events.jsonl"
MAX_BYTES = 10**6
READ_BACK = 2 * EVENTS_KEPT * (EVENT_CHARS + 200)  # bytes that hold the newest of them


def keep_events(run_id: str, run_dir: Path) -> tuple[EventLog, RotatingFile]:
    """The events, which begin with the run's earlier ones, and the file that keeps what is noted
    from now on."""
    path = run_dir / FILE
    file = RotatingFile(path, lambda event: _write(event, run_id), MAX_BYTES)
    return EventLog(_read(path, run_id), file.add), file


def _write(event: Noted, run_id: str) -> str:
    return json.dumps({"run": run_id, "t": event[0], "text": event[1]})


def _read(path: Path, run_id: str) -> list[Noted]:
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
