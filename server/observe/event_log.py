"""The events of the cluster, newest last: what whoever looks at it should know has happened.

Noted by any thread of rank 0; kept in a file by event_file.py, where there is a folder for it.
"""

import threading
import time
from collections.abc import Callable, Iterable

from server.protocol.printable import printable

EVENTS_KEPT = 50
EVENT_CHARS = 500

Noted = tuple[float, str]  # Unix time, text


class EventLog:
    """earlier: what this run noted in processes before this one. on_note hears of each new one."""

    def __init__(
        self, earlier: Iterable[Noted] = (), on_note: Callable[[Noted], None] = lambda event: None
    ) -> None:
        self.events: tuple[Noted, ...] = tuple(earlier)[-EVENTS_KEPT:]
        self._on_note = on_note
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        """Remembers an event."""
        event = (round(time.time(), 1), printable(text[:EVENT_CHARS])[:EVENT_CHARS])
        with self._lock:
            self.events = (*self.events, event)[-EVENTS_KEPT:]
        self._on_note(event)
