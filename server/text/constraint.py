"""A grammar and where in an answer it begins: at once, or after the model has thought.

Compiled on HTTP threads; its matchers are asked on rank 0's main thread, one a choice. A model
whose prompt has opened a thinking section thinks freely until it closes it. One that may think
but has not begun may open a section instead of the constrained text, as its very first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from server.grammar.grammars import Grammar, Matcher
from server.text.markup import thinking_is_open

LAYOUT_TOKENS = 1  # the newlines that templates put after the end of a section


@dataclass(frozen=True)
class Constraint:
    """think_start: id of the token that may open thinking; think_end: ids that close it, empty
    where the model does not think. thinking: whether the prompt has opened it."""

    grammar: Grammar
    think_start: int | None = None
    think_end: tuple[int, ...] = ()
    thinking: bool = False
    holds_the_answer: ClassVar[bool] = True  # else only the thought before it

    @classmethod
    def for_chat(
        cls, grammar: Grammar, tokenizer: Any, prompt: list[int], may_think: bool
    ) -> "Constraint":
        """tokenizer: an mlx_lm TokenizerWrapper; prompt: the ids that the answer follows.
        may_think: whether the answer may open a thinking section of its own."""
        if not tokenizer.has_thinking or not tokenizer.think_end_tokens:
            return cls(grammar)
        start, end = tuple(tokenizer.think_start_tokens), tuple(tokenizer.think_end_tokens)
        if thinking_is_open(tokenizer, prompt):
            return cls(grammar, None, end, thinking=True)
        # A template that was told not to think ends the prompt with an empty section.
        closed = tokenizer.rfind_think_end(prompt, start=len(prompt) - len(end) - LAYOUT_TOKENS)
        first = start[0] if may_think and len(start) == 1 and closed < 0 else None
        return cls(grammar, first, end)

    def matcher(self) -> "Matcher | MayThink":
        """A fresh matcher at the start of the answer."""
        if self.thinking:
            return self.grammar.matcher(self.think_end)
        if self.think_start is not None:
            return MayThink(self)
        return self.grammar.matcher()


class MayThink:
    """A matcher whose first token decides whether the grammar begins now or after thinking."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._matcher = constraint.grammar.matcher()
        self._first = True

    def accept(self, token: int) -> None:
        if self._first and token == self._constraint.think_start:
            self._matcher = self._constraint.grammar.matcher(self._constraint.think_end)
        else:
            self._matcher.accept(token)
        self._first = False

    def allows(self, tokens: Sequence[int]) -> int:
        return 0 if self._first else self._matcher.allows(tokens)

    def forced(self) -> list[int]:
        return [] if self._first else self._matcher.forced()

    def look_ahead(self, tokens: Sequence[int]) -> list[np.ndarray | None]:
        return [] if self._first else self._matcher.look_ahead(tokens)

    def mask(self) -> np.ndarray | None:
        mask = self._matcher.mask()
        if self._first and mask is not None:
            mask = mask.copy()
            word, bit = divmod(self._constraint.think_start, 32)
            mask[word] |= np.uint32(1 << bit)
        return mask
