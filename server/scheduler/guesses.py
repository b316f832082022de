"""What rank 0 expects of one request's answer, and how often it was right.

Rank 0's main thread alone. Every token is compared with what was expected for it, whether it was
drafted or not: so it is known what drafts are worth before the first is made, and nothing is spent
on a text that goes its own way. Imports no mlx.
"""

from collections.abc import Sequence

from server.scheduler.ngrams import NGrams

# How often what was expected came, by how much of the text before was alike, in tokens: up to so
# many, and what is assumed of a text that nothing is known of.
KINDS = ((4, 0.1), (8, 0.3), (16, 0.5), (1 << 30, 0.7))
FORCED, FORCED_FIRST = len(KINDS), 0.8  # what a grammar forces is a kind of its own
WEIGHT = 0.15  # of the newest token in these averages


class Guess:
    """One request's. prompt: its tokens. generated: how many it has of its answer."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.generated = 0
        self._prompt = prompt
        self._text: NGrams | None = None  # while nobody has asked
        self._heard: list[int] = []  # that are not looked at yet
        self._rates = [first for _, first in KINDS] + [FORCED_FIRST]
        self._forced: list[int] = []

    def hear(self, tokens: Sequence[int], total: int) -> bool:
        """The newest tokens of an answer that has so many; some may have been heard before.
        Returns whether none is missing."""
        fresh = total - self.generated
        if fresh > len(tokens):
            return False
        if fresh > 0:
            self._heard += tokens[len(tokens) - fresh :]
            self.generated = total
        return True

    def force(self, tokens: list[int]) -> None:
        """These are what a grammar forces next."""
        self._look()
        self._forced = tokens

    @property
    def is_forced(self) -> bool:
        """Whether it is known that a grammar forces the next token."""
        self._look()
        return bool(self._forced)

    def expect(self, most: int) -> tuple[list[int], list[float]]:
        """The tokens that are likely to come, and for each how likely it and all before are."""
        text, likely, total = self._look(), [], 1.0
        tokens = self._forced[:most]
        kinds = [FORCED] * len(tokens)
        if not tokens and text.length:
            tokens = text.expected(most)
            kinds = [_kind(text.length + n) for n in range(len(tokens))]
        for kind in kinds:
            total *= self._rates[kind]
            likely.append(total)
        return tokens, likely

    def _look(self) -> NGrams:
        """The text, with all that was heard."""
        if self._text is None:
            self._text = NGrams(self._prompt)
        heard, self._heard = self._heard, []
        for token in heard:
            self._add(self._text, token)
        return self._text

    def _add(self, text: NGrams, token: int) -> None:
        if text.length:
            self._learn(_kind(text.length), text.expected(1) == [token])
        if self._forced:
            self._learn(FORCED, self._forced[0] == token)
            self._forced = self._forced[1:] if self._forced[0] == token else []
        text.add(token)

    def _learn(self, kind: int, right: bool) -> None:
        self._rates[kind] += WEIGHT * (right - self._rates[kind])


def _kind(length: int) -> int:
    return next(kind for kind, (most, _) in enumerate(KINDS) if length <= most)
