"""A drafter for tests that knows what is coming, and is wrong where chance has it."""

import random
from collections.abc import Callable, Sequence

import pytest

from server.protocol.events import Token
from server.sampling.choosers import Wanting
from server.sampling.row_state import Row
from server.scheduler.guesses import Guess
from server.scheduler.speculation import Speculation


def draft_whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's drafts are made whatever the clock says."""
    speculation = "server.scheduler.speculation"
    for name, value in {"WORTH": 0.0, "FIRST": 1e9, "WON_MOST": 1e9}.items():
        monkeypatch.setattr(f"{speculation}.{name}", value)


class ByChance(Speculation):
    """What a text is likely to go on with, as rank 0 has it, and other tokens; by chance instead of
    the clock."""

    most = 8

    def __init__(self, rng: random.Random, vocab: int) -> None:
        super().__init__()
        self._rng, self._vocab = rng, vocab

    def guess(self, common, prompt: Sequence[int]) -> Guess:
        return Guess(prompt)

    def room(self, decoding: Sequence[Row]) -> int:
        return self._rng.choice([0, 8, 8, 40])

    def draft(self, wanting: list[Wanting], most: int) -> list[list[int]]:
        return [self._some(one) for one in wanting]

    def _some(self, one: Wanting) -> list[int]:
        tokens = self._expect(one)[0][: self._rng.randrange(self.most)]
        if self._rng.random() < 0.3:
            tokens = [*tokens, self._rng.randrange(self._vocab)]
        return tokens

    def observe(self, turn, now: float) -> None:
        tokens = [event for _, event in turn.events if isinstance(event, Token)]
        self.right += sum(token.drafted for token in tokens)


class Knows:
    """answer: all tokens that a row is going to get, as far as anybody knows. wrong: how many of
    its drafts are another token; vocab: of which there are so many."""

    def __init__(
        self, answer: Callable[[Row], list[int]], vocab: int, *, seed=0, wrong=0.2, most=6
    ) -> None:
        self._answer, self._vocab = answer, vocab
        self._wrong, self._most = wrong, most
        self._rng = random.Random(seed)
        self.drafted = 0

    def room(self) -> int:
        """Now and then none: then steps are made ahead again."""
        return self._rng.choice([0, 5, 16, 16, 48])

    def draft(self, rows: list[Wanting], most: int) -> list[list[int]]:
        return [self._of(one) for one in rows]

    def _of(self, one: Wanting) -> list[int]:
        rng = self._rng
        answer = self._answer(one.row)
        if rng.random() < 0.2 or not one.row.looks_ahead:
            return []
        assert answer[one.drawn - len(one.newest) : one.drawn] == one.newest[: len(answer)]
        drafts = answer[one.drawn : one.drawn + rng.randrange(1, self._most + 1)]
        drafts = [
            token if rng.random() >= self._wrong else rng.randrange(self._vocab) for token in drafts
        ]
        if one.row.constrained:
            one.row.foresee(one.newest, one.drawn)
            drafts = drafts[: one.row.allowed(drafts)]
        self.drafted += len(drafts)
        return drafts
