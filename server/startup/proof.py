"""The canary as often as it is due: before the ranks serve, and whenever rank 0 has it asked for.

Runs on the main thread of every rank, with nothing else in the engine. What it took is remembered
from one to the next: ranks that agreed once and do not now have a bad link, not a wrong model.
"""

import logging
import time
from collections.abc import Callable, Generator

from server.engine.engine import Engine
from server.engine.turn import Turn
from server.observe.status import Status
from server.protocol.settings import Settings
from server.sampling.choosers import Chooser
from server.startup.canary import Others, check_model
from server.startup.handshake import Mismatch
from server.startup.loading import Shard
from server.startup.piece_pace import at_once
from server.wire.link import Link
from server.wire.link_speed import measure_link
from server.wire.seal import Garbled

SLOW_CANARY = 3  # times what is usual
CANARY_BEYOND_CHUNK = 24  # tokens of the canary's prompt after its first full chunk

log = logging.getLogger(__name__)


class Proof:
    """make_engine: an empty engine over this rank's shard. longest: numbers in the longest message.
    observe hears of every turn. agreed: these ranks have agreed on this model before."""

    def __init__(
        self,
        make_engine: Callable[[Chooser], Engine],
        settings: Settings,
        link: Link,
        shard: Shard,
        longest: int,
        status: Status,
        observe: Callable[[Turn], None],
        agreed: bool,
    ) -> None:
        length = min(settings.prefill_step + CANARY_BEYOND_CHUNK, shard.context // 2)
        self._prompt = [i * 7919 % shard.vocab for i in range(1, length + 1)]
        self._make_engine = make_engine
        self._link = link
        self._sums = shard.sums
        self._longest = longest
        self._status = status
        self._observe = observe
        self._agreed = agreed
        self._usual_s: float | None = None  # of the fastest so far

    def run(self, progress: Callable[[str], None]) -> None:
        """Proves that all ranks still compute the same, and measures the link. Every rank calls it.

        Raises Mismatch where they do not, and Garbled where they did before.
        """
        began = time.monotonic()
        at_once(self.by_pieces(progress))
        self._compare(time.monotonic() - began)
        progress("measuring the link")
        if (speed := measure_link(self._link, self._longest, self._sums)) is not None:
            self._status.publish(speed)
        self._status.fleet.hear()

    def by_pieces(
        self, progress: Callable[[str], None], others: Others | None = None
    ) -> Generator[None, None, None]:
        """The first half of it, which gives way to others."""
        try:
            tokens = yield from check_model(
                self._make_engine, self._link, self._prompt, progress, self._observe, others
            )
        except Mismatch as mismatch:
            if self._agreed:
                raise Garbled("canary", str(mismatch)) from None
            raise
        self._agreed = True
        log.info(
            "canary: %d ranks agree on %s after %d tokens",
            self._link.size, tokens, len(self._prompt),
        )  # fmt: skip

    def _compare(self, seconds: float) -> None:
        usual = seconds if self._usual_s is None else self._usual_s
        if seconds > SLOW_CANARY * usual + 1:
            self._status.note(f"slow canary: {seconds:.1f} s, where {usual:.1f} s is usual")
        self._usual_s = min(usual, seconds)
        self._status.record.canary(seconds, usual)
