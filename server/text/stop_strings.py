"""Cuts a growing text at the first of some stop strings, wherever its pieces end.

Used on rank 0's HTTP threads. The matcher is mlx-lm's: one for all choices of a request, made when
the first token comes, so that a request which is refused or left costs none.
"""

from functools import cached_property, lru_cache
from typing import Any


@lru_cache(maxsize=64)
def stop_words(words: tuple[str, ...]) -> "StopWords":
    """Those of a request, for all of its choices alike."""
    return StopWords(words)


class StopWords:
    """The stop strings of a request."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words
        # A state for each word, so that the state tells which one was met.
        self.ends = {f"stop {n}": word for n, word in enumerate(words)}

    @cached_property
    def machine(self) -> Any:
        """mlx-lm's; it keeps nothing of the texts."""
        from mlx_lm.generate import TextStateMachine

        edges = {"normal": [(word, end) for end, word in self.ends.items()]}
        return TextStateMachine(edges | {end: [] for end in self.ends})


class StopStrings:
    """One choice's text. What could be the start of a stop string is held back."""

    def __init__(self, words: StopWords | tuple[str, ...]) -> None:
        self.stopped: str | None = None  # the stop string that was reached
        self._words = words if isinstance(words, StopWords) else StopWords(words)
        self._state: Any = None  # until there is text

    def add(self, text: str) -> str:
        """What is certain to be before any stop string; nothing once one was met."""
        if not self._words.words:
            return text
        if self.stopped is not None:
            return ""
        if self._state is None:
            self._state = self._words.machine.make_state()
        self._state, segments = self._words.machine.split(self._state, text)
        self.stopped = self._words.ends.get(self._state[0])
        return segments[0][1]

    def flush(self) -> str:
        """What was held back, as what follows is not part of the same text."""
        if self._state is None or self.stopped is not None:
            return ""
        held = self._state[3]
        self._state = None
        return held
