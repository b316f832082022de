"""What a worker has in the place of the scheduler, so that the loop holds no test of the rank."""

import time
from collections.abc import Iterable

from server.engine.turn import Turn
from server.wire.messages import Message, Settled


class Spectator:
    """A worker's scheduler: decides nothing, delivers nothing, naps as told."""

    def compose(self) -> list[Message]:
        return []

    def not_loaded(self, number: int, reason: str) -> None:
        pass

    def deliver(self, turn: Turn) -> None:
        pass

    def refused(self, uid: int, error: Exception) -> None:
        pass

    def distrust(self, entries: Iterable[int]) -> None:
        pass

    def settled(self, jobs: Iterable[Settled]) -> None:
        pass

    def nap_ms(self) -> int:
        return 0

    def chunk(self) -> int:
        return 0

    def late(self) -> bool:
        return False

    def nap(self, ms: int) -> None:
        time.sleep(ms / 1000)
