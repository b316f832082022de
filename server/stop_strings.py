"""Cuts a growing text at the first of some stop strings, wherever its pieces end.

Used on rank 0's HTTP threads, one for each choice of an answer. The matcher is mlx-lm's.
"""


class StopStrings:
    """Text that could be the start of a stop string is held back."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.stopped: str | None = None  # the stop string that was reached
        self._machine = None
        if words:
            from mlx_lm.generate import TextStateMachine

            # A state for each word, so that the state tells which one was met.
            self._ends = {f"stop {n}": word for n, word in enumerate(words)}
            edges = {"normal": [(word, end) for end, word in self._ends.items()]}
            self._machine = TextStateMachine(edges | {end: [] for end in self._ends})
            self._state = self._machine.make_state()

    def add(self, text: str) -> str:
        """What is certain to be before any stop string; nothing once one was met."""
        if self._machine is None:
            return text
        if self.stopped is not None:
            return ""
        self._state, segments = self._machine.split(self._state, text)
        self.stopped = self._ends.get(self._state[0])
        return segments[0][1]

    def flush(self) -> str:
        """What was held back, as what follows is not part of the same text."""
        if self._machine is None or self.stopped is not None:
            return ""
        held = self._state[3]
        self._state = self._machine.make_state()
        return held
