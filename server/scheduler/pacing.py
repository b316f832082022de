"""How much of a prompt to prefill between two decode steps: as much as the others can bear.

Rank 0's main thread asks; the answer reaches every rank in the header. A chunk that is too large
stops the streams of all who decode; one that is too small makes the newcomer wait, since every
chunk costs about a decode step whatever its size. So the size follows the clock: the pause that a
chunk adds should be `pause_s`, or as long as two decode steps where that is longer: then half of it
goes into the prompt. For this it keeps the running average of a step, which the scheduler's
estimates use too.
"""

FIRST = 64  # tokens, before anything was measured
LEAST = 16
STEPS = 2  # that a chunk may take, however short the pause should be
FASTEST = 2.0  # a measurement changes the size by no more than this factor
SMOOTHING = 0.1  # weight of the newest measurement in running averages
FIRST_STEP_S = 0.05  # before anything was measured
LONGEST_STEP_S = 5.0  # a step that stalled counts as no longer: the next one will hardly stall, too


class PrefillPace:
    """most: tokens of a full chunk. pause_s: what a chunk may add to a step, in seconds.

    step_s: running average of a decode step without its chunk, in seconds; any thread may read it.
    """

    def __init__(self, pause_s: float, most: int) -> None:
        self._pause_s = pause_s
        self._most = most
        self._size = float(min(FIRST, most))
        self.step_s = FIRST_STEP_S

    @property
    def tokens(self) -> int:
        """The size of the next chunk."""
        return int(self._size)

    def observe(self, computed: int, chunk_s: float, step_s: float) -> None:
        """Tokens of prompts that were computed, and in how many seconds; and those of a decode
        step. 0 where there was none."""
        if step_s:
            self.step_s += SMOOTHING * (min(step_s, LONGEST_STEP_S) - self.step_s)
        if computed:
            self._resize(computed, chunk_s)

    def _resize(self, computed: int, chunk_s: float) -> None:
        bearable = max(self._pause_s, STEPS * self.step_s)
        if computed < self._size / FASTEST and chunk_s < bearable:
            return  # Too small a chunk to tell what a larger one would take.
        wanted = computed * bearable / max(chunk_s, 1e-4)
        wanted = min(max(wanted, self._size / FASTEST), self._size * FASTEST)
        self._size = min(max(wanted, LEAST), self._most)
