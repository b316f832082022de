"""Text in and text out: chat template, tokenizer, and streaming text with stop strings.

Called on rank 0's HTTP threads, while the engine runs on the main thread; holds no MLX arrays.
The tokenizer, detokenizer and text matcher are mlx-lm's.
"""

from typing import Any, Protocol

from server.errors import ApiError, bad_request
from server.fields import show
from server.requests import ChatRequest


class TextOut(Protocol):
    """Turns one request's tokens into text."""

    stopped: bool  # a stop string was reached; what follows is not part of the answer

    def add(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Prompts(Protocol):
    """What routes need of a tokenizer. vocab counts token ids."""

    vocab: int

    def from_chat(self, request: ChatRequest) -> list[int]: ...

    def from_text(self, text: str) -> list[int]: ...

    def text_out(
        self, stop: tuple[str, ...], end_tokens_are_text: bool, continues: bool
    ) -> TextOut: ...


class TokenizerPrompts:
    """Prompts over an mlx_lm TokenizerWrapper. vocab: size of the model's output."""

    def __init__(self, tokenizer: Any, vocab: int) -> None:
        self._tokenizer = tokenizer
        self.vocab = vocab

    def from_chat(self, request: ChatRequest) -> list[int]:
        """Token ids of a conversation. Raises ApiError 400 when the template refuses it."""
        if not self._tokenizer.has_chat_template:
            raise bad_request("This model has no chat template; use /v1/completions.", "messages")
        try:
            ids = self._tokenizer.apply_chat_template(
                request.messages,
                tools=request.tools,
                add_generation_prompt=True,
                **request.template_kwargs,
            )
            ids = [int(token) for token in ids]
        except Exception as error:
            # Templates raise whatever they like: unknown roles, wrong order, missing keys.
            raise _refused(error, "messages", "the model's chat template") from error
        return self._checked(ids, "messages")

    def from_text(self, text: str) -> list[int]:
        """Token ids of plain text, with the tokenizer's own special tokens."""
        try:
            ids = self._tokenizer.encode(text)
        except Exception as error:
            raise _refused(error, "prompt", "the tokenizer") from error
        return self._checked(list(ids), "prompt")

    def text_out(
        self,
        stop: tuple[str, ...],
        end_tokens_are_text: bool = False,
        continues: bool = False,
    ) -> TextOut:
        """A fresh TextOut. end_tokens_are_text: for ignore_eos, where they are ordinary.
        continues: the text goes on from a prompt, so a space at its start is part of it."""
        hidden = set() if end_tokens_are_text else set(self._tokenizer.eos_token_ids)
        detokenizer = self._tokenizer.detokenizer
        if continues:
            # mlx-lm's detokenizers drop a space at the start of a text; so this is not the start.
            for token in self._tokenizer.encode("a", add_special_tokens=False):
                detokenizer.add_token(token)
            _ = detokenizer.last_segment
        return StreamedText(detokenizer, stop, hidden)

    def _checked(self, ids: list[int], name: str) -> list[int]:
        if not ids:
            raise bad_request(f"{name!r} holds no tokens.", name)
        if max(ids) >= self.vocab:
            # A tokenizer with more tokens than its model; MLX would read beyond the embeddings.
            raise bad_request(f"{name!r} holds a token that the model does not have.", name)
        return ids


class StreamedText:
    """Text of a growing list of tokens, cut at the first stop string, wherever token edges fall.

    Text that could be the start of a stop string, or is an unfinished character, is held back.
    """

    def __init__(self, detokenizer: Any, stop: tuple[str, ...], hidden: set[int]) -> None:
        from mlx_lm.generate import TextStateMachine

        self.stopped = False
        self._detokenizer = detokenizer
        self._hidden = hidden
        self._machine = TextStateMachine
        edges = {"normal": [(word, None) for word in stop]} if stop else None
        self._state = TextStateMachine(edges).make_state()

    def add(self, token: int) -> str:
        """Text that this token makes certain; may be empty."""
        if token in self._hidden or self.stopped:
            return ""
        self._detokenizer.add_token(token)
        return self._match(self._detokenizer.last_segment)

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return ""
        self._detokenizer.finalize()
        text = self._match(self._detokenizer.last_segment)
        if not self.stopped:
            self._state, rest, _ = self._machine.flush(self._state)
            text += rest
        return text

    def _match(self, segment: str) -> str:
        self._state, text, name = self._machine.step(self._state, segment)
        self.stopped = name is None
        return text


def count_chars(value: Any) -> int:
    """Characters of all strings in a JSON value: what a chat template may write out."""
    chars, left = 0, [value]
    while left:  # no recursion: a tool call's arguments may be nested deeper than Python goes
        item = left.pop()
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list):
            left += item
    return chars


def _refused(error: Exception, param: str, by: str) -> ApiError:
    return bad_request(f"{param!r} was refused by {by}: {show(str(error), 300)}", param)
