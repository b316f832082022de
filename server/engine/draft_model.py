"""A small model that expects what a larger one says next: its caches, and what it says itself.

Rank 0's main thread alone, which has the whole of it on its own device, while the other ranks wait
for rank 0's part of a step: nothing here is shared, and no collective is called. Every text has a
cache of its own, which follows it: it is filled piece by piece, what the text did not go on with is
cut off again, and of texts that nobody drafts for it is given up when others need the room.
What fails here raises whatever it is; the scheduler can do without (scheduler/model_drafts.py).
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from server.sampling.drafts import agreed
from server.sampling.filters import draw
from server.sampling.random_state import RandomState

GROWS_BY = 256  # tokens, mlx-lm's caches


class NoNumbers(ArithmeticError):
    """The model's logits are no numbers."""


@dataclass
class Held:
    """A text's cache. length: tokens of the text in it; ahead: the drafts that are behind them;
    used: the round in which it was."""

    caches: list[Any]
    length: int = 0
    ahead: list[int] = field(default_factory=list)
    used: int = 0

    @property
    def size(self) -> int:
        """Tokens."""
        return self.length + len(self.ahead)


class DraftModel:
    """vocab: tokens that it and the larger one know; context: tokens; room: bytes for its caches;
    token_bytes: of each token in one; weights: bytes. draft_s, read_s: seconds of a token that it
    drafts, and of one that it reads, as measured at the start."""

    def __init__(
        self,
        model: Any,
        *,
        vocab: int,
        context: int,
        token_bytes: int,
        weights: int = 0,
        room: int = 2**63,
        draft_s: float = 0.0,
        read_s: float = 0.0,
    ) -> None:
        self._model = model
        self._vocab = vocab
        self.context, self.weights, self.token_bytes = context, weights, token_bytes
        self.room, self.draft_s, self.read_s = room, draft_s, read_s
        self._held: dict[Hashable, Held] = {}
        self._round = 0

    def begin(self, keys: Collection[Hashable]) -> None:
        """A round: one step's drafts. keys: of all texts that go on; the others' are dropped."""
        self._round += 1
        for key in [key for key in self._held if key not in keys]:
            del self._held[key]

    def known(self, key: Hashable) -> int:
        """Tokens of a text that need not be read again."""
        held = self._held.get(key)
        return held.length if held is not None else 0

    def has_room(self, key: Hashable, tokens: int) -> bool:
        """Whether a text may have a cache of so many tokens, if those give way that were not used
        in this round or the last: texts in turns would take it from each other for ever."""
        busy = [one for other, one in self._held.items() if other != key and self._is_busy(one)]
        return tokens <= self.context and self._bytes(tokens, busy) <= self.room

    def read(self, key: Hashable, text: Sequence[int]) -> None:
        """The next tokens of a text, behind those that are known. Waits."""
        held = self._take(key, len(text))
        self._cut(held, len(held.ahead))
        self._model(mx.array([text]), cache=held.caches)
        mx.eval([cache.state for cache in held.caches])  # and nothing else: no logits are wanted
        held.length += len(text)

    def draft(self, key: Hashable, text: Sequence[int], states: Sequence[RandomState]) -> list[int]:
        """What it would say behind a text, with the random numbers of these places: what is drawn
        from what it expects is likelier to be what is drawn there than what it expects most. text:
        the tokens that are not known yet, one at least. Waits; raises NoNumbers."""
        held = self._take(key, len(text) + len(states))
        known = agreed(held.ahead[: len(text) - 1], text)
        self._cut(held, len(held.ahead) - known)
        held.length, held.ahead = held.length + known, []
        fed = mx.array([text[known:]])
        tokens, broken = [], []
        for state in states:
            logits = self._model(fed, cache=held.caches)[:, -1, : self._vocab].astype(mx.float32)
            broken.append(mx.any(mx.isnan(logits)))
            tokens.append(_choose(logits, state))
            mx.async_eval(tokens[-1], broken[-1])
            fed = tokens[-1][:, None]
        held.length += len(text) - known
        if any(one.item() for one in broken):
            raise NoNumbers("its logits are no numbers")
        drafts = mx.concatenate(tokens).tolist()
        held.ahead = drafts[:-1]  # the last was not fed
        return drafts

    def drop(self, key: Hashable) -> None:
        """Gives a text's cache up."""
        self._held.pop(key, None)

    @property
    def used_bytes(self) -> int:
        """Of all caches."""
        return self._bytes(0, self._held.values())

    def _take(self, key: Hashable, more: int) -> Held:
        """A text's cache, with room for so many tokens more."""
        held = self._held.pop(key, None) or Held(make_prompt_cache(self._model))
        others = sorted(self._held, key=lambda other: self._held[other].used)
        while others and self._bytes(held.size + more, self._held.values()) > self.room:
            del self._held[others.pop(0)]
        held.used = self._round
        self._held[key] = held
        return held

    def _is_busy(self, held: Held) -> bool:
        return held.used >= self._round - 1

    def _bytes(self, tokens: int, beside: Collection[Held]) -> int:
        """Of a cache of so many tokens, and others."""
        sizes = [tokens, *(held.size for held in beside)]
        return self.token_bytes * sum(size + GROWS_BY for size in sizes if size)

    def _cut(self, held: Held, tokens: int) -> None:
        if tokens:
            trim_prompt_cache(held.caches, tokens)
            held.ahead = held.ahead[: len(held.ahead) - tokens]


def _choose(logits: mx.array, state: RandomState) -> mx.array:
    """[1] int32, lazy, as a row draws."""
    if state.greedy:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    return draw(logits, [state])
