"""The way out for completions: tokens to text, cut at the first stop string.

Runs on rank 0's HTTP threads. The detokenizer is mlx-lm's; it holds back unfinished characters.
"""

from typing import Any

from server.protocol.pieces import Parts
from server.text.stop_strings import StopStrings, StopWords


class PlainText:
    """A TextOut for text alone. hidden: token ids that are no text (end of text)."""

    reasoning_tokens = 0

    def __init__(
        self, detokenizer: Any, stop: StopWords | tuple[str, ...], hidden: set[int]
    ) -> None:
        self._detokenizer = detokenizer
        self._stop = StopStrings(stop)
        self._hidden = hidden

    @property
    def stopped(self) -> str | None:
        return self._stop.stopped

    def add(self, token: int) -> Parts:
        if token in self._hidden or self.stopped is not None:
            return Parts()
        self._detokenizer.add_token(token)
        return Parts(text=self._stop.add(self._detokenizer.last_segment))

    def finish(self, reason: str) -> tuple[Parts, str]:
        if self.stopped is not None:
            return Parts(), "stop"
        self._detokenizer.finalize()
        text = self._stop.add(self._detokenizer.last_segment)
        text += self._stop.flush()
        return Parts(text=text), reason if self.stopped is None else "stop"
