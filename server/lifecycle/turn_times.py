"""How long a turn of the loop may take before the watchdog takes it for a hang.

Filled on the main thread of every rank, by every turn and by the canary before the first; asked by
the watchdog's thread. A large model on a slow machine, or one that has other work, computes for
longer than STALL_TIMEOUT what is in good order. So a turn may take a multiple of what such turns
have taken here lately, never less than STALL_TIMEOUT, and never more than some multiple of that: a
hang has to be noticed. Nothing here is shared: a rank judges by its own clock.
"""

from typing import Protocol

MULTIPLE = 20  # of what such work has taken
MOST = 10  # times STALL_TIMEOUT
FADE = 0.2  # of the difference, with each faster turn of the same kind
STEP, CHUNK = "engine step", "engine step with prompts"  # names of stages: as the log has them


class Times(Protocol):
    """What a Turn of the engine says of its time."""

    computed: int
    chunk_s: float
    step_s: float


class TurnTimes:
    """least: seconds that anything may take."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._step_s = 0.0
        self._chunk_s: dict[int, float] = {}  # by size: bits of the number of tokens

    def observe(self, turn: Times) -> None:
        """A turn that has ended. One that took longer than it might was not slow: the machine
        was away."""
        if 0 < turn.step_s <= self.limit(STEP):
            self._step_s = _follow(self._step_s, turn.step_s)
        if turn.computed and turn.chunk_s <= self.limit(CHUNK):
            size = turn.computed.bit_length()
            chunk_s = _follow(self._chunk_s.get(size, 0.0), turn.chunk_s)
            # What stalled once is corrected by a larger one that did not. A new dict: the other
            # thread may be reading.
            smaller = {n: min(s, chunk_s) for n, s in self._chunk_s.items() if n < size}
            self._chunk_s = self._chunk_s | smaller | {size: chunk_s}

    def limit(self, stage: str) -> float:
        """Seconds that a stage may take. Beside STEP, any may have to wait for another rank's
        chunk."""
        chunk_s = 0.0 if stage == STEP else max(self._chunk_s.values(), default=0.0)
        wanted = MULTIPLE * (chunk_s + self._step_s)
        return min(max(wanted, self._least), MOST * self._least)


def _follow(before: float, now: float) -> float:
    """Up at once, down by and by."""
    return max(now, before + FADE * (now - before))
