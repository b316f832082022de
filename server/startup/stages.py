"""What a rank is doing until it serves: told to its watchdog, to /health, and to the log.

Called on the main thread of every rank. Each call is progress, which feeds the watchdog; a stage
that counts ("loading: 3 of 9") is logged every few seconds only.
"""

import logging
import time
from collections.abc import Callable

from server.observe.phases import Phases

LOG_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Stages:
    """feed(stage) is the watchdog's."""

    def __init__(self, phases: Phases, feed: Callable[[str], None]) -> None:
        self._phases = phases
        self._feed = feed
        self._last = ""
        self._logged_at = 0.0

    def tell(self, stage: str) -> None:
        """stage comes next, or has got so far."""
        self._feed(stage)
        self._phases.stage(stage)
        before, self._last = self._last, stage
        if stage == before:
            return
        now = time.monotonic()
        counts = ":" in stage and stage.split(":")[0] == before.split(":")[0]
        if not counts or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.info("%s", stage)
