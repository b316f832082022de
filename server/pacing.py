"""How much of a prompt to prefill between two decode steps: as much as the others can bear.

Rank 0's main thread asks; the answer reaches every rank in the header. A chunk that is too large
stops the streams of all who decode; one that is too small makes the newcomer wait, since every
chunk costs about a decode step whatever its size. So the size follows the clock: the pause that a
chunk adds should be `pause_s`, or as long as a decode step where that is longer.
"""

FIRST = 64  # tokens, before anything was measured
LEAST = 16
FASTEST = 2.0  # a measurement changes the size by no more than this factor


class PrefillPace:
    """most: tokens of a full chunk. pause_s: what a chunk may add to a step, in seconds."""

    def __init__(self, pause_s: float, most: int) -> None:
        self._pause_s = pause_s
        self._most = most
        self._size = float(min(FIRST, most))

    @property
    def tokens(self) -> int:
        """The size of the next chunk."""
        return int(self._size)

    def observe(self, computed: int, chunk_s: float, step_s: float) -> None:
        """A chunk of `computed` tokens took that long; a decode step takes step_s."""
        bearable = max(self._pause_s, step_s)
        if computed < self._size / FASTEST and chunk_s < bearable:
            return  # Too small a chunk to tell what a larger one would take.
        wanted = computed * bearable / max(chunk_s, 1e-4)
        wanted = min(max(wanted, self._size / FASTEST), self._size * FASTEST)
        self._size = min(max(wanted, LEAST), self._most)
