"""What a request says of thinking, kept: the template's switches, and a budget of tokens.

Variables of templates are chosen on rank 0's HTTP threads; budgets are counted on its main thread,
as matchers are asked there, one a choice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.text.calls.formats import template_text
from server.text.markup import marker_ids, markup_of, thinking_is_open

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
USUAL = ("low", "medium", "high")  # where a template prints whatever it is given
WORD_BITS = 32


def variables(tokenizer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the template, with an effort that it knows: some refuse any other, and a model
    makes nothing of a word that it was not trained on."""
    found = dict(given)
    template, effort = template_text(tokenizer), found.get("reasoning_effort")
    if template and effort in EFFORTS:
        named = set(re.findall(rf"""['"]({"|".join(EFFORTS)})['"]""", template))
        known = named if len(named) > 1 else USUAL
        at = EFFORTS.index(effort)
        found["reasoning_effort"] = min(
            (word for word in EFFORTS if word in known),
            key=lambda word: abs(EFFORTS.index(word) - at),
        )
    return found


@dataclass(frozen=True)
class Budget:
    """A constraint on what is thought, before and beside that of the answer, if there is one.

    most: tokens of a thought; then its end is forced. start, end: ids that open and close one.
    thinking: whether the prompt has opened it. vocab: size of the logits' last axis.
    """

    most: int
    inner: Any
    start: tuple[int, ...]
    end: tuple[int, ...]
    thinking: bool
    vocab: int

    @property
    def holds_the_answer(self) -> bool:
        """Whether it says when the answer ends, too."""
        return self.inner is not None

    def matcher(self) -> "Counting":
        """A fresh matcher at the start of the answer."""
        return Counting(self, self.inner.matcher() if self.inner is not None else None)


def within_budget(most: int | None, inner: Any, tokenizer: Any, prompt: list[int], vocab: int):
    """The constraint inner, or None, with a budget if there is one that can be kept."""
    markup = markup_of(tokenizer)
    if most is None or not markup.has_thinking:
        return inner
    start, end = (marker_ids(tokenizer, m) for m in (markup.think_start, markup.think_end))
    thinking = thinking_is_open(tokenizer, prompt)
    if inner is not None and inner.thinking != thinking:
        return inner  # its grammar begins at once, so there is no thought to close
    return Budget(most, inner, tuple(start), tuple(end), thinking, vocab)


class Counting:
    """A matcher that counts a thought's tokens."""

    def __init__(self, budget: Budget, inner: Any) -> None:
        self._budget = budget
        self._inner = inner
        self._thinking = budget.thinking
        self._spent = self._begun = 0
        self._tail: tuple[int, ...] = ()  # as many as the longer marker has

    def accept(self, token: int) -> None:
        if self._inner is not None:
            self._inner.accept(token)
        start, end = self._budget.start, self._budget.end
        self._tail = (*self._tail, token)[-max(len(start), len(end)) :]
        if not self._thinking:
            # At the start alone: later on it is a word that an answer speaks about.
            self._begun += 1
            if self._begun == len(start) and self._tail == start:
                self._thinking, self._tail = True, ()
            return
        self._spent += 1
        if self._tail[-len(end) :] == end:
            self._thinking = False

    def mask(self) -> np.ndarray | None:
        inner = self._inner.mask() if self._inner is not None else None
        if not self._thinking:
            none_at_all = self._budget.most == 0 and self._begun == self._spent == 0
            return self._without_start(inner) if none_at_all else inner
        if self._spent < self._budget.most:
            return inner
        end = self._budget.end
        begun = max(n for n in range(len(end)) if not n or self._tail[-n:] == end[:n])
        word, bit = divmod(end[begun], WORD_BITS)
        mask = np.zeros(-(-self._budget.vocab // WORD_BITS), np.uint32)
        mask[word] = np.uint32(1 << bit)
        return mask

    def _without_start(self, inner: np.ndarray | None) -> np.ndarray | None:
        """What is allowed, but for a thought."""
        if len(self._budget.start) != 1:
            return inner
        if inner is None:
            inner = np.full(-(-self._budget.vocab // WORD_BITS), 2**32 - 1, np.uint32)
            if self._budget.vocab % WORD_BITS:
                inner[-1] = 2 ** (self._budget.vocab % WORD_BITS) - 1
        word, bit = divmod(self._budget.start[0], WORD_BITS)
        mask = inner.copy()
        mask[word] &= np.uint32(~(1 << bit) & (2**32 - 1))
        return mask if mask.any() else inner
