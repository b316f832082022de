"""Text in: chat template and tokenizer; and the right way out for what comes back.

Called on rank 0's HTTP threads, while the engine runs on the main thread; holds no MLX arrays.
The tokenizer, its templates, parsers and detokenizers are mlx-lm's (but see byte_level). Text that
is too long for the context is refused before it is tokenized, and large text is tokenized in a
child process.
"""

import contextlib
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from server.grammar.grammars import Grammars
from server.protocol.client import SERVER, Client, ClientGone
from server.protocol.errors import ApiError, bad_request, context_exceeded, show, wrong
from server.protocol.events import Score
from server.protocol.pieces import TextOut, TokenLogprob
from server.protocol.requests import ChatRequest, Common, CompletionRequest, Format, Places
from server.text.byte_level import bytes_reader, mend
from server.text.chat_text import ChatText
from server.text.constraint import Constraint
from server.text.encoder import Encoder, Unavailable
from server.text.forced_calls import ForcedCalls
from server.text.infill import Suffix, infill_of
from server.text.markup import call_form
from server.text.places import finder_of
from server.text.plain_text import PlainText
from server.text.plainer_turns import plainer
from server.text.stop_strings import stop_words
from server.text.thinking import Budget, variables, within_budget
from server.text.token_bytes import bytes_per_token

# Bytes of text. Smaller ones are tokenized in this process, by a call that lets other threads run;
# larger ones in a child, and the largest in another, so that they keep nobody else waiting.
LARGE_TEXT, HUGE_TEXT = 256 * 2**10, 4 * 2**20
# Stands at the end of a message that the answer continues, where the prompt is cut.
CONTINUED = "<|CONTINUED HERE|>"
UNLIMITED = 2**62  # tokens: no text is too long


class Prompts(Protocol):
    """What routes need of a tokenizer. vocab counts token ids; token_bytes: of UTF-8 text, the most
    that one token stands for. What turns text into tokens takes the most tokens that may come of
    it (context) and the client that asks."""

    vocab: int
    token_bytes: int

    def from_chat(
        self, request: ChatRequest, open_turn: bool = True, *, context: int, client: Client
    ) -> list[int]: ...

    def places(self, request: ChatRequest, prompt: list[int], client: Client) -> Places: ...

    def instructions(self, request: ChatRequest, *, context: int) -> list[int]: ...

    def from_text(self, text: str, **bounds: Any) -> list[int]: ...

    def suffix(self, text: str, *, context: int, client: Client) -> Suffix: ...

    def from_around(
        self, prefix: str | list[int], suffix: Suffix, *, context: int, client: Client
    ) -> list[int]: ...

    def encode(
        self, text: str, special_tokens: bool, *, context: int, client: Client
    ) -> list[int]: ...

    def chat_out(self, request: ChatRequest, constraint: Any, prompt: list[int]) -> TextOut: ...

    def plain_out(self, common: Common) -> TextOut: ...

    def chat_constraint(self, request: ChatRequest, prompt: list[int], client: Client) -> Any: ...

    def plain_constraint(self, request: CompletionRequest, client: Client) -> Any: ...

    def describe(self, score: Score) -> TokenLogprob: ...

    def decode(self, ids: list[int]) -> str: ...

    def token_names(self, ids: list[int]) -> list[str]: ...


class TokenizerPrompts:
    """Prompts over an mlx_lm TokenizerWrapper. vocab: size of the model's output. template_kwargs:
    variables of the chat template, for requests that do not say otherwise. find_places: whether
    anybody asks for them."""

    def __init__(
        self,
        tokenizer: Any,
        vocab: int,
        template_kwargs: Mapping[str, Any] | None = None,
        find_places: bool = False,
    ) -> None:
        mend(tokenizer)
        self._tokenizer = tokenizer
        self._bytes = bytes_reader(tokenizer)
        self._template_kwargs = template_kwargs or {}
        self._eos = set(tokenizer.eos_token_ids)
        self.vocab = vocab
        self.token_bytes = bytes_per_token(tokenizer)
        source = getattr(tokenizer, "_tokenizer", tokenizer)
        self._large, self._huge = Encoder(source), Encoder(source)
        self._grammars = Grammars(tokenizer._tokenizer, vocab, sorted(self._eos))
        self._infill = infill_of(tokenizer, vocab)
        self._finder = finder_of(tokenizer, find_places)

    # Text in.

    def from_chat(
        self,
        request: ChatRequest,
        open_turn: bool = True,
        *,
        context: int = UNLIMITED,
        client: Client = SERVER,
    ) -> list[int]:
        """Token ids of a conversation, with the start of the model's turn unless open_turn is
        False. Raises ApiError 400 when the template refuses it or it cannot fit."""
        source = request.source
        if not self._tokenizer.has_chat_template:
            raise bad_request("This model has no chat template; use /v1/completions.", source)
        try:
            text = self._rendered(request, open_turn)
        except Exception as error:
            # Templates raise whatever they like: unknown roles, wrong order, missing keys.
            raise _refused(error, source, "the model's chat template") from error
        if not isinstance(text, str):
            raise bad_request(f"{source!r}: the model's chat template gives no text.", source)
        return self._checked(self._encode(text, False, source, context, client), source)

    def places(self, request: ChatRequest, prompt: list[int], client: Client) -> Places:
        """Where others are likely to part from a prompt. Raises what client.look raises."""
        return self._finder.find(request, prompt, self._rendered, client.look)

    def instructions(self, request: ChatRequest, *, context: int = UNLIMITED) -> list[int]:
        """PlaceFinder's. Raises ApiError 400."""
        read = partial(self.from_chat, context=context)
        return self._finder.instructions(request, read, self._rendered)

    def _rendered(self, request: ChatRequest, open_turn: bool) -> str:
        """What the template makes of the conversation, or of a plainer form of it."""
        messages, tried = request.messages, []
        if request.continues:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + CONTINUED}]
        text, first = None, None
        for form in itertools.chain([messages], plainer(messages)):
            if form in tried:
                continue
            tried.append(form)
            try:
                text = self._render(request, form, open_turn and not request.continues)
                break
            except Exception as error:
                first = first or error
        else:
            raise first
        if not request.continues or not isinstance(text, str):
            return text
        at = text.rfind(CONTINUED)
        if at < 0:
            raise ValueError("it does not show the last message, which is to be continued")
        return text[:at]

    def _render(self, request: ChatRequest, messages: list[dict], open_turn: bool) -> str:
        tools = [one for one in request.tools if one["function"]["name"] not in request.deferred]
        return self._tokenizer.apply_chat_template(
            messages,
            # Some templates take an empty list for tools to show.
            tools=(tools or None) if request.tool_choice.mode != "none" else None,
            add_generation_prompt=open_turn,
            tokenize=False,
            **variables(self._tokenizer, {**self._template_kwargs, **request.template_kwargs}),
        )

    def from_text(self, text: str, **bounds: Any) -> list[int]:
        """Of plain text, with the tokenizer's special tokens; never none. bounds: as encode's."""
        ids = self.encode(text, special_tokens=True, **bounds)
        return self._checked(ids, bounds.get("param", "prompt"))

    def suffix(self, text: str, *, context: int = UNLIMITED, client: Client = SERVER) -> Suffix:
        """What answers are followed by. Raises ApiError 400 if no model of this tokenizer can write
        what stands before it."""
        if self._infill is None:
            allowed = "empty or absent: this model has no tokens for filling in the middle"
            raise wrong("suffix", text, allowed)
        return self._infill.suffix(
            text, lambda part: self._encode(part, False, "suffix", context, client)
        )

    def from_around(
        self,
        prefix: str | list[int],
        suffix: Suffix,
        *,
        context: int = UNLIMITED,
        client: Client = SERVER,
    ) -> list[int]:
        """Token ids of a prompt whose answer stands between these."""
        if isinstance(prefix, str):
            prefix = self._encode(prefix, False, "prompt", context, client)
        return self._checked(suffix.after(prefix), "prompt")

    def encode(
        self,
        text: str,
        special_tokens: bool,
        *,
        context: int = UNLIMITED,
        client: Client = SERVER,
        param: str = "prompt",
    ) -> list[int]:
        """Token ids of plain text. Raises ApiError 400, of param, if it is refused or too long."""
        return self._encode(text, special_tokens, param, context, client)

    def _encode(
        self, text: str, special_tokens: bool, param: str, context: int, client: Client
    ) -> list[int]:
        client.look()
        try:
            size = len(text.encode())
            check_length(size, self.token_bytes, context, param)
            if size > LARGE_TEXT:
                encoder = self._huge if size > HUGE_TEXT else self._large
                with contextlib.suppress(Unavailable):
                    return encoder.encode(text, special_tokens, client, param)
            return list(self._tokenizer.encode(text, add_special_tokens=special_tokens))
        except (ApiError, ClientGone):
            raise
        except Exception as error:
            raise _refused(error, param, "the tokenizer") from error

    def close(self) -> None:
        """Ends the child processes."""
        self._large.close()
        self._huge.close()

    # The way out.

    def chat_out(
        self, request: ChatRequest, constraint: Constraint | Budget | None, prompt: list[int]
    ) -> TextOut:
        """A fresh TextOut for one choice of a conversation that continues prompt."""
        common, hidden = request.common, self._hidden(request.common)
        if _forces_call(request):
            return ForcedCalls(
                self._tokenizer,
                request.tool_choice,
                hidden,
                request.parallel_tool_calls,
                thinks=constraint.thinking,
                as_text=_forced_text(request) is not None,
            )
        return ChatText(
            self._tokenizer,
            stop_words(common.stop),
            hidden,
            prompt,
            request.tools,
            parse_calls=bool(request.tools) and request.tool_choice.mode == "auto",
            parallel=request.parallel_tool_calls,
            json_calls=self._may_call(request),
            continues=request.messages[-1]["content"] if request.continues else None,
        )

    def plain_out(self, common: Common) -> TextOut:
        """A fresh TextOut for text that goes on from a prompt."""
        detokenizer = self._tokenizer.detokenizer
        # mlx-lm's detokenizers drop a space at the start of a text; so this is not the start.
        for token in self._tokenizer.encode("a", add_special_tokens=False):
            detokenizer.add_token(token)
        _ = detokenizer.last_segment
        return PlainText(detokenizer, stop_words(common.stop), self._hidden(common))

    def _hidden(self, common: Common) -> set[int]:
        """Ids that end an answer, and are no part of its text."""
        eos = set() if common.ignore_eos else self._eos
        return eos | set(common.stop_token_ids)

    # What the answer must match.

    def warm(self) -> None:
        """Builds what the first grammar would wait for. For a thread of its own."""
        self._grammars.warm()

    def chat_constraint(
        self, request: ChatRequest, prompt: list[int], client: Client
    ) -> Constraint | Budget | None:
        """The grammar of a forced call or of response_format, and the budget of a thought. Raises
        ApiError 400, and whatever the client's waiting raises."""
        constraint = self._answers_constraint(request, prompt, client)
        most = request.thinking_budget
        return within_budget(most, constraint, self._tokenizer, prompt, self.vocab)

    def _answers_constraint(
        self, request: ChatRequest, prompt: list[int], client: Client
    ) -> Constraint | None:
        """The grammar of a forced call or of response_format, which leaves room for calls. Raises
        ApiError 400, and whatever the client's waiting raises."""
        if (text := _forced_text(request)) is not None:
            grammar = self._grammars.compile(text, client)
        elif _forces_call(request):
            grammar = self._grammars.compile_calls(
                request.tools, request.tool_choice, request.parallel_tool_calls, client
            )
        elif self._may_call(request):
            grammar = self._grammars.compile_either(
                request.format,
                request.tools,
                request.parallel_tool_calls,
                call_form(self._tokenizer),
                client,
            )
        elif request.format is not None:
            grammar = self._grammars.compile(request.format, client)
        else:
            return None
        may_think = not _forces_call(request)
        return Constraint.for_chat(grammar, self._tokenizer, prompt, may_think)

    def _may_call(self, request: ChatRequest) -> bool:
        """Whether the answer is a call or else in a format."""
        both = bool(request.tools) and request.format is not None
        return both and request.tool_choice.mode == "auto" and bool(call_form(self._tokenizer))

    def plain_constraint(self, request: CompletionRequest, client: Client) -> Constraint | None:
        """The grammar of a completion. Raises as chat_constraint does."""
        if request.format is None:
            return None
        return Constraint(self._grammars.compile(request.format, client))

    # Log-probabilities.

    def describe(self, score: Score) -> TokenLogprob:
        """A Score with its text and bytes."""
        data = self._bytes(score.id)
        return TokenLogprob(
            score.id,
            data.decode("utf-8", "replace"),
            tuple(data),
            score.logprob,
            tuple(self.describe(Score(token, value)) for token, value in score.top),
        )

    def decode(self, ids: list[int]) -> str:
        """The text of a prompt that came as token ids."""
        return self._tokenizer.decode(ids)

    def token_names(self, ids: list[int]) -> list[str]:
        """The tokens' names in the vocabulary."""
        return self._tokenizer.convert_ids_to_tokens(ids)

    def _checked(self, ids: list[int], name: str) -> list[int]:
        if not ids:
            raise bad_request(f"{name!r} holds no tokens.", name)
        if max(ids) >= self.vocab:
            # A tokenizer with more tokens than its model; MLX would read beyond the embeddings.
            raise bad_request(f"{name!r} holds a token that the model does not have.", name)
        return ids


def check_length(size: int, token_bytes: int, context: int, param: str) -> None:
    """Refuses text that has more bytes than tokens of the context can stand for: to tokenize it
    would take minutes and gigabytes, only to find the same."""
    if size > context * token_bytes:
        raise context_exceeded(-(-size // token_bytes), context, param, counted=False)


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


def _forces_call(request: ChatRequest) -> bool:
    return bool(request.tools) and request.tool_choice.mode in ("named", "required")


def _forced_text(request: ChatRequest) -> Format | None:
    """What the answer must match as it is, where it is the text that a tool is called with."""
    if not _forces_call(request) or request.tool_choice.name is None:
        return None
    return request.text_formats.get(request.tool_choice.name)


def _refused(error: Exception, param: str, by: str) -> ApiError:
    return bad_request(f"{param!r} was refused by {by}: {show(str(error), 300)}", param)
