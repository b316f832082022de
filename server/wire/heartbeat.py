"""The heartbeat: what every rank tells of itself rides on the collectives that there are anyway.

Runs on the main thread of every rank, in the place of the mailbox's Link. Each sum that carries a
header or a bundle is made a few numbers longer: every rank adds its memory in slots of its own,
where all others add zeros. While the ranks decode there is no such sum, because headers ride with
the tokens; then rank 0 sends an empty bundle now and then. Nothing here decides anything.
"""

import time
from collections.abc import Callable

from server.observe.fleet import Fleet, Vitals
from server.observe.machine import measure_vitals
from server.observe.recorder import Recorder
from server.wire.link import Link
from server.wire.messages import Beat, Message

UNIT = 1024  # bytes: an int32 of these reaches 2 TB
MEASURE_S = 1.0  # a rank looks at its memory at most so often
BEAT_S = 10.0  # how old rank 0's knowledge may become while the ranks decode
AT_ONCE_S = 0.001  # a bundle that follows a meeting so soon finds all ranks ready for it
SLOTS = 3  # numbers of a rank


class Heartbeat:
    """The mailbox's collectives, with the ranks' memory beside what they carry."""

    def __init__(
        self,
        link: Link,
        fleet: Fleet,
        record: Recorder,
        measure: Callable[[], Vitals] = measure_vitals,
    ) -> None:
        self.rank, self.size = link.rank, link.size
        self._link = link
        self._fleet = fleet
        self._record = record
        self._measure = measure
        self._measured = -MEASURE_S
        self._mine = [0] * SLOTS
        self._heard = self._met = time.monotonic()

    def share_ints(self, values: list[int]) -> list[int]:
        """As Link.share_ints. The meeting of the ranks."""
        began = time.monotonic()
        mine = values if self.rank == 0 else [0] * len(values)
        shared = self._link.seal("meeting", [*mine, *self._slots()]).read()
        self._hear(shared[len(values) :])
        self._met = time.monotonic()
        self._record.meeting_seconds.observe(self._met - began)
        return shared[: len(values)]

    def share_bytes(self, data: bytes, length: int) -> bytes:
        """As Link.share_bytes."""
        began = time.monotonic()
        mine = {0: data} if self.rank == 0 else {}
        (shared,), slots = self._link.bring("bundle", [length], mine, self._slots())
        self._hear(slots)
        if began - self._met < AT_ONCE_S:
            self._record.bundle_seconds.observe(time.monotonic() - began)
        return shared

    def beating(self, compose: Callable[[], list[Message]]) -> Callable[[], list[Message]]:
        """Rank 0's compose, which sends a Beat when there was no other occasion for too long."""

        def compose_or_beat() -> list[Message]:
            messages = compose()
            if not messages and time.monotonic() - self._heard > BEAT_S:
                return [Beat()]
            return messages

        return compose_or_beat

    def _slots(self) -> list[int]:
        """This rank's numbers among the zeros of the others."""
        now = time.monotonic()
        if now - self._measured >= MEASURE_S:
            self._measured = now
            vitals = self._measure()
            numbers = (vitals.memory_used, vitals.memory_peak, vitals.rss)
            self._mine = [min(n // UNIT, 2**31 - 1) for n in numbers]
        before, after = self.rank, self.size - self.rank - 1
        return [0] * (SLOTS * before) + self._mine + [0] * (SLOTS * after)

    def _hear(self, slots: list[int]) -> None:
        self._heard = time.monotonic()
        numbers = [n * UNIT for n in slots]
        starts = range(0, len(numbers), SLOTS)
        self._fleet.measure(tuple(Vitals(*numbers[i : i + SLOTS]) for i in starts))
