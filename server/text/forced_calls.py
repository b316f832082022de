"""Forced tool calls: a grammar makes the model write plain JSON, whatever its own format is.

tool_choice "named": the answer is the arguments object of that function, or, where the function
takes a text that has a grammar of its own, that text. "required": it is an array of
{"name", "arguments"} objects. Called on rank 0's HTTP threads, one ForcedCalls for each
choice; the arguments go out as they arrive.
"""

import json
from typing import Any

from server.protocol.pieces import CallPiece, Parts
from server.protocol.requests import INPUT, ToolChoice
from server.text.call_scanner import SPACE, CallScanner
from server.text.call_text import new_call_id
from server.text.markup import markup_of


class ForcedCalls:
    """A pieces.TextOut. Stop strings do not act: there is no content, and half a call is none.

    tokenizer: an mlx_lm TokenizerWrapper. hidden: token ids that are no text. choice: "named" or
    "required". thinks: the grammar starts after the end of thinking, so all before it is reasoning.
    as_text: the answer is the INPUT of the named function, as it is.
    """

    def __init__(
        self,
        tokenizer: Any,
        choice: ToolChoice,
        hidden: frozenset[int] | set[int] = frozenset(),
        parallel: bool = True,
        thinks: bool = False,
        as_text: bool = False,
    ) -> None:
        self.stopped: str | None = None
        self.reasoning_tokens = 0
        self._detokenizer = tokenizer.detokenizer
        self._hidden = hidden
        self._name = choice.name if choice.mode == "named" else None
        self._parallel = parallel
        self._thought = _Thought(tokenizer) if thinks else None
        self._as_text = as_text
        self._count = 0
        self._scanner: CallScanner | None = None
        self._told = False  # the call that is being read has gone out with its name

    def add(self, token: int) -> Parts:
        """What this token makes certain."""
        if token in self._hidden:
            return Parts()
        thinking = self._thought is not None and not self._thought.ended
        self._detokenizer.add_token(token)
        parts = self._read(self._detokenizer.last_segment)
        self.reasoning_tokens += thinking and not self._thought.ended
        return parts

    def finish(self, reason: str) -> tuple[Parts, str]:
        """What was held back; "tool_calls" for "stop", if there is a call."""
        self._detokenizer.finalize()
        parts = self._read(self._detokenizer.last_segment)
        if self._thought is not None and not self._thought.ended:
            parts += Parts(reasoning=self._thought.flush())
        elif self._as_text and reason == "stop":
            parts += Parts(calls=(*self._begun(), CallPiece(0, arguments='"}')))
        return parts, "tool_calls" if self._count and reason == "stop" else reason

    def _read(self, text: str) -> Parts:
        reasoning = ""
        if self._thought is not None:
            reasoning, text = self._thought.read(text)
        if self._as_text:
            calls = self._input(text)
        else:
            calls = self._arguments(text) if self._name is not None else self._array(text)
        return Parts(reasoning=reasoning, calls=tuple(calls))

    def _arguments(self, text: str) -> list[CallPiece]:
        """All of the text is the arguments of the one call."""
        if not self._count:
            text = text.lstrip(SPACE)
            if not text:
                return []
            self._count = 1
            return [CallPiece(0, new_call_id(), self._name), CallPiece(0, arguments=text)]
        return [CallPiece(0, arguments=text)] if text else []

    def _input(self, text: str) -> list[CallPiece]:
        """All of the text is the one argument of the one call."""
        if not text:
            return []
        return [*self._begun(), CallPiece(0, arguments=json.dumps(text)[1:-1])]

    def _begun(self) -> list[CallPiece]:
        """The beginning of the call with a text, if it has not been told."""
        if self._count:
            return []
        self._count = 1
        opening = f'{{"{INPUT}": "'
        return [CallPiece(0, new_call_id(), self._name), CallPiece(0, arguments=opening)]

    def _array(self, text: str) -> list[CallPiece]:
        """The text is an array of calls, or one call if the grammar left the array out."""
        pieces: list[CallPiece] = []
        for char in text:
            if self._scanner is None:
                # Between calls: brackets, commas and white space.
                if char != "{" or (self._count and not self._parallel):
                    continue
                self._scanner, self._told = CallScanner(), False
            self._scanner.feed(char)
            if self._scanner.done:
                pieces += self._taken()
                if not self._told and self._scanner.name:
                    pieces += [self._opening(), CallPiece(self._count - 1, arguments="{}")]
                self._scanner = None
        if self._scanner is not None:
            pieces += self._taken()
        return pieces

    def _taken(self) -> list[CallPiece]:
        arguments = self._scanner.take()
        if not arguments:
            return []
        opening = [] if self._told else [self._opening()]
        return [*opening, CallPiece(self._count - 1, arguments=arguments)]

    def _opening(self) -> CallPiece:
        self._told = True
        self._count += 1
        return CallPiece(self._count - 1, new_call_id(), self._scanner.name)


class _Thought:
    """The reasoning before a forced call: everything up to the first end of thinking."""

    def __init__(self, tokenizer: Any) -> None:
        from mlx_lm.generate import TextStateMachine

        markup = markup_of(tokenizer)
        self.ended = not markup.think_end
        starts = [(markup.think_start, "thinking")] if markup.think_start else []
        self._machine = TextStateMachine(
            {"thinking": [*starts, (markup.think_end or "", "ended")], "ended": []}
        )
        self._state = self._machine.make_state("thinking")
        self._space = ""
        self._begun = False

    def read(self, text: str) -> tuple[str, str]:
        """The reasoning in the text, and what comes after it."""
        if self.ended:
            return "", text
        self._state, segments = self._machine.split(self._state, text)
        reasoning = self._trimmed("".join(part for name, part in segments if name == "thinking"))
        self.ended = self._state[0] == "ended"
        return reasoning, "".join(part for name, part in segments if name == "ended")

    def flush(self) -> str:
        """A beginning of the marker that did not go on."""
        return self._trimmed(self._state[3])

    def _trimmed(self, text: str) -> str:
        """Without white space at both ends of the reasoning."""
        text = self._space + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept
