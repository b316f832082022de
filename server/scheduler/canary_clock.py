"""When the ranks are to prove again that they compute the same. The scheduler's alone."""

import time

from server.wire.messages import Canary


class CanaryClock:
    """interval: seconds of idleness between two canaries; 0 for none."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due = time.monotonic() + interval

    def due(self, busy: bool) -> list[Canary]:
        """A canary, when the ranks have had nothing to do for long enough."""
        now = time.monotonic()
        waits = busy or not self._interval
        if not waits and now < self._due:
            return []
        self._due = now + self._interval
        return [] if waits else [Canary()]
