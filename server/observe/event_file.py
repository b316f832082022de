"""Events outlive the process: after a restart /cluster still tells of the failures before it.

Kept in RUN_DIR/events.jsonl (run_file.py).
"""

from pathlib import Path
from typing import Any

from server.observe.event_log import EVENT_CHARS, EVENTS_KEPT, EventLog, Noted
from server.observe.rotating_file import RotatingFile
from server.observe.run_file import keep_lines, read_lines

FILE = "events.jsonl"
READ_BACK = 2 * EVENTS_KEPT * (EVENT_CHARS + 200)  # bytes that hold the newest of them
KINDS = {"t": int | float, "text": str}


def keep_events(run_id: str, run_dir: Path) -> tuple[EventLog, RotatingFile]:
    """The events, which begin with the run's earlier ones, and the file that keeps what is noted
    from now on."""
    path = run_dir / FILE
    file = keep_lines(path, run_id)
    earlier = read_lines(path, run_id, READ_BACK)
    ours = [(float(one["t"]), one["text"][:EVENT_CHARS]) for one in earlier if _is_event(one)]

    def add(event: Noted) -> None:
        file.add({"t": event[0], "text": event[1]})

    return EventLog(ours[-EVENTS_KEPT:], add), file


def _is_event(one: dict[str, Any]) -> bool:
    return all(isinstance(one.get(name), kind) for name, kind in KINDS.items())
