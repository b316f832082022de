"""What rank 0 expects of one request's answer, and how often it was right.

Rank 0's main thread alone. Every token is compared with what was expected for it, whether it was
drafted or not: so it is known what drafts are worth before the first is made, and nothing is spent
on a text that goes its own way. Imports no mlx.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.scheduler.ngrams import NGrams

# How often what was expected came, by how much of the text before was alike, in tokens: up to so
# many, and what is assumed of a text that nothing is known of.
KINDS = ((4, 0.1), (8, 0.3), (16, 0.5), (1 << 30, 0.7))
FORCED, FORCED_FIRST = len(KINDS), 0.8  # what a grammar forces is a kind of its own
WEIGHT = 0.15  # of the newest token in these averages
MODEL_FIRST = 0.6  # of a draft model that nothing is known of
FADE = 0.002  # with each token that it was not asked for: a text may change its nature


@dataclass(frozen=True)
class Offer:
    """What may be drafted for a row. likely: how likely each token and all before it are; tokens:
    None where a draft model would have to make them. draft_s, text_s: seconds that it takes for
    each, and, to read the text before, of each token that a step brings."""

    likely: Sequence[float]
    tokens: Sequence[int] | None = ()
    draft_s: float = 0.0
    text_s: float = 0.0

    def worth(self, pace: float) -> "Offer":
        """As much of it as brings more than steps do in its time, at so many tokens a second: rows
        beside it may have more drafts, that cost nothing."""
        pays = itertools.takewhile(lambda likely: likely > self.draft_s * pace, self.likely)
        return replace(self, likely=list(pays))

    def brings(self, width: int) -> float:
        """The tokens to be expected of a step with so many places."""
        return 1 + sum(self.likely[: width - 1])

    def takes_s(self, width: int) -> float:
        """Seconds for its drafts."""
        if self.tokens is not None or width < 2:
            return 0.0
        return self.draft_s * min(width - 1, len(self.likely)) + self.text_s * self.brings(width)


class Rate:
    """How often a draft model is right, lately. above: of all rows, where this is one's."""

    def __init__(self, weight: float = WEIGHT, above: "Rate | None" = None) -> None:
        self._weight, self._above = weight, above
        self.value = above.value if above is not None else MODEL_FIRST

    def learn(self, right: bool) -> None:
        """A draft was."""
        self.value += self._weight * (right - self.value)
        if self._above is not None:
            self._above.learn(right)

    def fade(self) -> None:
        """It was not asked."""
        self.value += FADE * (MODEL_FIRST - self.value)
        if self._above is not None:
            self._above.fade()


class Guess:
    """One request's. prompt: its tokens. generated: how many it has of its answer. tries_model:
    whether a draft model may be asked. rate: how often that is right for all requests."""

    def __init__(self, prompt: Sequence[int], rate: Rate | None = None) -> None:
        self.generated = 0
        self.tries_model = True
        self._model_rate = Rate(above=rate)
        self._model_drafts: list[int] = []
        self._answer: list[int] = []
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
            self._answer += tokens[len(tokens) - fresh :]
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

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self._prompt) + len(self._answer)

    def text(self, start: int, most: int | None = None) -> list[int]:
        """Its tokens from a place on."""
        behind = max(0, start - len(self._prompt))
        return [*self._prompt[start:], *self._answer[behind:]][:most]

    def try_model(self, drafts: Sequence[int]) -> None:
        """A draft model expects these next."""
        self._look()
        self._model_drafts = list(drafts)

    def model_likely(self, most: int) -> list[float]:
        """How likely a draft model's next tokens would be right, each and all before it."""
        self._look()
        return [self._model_rate.value**n for n in range(1, most + 1)]

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
        if self._model_drafts:
            right = self._model_drafts[0] == token
            self._model_rate.learn(right)
            self._model_drafts = self._model_drafts[1:] if right else []
        else:
            self._model_rate.fade()
        text.add(token)

    def _learn(self, kind: int, right: bool) -> None:
        self._rates[kind] += WEIGHT * (right - self._rates[kind])


def _kind(length: int) -> int:
    return next(kind for kind, (most, _) in enumerate(KINDS) if length <= most)
