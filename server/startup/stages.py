"""What a rank is doing until it serves: told to its watchdog, to /health, and to the log.

Called on the main thread of every rank. Each call is progress, which feeds the watchdog; a stage
that counts ("loading: 3 of 9") is logged every few seconds only.
"""

import logging
import time
from collections.abc import Callable

from server.observe.status import Status

LOG_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Stages:
    """feed(stage) is the watchdog's."""

    def __init__(self, status: Status, feed: Callable[[str], None]) -> None:
        self._status = status
        self._feed = feed
        self._logged_at = 0.0

    def tell(self, stage: str) -> None:
        """stage comes next, or has got so far."""
        self._feed(stage)
        before, self._status.detail = self._status.detail, stage
        if stage == before:
            return
        now = time.monotonic()
        counts = ":" in stage and stage.split(":")[0] == before.split(":")[0]
        if not counts or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.info("%s", stage)
