"""Holds answers to a grammar: which tokens may come next, for JSON, regexes, choices and Lark.

Rank 0 only. HTTP threads have grammars compiled (queue.py), so that what is impossible is
refused before the line; the main thread asks each matcher for its mask, once a token, and tells it
the token. Nothing here touches logits (token_masks does) or reads answers (forced_calls does).
"""

import copy
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from server.grammar.cache import GrammarCache, key_of
from server.grammar.calls import arguments_schema, calls_schema, find_tool
from server.grammar.checker import build, make_tokenizer, short_reason
from server.grammar.either import Harmony, Opener, either_grammar, harmony_grammar
from server.grammar.process import Checker, CheckerFailed
from server.grammar.queue import GrammarQueue, NotNow
from server.grammar.schema_limits import MAX_TOOLS_BYTES, check_schema, measure_schema
from server.grammar.unenforced import told, unenforced
from server.grammar.writer import schema_grammar, write_grammar
from server.protocol.client import SERVER, Client
from server.protocol.errors import ApiError, bad_request, engine_failed
from server.protocol.requests import Format, ToolChoice

log = logging.getLogger(__name__)

WORD_BITS = 32
# llguidance's own limits on a step are on its work, and some grammars take half a second for what
# they allow. Every row of the batch waits for that, so a request that does it again is ended.
STEP_CPU_S = 0.005  # of one mask, and of taking one token; what goes beyond is counted
EXCESS_CPU_S = 1.0  # of one choice


class GrammarError(Exception):
    """A matcher cannot go on: a token that was not allowed, or a limit on its work was reached."""


class Matcher:
    """One choice's place in a grammar. For one thread; matchers share nothing.

    When the grammar is complete, only end tokens are allowed, however often one is accepted.
    """

    def __init__(self, inner: LLMatcher, sizes: tuple[int, int], think_end: tuple[int, ...]):
        self._inner = inner
        self._sizes = sizes  # tokens of the logits, tokens that llguidance's masks cover
        self._think_end = think_end
        self._last: tuple[int, ...] | None = () if think_end else None  # None: thinking is over
        self._excess = 0.0

    def accept(self, token: int) -> None:
        """Moves on by the token that was chosen. Raises GrammarError if it is not allowed."""
        if self._last is not None:
            self._last = self._thought(self._last, token)
        else:
            began = time.thread_time()
            taken = self._inner.consume_token(token)
            self._count(time.thread_time() - began)
            if not taken:
                raise GrammarError(short_reason(self._inner.get_error()))

    def mask(self) -> np.ndarray | None:
        """Which tokens may come next; None: any.

        uint32 [ceil(vocab / 32)], bit i of word w is token 32 w + i and set if it is allowed; bits
        past the tokenizer's own tokens are 0, and at least one bit is set. The caller's to keep.
        Raises GrammarError.
        """
        if self._last is not None:
            return None
        vocab, covered = self._sizes
        words = np.zeros(-(-covered // WORD_BITS), np.uint32)
        began = time.thread_time()
        self._inner.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._count(time.thread_time() - began)
        if self._inner.is_error():
            raise GrammarError(short_reason(self._inner.get_error()))
        if covered > vocab:
            words = words[: -(-vocab // WORD_BITS)]
            if vocab % WORD_BITS:
                words[-1] &= np.uint32(2 ** (vocab % WORD_BITS) - 1)
        if not words.any():
            raise GrammarError("no token is allowed")
        return words

    def allows(self, tokens: Sequence[int]) -> int:
        """How many of these may come next, one after another."""
        last, free = self._last, 0
        while last is not None and free < len(tokens):
            last = self._thought(last, tokens[free])
            free += 1
        began = time.thread_time()
        allowed = self._inner.validate_tokens(list(tokens[free:]))
        self._count(time.thread_time() - began)
        return free + allowed

    def forced(self) -> list[int]:
        """The tokens in which what has to come next is usually written."""
        if self._last is not None:
            return []
        began = time.thread_time()
        tokens = self._inner.compute_ff_tokens()
        self._count(time.thread_time() - began)
        return list(itertools.takewhile(lambda token: token < self._sizes[0], tokens))

    def look_ahead(self, tokens: Sequence[int]) -> list[np.ndarray | None]:
        """The mask behind each of these tokens, as far as they are allowed. Moves nothing."""
        last, taken, masks = self._last, 0, []
        try:
            for token in tokens:
                if self._last is not None:
                    self._last = self._thought(self._last, token)
                elif self._inner.try_consume_tokens([token]):
                    taken += 1
                else:
                    break
                masks.append(self.mask())
        finally:
            self._last = last
            if taken and not self._inner.is_error():
                self._inner.rollback(taken)
        return masks

    def _thought(self, last: tuple[int, ...], token: int) -> tuple[int, ...] | None:
        """The thought's last tokens, or None where this one ends it."""
        last = (*last, token)[-len(self._think_end) :]
        return None if last == self._think_end else last

    def _count(self, seconds: float) -> None:
        self._excess += max(0.0, seconds - STEP_CPU_S)
        if self._excess > EXCESS_CPU_S:
            raise GrammarError("its steps take too long")

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing but its end may follow."""
        return self._last is None and self._inner.is_stopped()


class Grammar:
    """A compiled grammar, from which any thread may start matchers."""

    def __init__(self, start: LLMatcher, sizes: tuple[int, int]) -> None:
        self._start = start
        self._sizes = sizes
        self._lock = threading.Lock()  # llguidance's objects refuse two threads at once

    def matcher(self, think_end: tuple[int, ...] | None = None) -> Matcher:
        """A fresh matcher, for one choice.

        think_end: token ids; until they have come in a row there is no mask, and the constraint
        begins with the very next token. No blank line is let in between, though models write one
        there in free text: it would be part of an answer that must match exactly. None: at once.
        """
        with self._lock:
            inner = self._start.deep_copy()
        return Matcher(inner, self._sizes, think_end or ())


class Grammars:
    """Compiles, each grammar once; those that are known cost nothing. For HTTP threads.

    tokenizer: a fast Hugging Face tokenizer, or mlx-lm's wrapper of one. vocab: size of the
    logits' last axis, which is often larger than the tokenizer's. eos_ids: what ends an answer.
    Whoever asks waits as an Client does, and may be told to come back later (queue.py).
    """

    def __init__(self, tokenizer: Any, vocab: int, eos_ids) -> None:
        self._source = tokenizer
        self._vocab = vocab
        self._eos = sorted(eos_ids)
        self._tools: tuple[LLTokenizer, Checker, tuple[int, int]] | None = None
        self._broken: ApiError | None = None  # why there never will be tools
        self._cache = GrammarCache()
        self._queue = GrammarQueue(self._make, self._cache.find)

    def compile(self, wanted: Format, client: Client = SERVER) -> Grammar:
        """The grammar of an answer's format. Raises ApiError, 400 naming its field, and whatever
        asking raises."""
        grammar = self._find(write_grammar(wanted), wanted.field, client)
        places = told(unenforced(wanted.value)) if wanted.kind == "json_schema" else ""
        if isinstance(grammar, str):
            grammar += f" (at {places})" if places else ""
            what = "schema" if wanted.kind == "json_schema" else "grammar"
            raise bad_request(
                f"The {what} in {wanted.field!r} cannot be used: {grammar}",
                wanted.field,
            )
        if places:
            log.warning("left out of the schema in %s: %s", wanted.field, places)
        return grammar

    def compile_calls(
        self,
        tools: list[dict[str, Any]],
        choice: ToolChoice,
        parallel: bool,
        client: Client = SERVER,
    ) -> Grammar:
        """The grammar of forced calls. choice is "named" or "required".

        Raises ApiError 400 naming the tool whose parameters cannot be used.
        """
        possible, text = self._calls(tools, choice, parallel, client)
        grammar = self._find(text, "tools", client)
        if isinstance(grammar, Grammar):
            _tell_unenforced(possible)
            return grammar
        for number, tool in possible:
            self._check_tool(tool, number, client)
        raise bad_request(f"The tools' parameters cannot be used together: {grammar}", "tools")

    def compile_either(
        self,
        wanted: Format,
        tools: list[dict[str, Any]],
        parallel: bool,
        form: Opener | Harmony,
        client: Client = SERVER,
    ) -> Grammar:
        """The grammar of an answer that has the format or is a call. form: see either.

        Raises ApiError as compile and compile_calls do.
        """
        answer = write_grammar(wanted)
        possible, calls = self._calls(tools, ToolChoice("required"), parallel, client)
        if isinstance(form, Harmony):
            arguments = [
                (
                    tool["function"]["name"],
                    schema_grammar(
                        arguments_schema(tool),
                        _parameters(number),
                        strict=bool(tool["function"].get("strict")),
                        one_line=True,
                    ),
                )
                for number, tool in possible
            ]
            text = harmony_grammar(answer, arguments, form)
        else:
            text = either_grammar(answer, calls, form)
        grammar = self._find(text, wanted.field, client)
        if isinstance(grammar, Grammar):
            _tell_unenforced(possible)
            return grammar
        self.compile(wanted, client)
        for number, tool in possible:
            self._check_tool(tool, number, client)
        raise bad_request(
            f"{wanted.field!r} and the tools' parameters cannot be used together: {grammar}",
            wanted.field,
        )

    def _calls(
        self, tools: list[dict[str, Any]], choice: ToolChoice, parallel: bool, client: Client
    ) -> tuple[list[tuple[int, dict[str, Any]]], str]:
        """The tools that choice leaves, by number, and the text of their calls' grammar."""
        named = find_tool(tools, choice.name) if choice.mode == "named" else None
        possible = [(n, tool) for n, tool in enumerate(tools) if named in (None, tool)]
        size = 0
        for number, tool in possible:
            size += measure_schema(arguments_schema(tool), _parameters(number))
            if size > MAX_TOOLS_BYTES:
                raise bad_request(
                    f"The parameters of 'tools' have more than {MAX_TOOLS_BYTES} bytes together.",
                    "tools",
                )
        for number, tool in possible:
            # Strict ones alone first: together with others they are compiled leniently.
            if tool["function"].get("strict"):
                self._check_tool(tool, number, client)
            else:
                check_schema(arguments_schema(tool), _parameters(number))
        strict = all(tool["function"].get("strict") for _, tool in possible)
        schema = calls_schema(tools, choice, parallel)
        try:
            return possible, schema_grammar(schema, "tools", strict=strict, one_line=True)
        except ApiError:
            for number, tool in possible:
                self._check_tool(tool, number, client)  # tells whose it is
            raise

    def warm(self) -> None:
        """Does now what the first compile would wait for: a second or two, for large vocabularies.
        Never raises; the requests that need a grammar are told."""
        try:
            self.compile(Format("json_object"))
        except ApiError as error:
            log.warning("structured output is not available: %s", error.message)

    def close(self) -> None:
        """Ends the child process; whoever waits is told."""
        self._queue.close(lambda: self._tools and self._tools[1].stop())
        if self._tools is not None:
            self._tools[1].close()

    def _check_tool(self, tool: dict[str, Any], number: int, client: Client) -> None:
        field = _parameters(number)
        schema, strict = arguments_schema(tool), bool(tool["function"].get("strict"))
        check_schema(schema, field)
        text = schema_grammar(schema, field, strict=strict, one_line=True)
        grammar = self._find(text, field, client)
        if isinstance(grammar, str):
            places = told(unenforced(schema)) if strict else ""
            grammar += f" (at {places})" if places else ""
            raise bad_request(f"The schema in {field!r} cannot be used: {grammar}", field)

    def _find(self, text: str, field: str, client: Client) -> Grammar | str:
        """The compiled grammar, or the reason against it."""
        if getattr(self._source, "backend_tokenizer", None) is None or not self._eos:
            raise bad_request(
                f"{field!r}: this model's tokenizer does not allow structured output.",
                field,
                "unsupported_parameter",
            )
        return self._queue.ask(text, client)

    # On the queue's thread.

    def _make(self, text: str, source: str) -> Grammar | str:
        """Compiles, and remembers the grammar or the reason against it."""
        tokenizer, checker, sizes = self._tools or self._make_tools()
        try:
            verdict = checker.check(text)
        except CheckerFailed as error:
            raise NotNow(str(error), all=not error.started) from error
        reason = verdict.reason
        if not reason:
            # Other threads run meanwhile: llguidance compiles without Python's lock.
            try:
                start, reason = build(tokenizer, text)
            except Exception as error:  # as in the child: the grammar is to blame
                reason = short_reason(str(error)) or type(error).__name__
        if reason:
            self._cache.refuse(key_of(text), reason)
            return reason
        grammar = Grammar(start, sizes)
        self._cache.keep(key_of(text), grammar, verdict.bytes, source)
        return grammar

    def _make_tools(self) -> tuple[LLTokenizer, Checker, tuple[int, int]]:
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        fast = copy.copy(self._source.backend_tokenizer)  # its settings are the prompts', too
        fast.no_padding()
        fast.no_truncation()
        # Some models have fewer logits than their tokenizer has tokens.
        covered = max(self._vocab, fast.get_vocab_size(with_added_tokens=True))
        spec = {"tokenizer": fast.to_str(), "vocab": covered, "eos": self._eos}
        try:
            tokenizer = make_tokenizer(spec)
        except ValueError as error:
            log.error("llguidance does not take this model's tokenizer: %s", error)
            self._broken = engine_failed("Structured output is not available for this model.")
            raise self._broken from error
        self._tools = (tokenizer, Checker(spec), (self._vocab, covered))
        return self._tools


def _tell_unenforced(tools: list[tuple[int, dict[str, Any]]]) -> None:
    for number, tool in tools:
        if places := told(unenforced(arguments_schema(tool))):
            log.warning("left out of the schema in %s: %s", _parameters(number), places)


def _parameters(number: int) -> str:
    return f"tools[{number}].function.parameters"
