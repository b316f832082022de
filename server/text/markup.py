"""How a model family marks reasoning and tool calls in the text that it writes.

What mlx-lm infers from the tokenizer comes first. Added here are thinking that mlx-lm 0.32 has no
markers for (THINKING, and gpt-oss's and Solar's messages with headers), and the readers of calls
(calls/).
Called on rank 0's HTTP threads; only looks at the tokenizer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.grammar.either import Harmony, Opener
from server.text.calls.formats import NONE, name_of, reader_of, template_text
from server.text.calls.headed import HARMONY, MISTRAL, SOLAR
from server.text.calls.json_text import JsonAfter
from server.text.calls.reader import Reader

# Turn markers have a few tokens; a section that was opened further back is not the template's.
OPENED_WITHIN = 4096
MARKER_TOKENS = 64  # of a marker at most

_MESSAGE_ENDS = [("<|end|>", "header"), ("<|start|>", "header"), ("<|return|>", "header")]
HARMONY_EDGES = {
    "header": [("<|channel|>analysis<|message|>", "reasoning"), ("<|message|>", "normal")],
    "reasoning": _MESSAGE_ENDS,
    "normal": _MESSAGE_ENDS,
}
# Solar Open writes a thought, an answer and calls as messages of their own.
_SOLAR_ENDS = [("<|end|>", "header"), ("<|flush|>", "header"), ("<|begin|>", "header")]
SOLAR_EDGES = {
    "header": [("<|think|>", "reasoning"), ("<|content|>", "normal"), ("<|tool_calls|>", "normal")],
    "reasoning": _SOLAR_ENDS,
    "normal": _SOLAR_ENDS,
}
# Markers of thinking that mlx-lm does not look for, as tokens of the vocabulary.
THINKING = (
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
PLAIN_THINKING = ("<think>", "</think>")  # of several tokens, where the template has both
# Around an answer, as tokens; they are no part of it.
AROUND = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
)
# The same as plain text, in templates that have them and PLAIN_THINKING: Granite 3.3, Hunyuan.
PLAIN_AROUND = (("<response>", "</response>"), ("<answer>", "\n</answer>", "</answer>"))


@dataclass(frozen=True)
class Markup:
    """States are "normal" (content), "reasoning", "tool" and "header" (text that is dropped).

    edges: state -> markers in it, and the states that they lead to; beside those of thinking and
    calls.
    """

    think_start: str | None = None
    think_end: str | None = None
    edges: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    initial: str = "normal"
    reader: Reader | None = None
    reopens: bool = True  # there may be reasoning after content
    calls_first: bool = False  # calls are all of the answer, or there are none
    around: tuple[str, ...] = ()  # what opens content, and what may close it; dropped

    @property
    def has_thinking(self) -> bool:
        return self.think_start is not None

    @property
    def bare(self) -> tuple[str, ...]:
        """What a call without any marker begins an answer with."""
        return getattr(self.reader, "bare", ())

    @property
    def short_ids(self) -> bool:
        """The template takes back only ids of nine letters and digits."""
        return self.reader is MISTRAL

    def without_calls(self) -> "Markup":
        """The same where calls are not asked for, and what looks like one is text."""
        return replace(self, reader=None)

    def with_json_calls(self) -> "Markup":
        """The same under a grammar that lets the answer be calls (see call_form)."""
        if self.edges is HARMONY_EDGES:
            return self
        return replace(self, reader=JsonAfter(self.reader.openers[0]), calls_first=True)

    def markers(self, state: str, begun: bool) -> dict[str, str]:
        """The markers that count in a state, and the state that each leads to. begun: whether
        there is content already."""
        found = {}
        if self.has_thinking and state == "normal" and (self.reopens or not begun):
            found[self.think_start] = "reasoning"
        if self.has_thinking and state == "reasoning":
            found[self.think_end] = "normal"
        found |= {text: to for text, to in self.edges.get(state, ()) if to != "tool"}
        if self.around and state == "normal":
            found |= dict.fromkeys(self.around[begun:], "normal")
        # Where messages have headers, calls have some, too.
        calls = self.reader is not None and not (begun and self.calls_first)
        if calls and (state == "header" or self.initial != "header"):
            found |= dict.fromkeys(self.reader.openers, "tool")
        return found


def markup_of(tokenizer: Any) -> Markup:
    """What the family of this mlx_lm TokenizerWrapper uses. Cheap enough for every request."""

    def has(*tokens: str) -> bool:
        return all(_has(tokenizer, token) for token in tokens)

    reader, _ = reader_of(tokenizer, has)
    for headed, edges in ((HARMONY, HARMONY_EDGES), (SOLAR, SOLAR_EDGES)):
        if reader is headed and not tokenizer.response_transitions:
            return Markup(edges=edges, initial="header", reader=reader)
    around = [marker for pair in AROUND if has(*pair) for marker in pair]
    structural = [(marker, "normal") for marker in (*tokenizer.structural_markers, *around)]
    edges = dict(tokenizer.response_transitions)
    edges["normal"] = [*structural, *edges.get("normal", ())]
    found = Markup(
        think_start=tokenizer.think_start,
        think_end=tokenizer.think_end,
        edges=edges,
        initial=tokenizer.response_initial_state or "normal",
        reader=reader,
        # A marker of one token is a word that answers can speak about; longer ones are not.
        reopens=len(tokenizer.think_start_tokens or ()) != 1,
    )
    if not found.has_thinking:
        start, end = next((pair for pair in THINKING if has(*pair)), (None, None))
        found = replace(found, think_start=start, think_end=end, reopens=start is None)
    template = template_text(tokenizer)
    if all(marker in template for marker in PLAIN_THINKING):
        if not found.has_thinking:
            start, end = PLAIN_THINKING
            found = replace(found, think_start=start, think_end=end, reopens=False)
        around = (row for row in PLAIN_AROUND if row[0] in template and row[-1] in template)
        found = replace(found, around=next(around, ()))
    return found


@dataclass(frozen=True)
class Known:
    """What the server knows of how a model writes. calls: the format's name, "none" without one;
    calls_by: what it was known by; thinking: the markers, "none" without any."""

    calls: str
    calls_by: str
    thinking: str


def known_of(tokenizer: Any) -> Known:
    """For people: in the log, in /cluster, and before a launch."""
    markup = markup_of(tokenizer)
    _, by = reader_of(tokenizer, lambda token: _has(tokenizer, token))
    thinking = NONE
    if markup.has_thinking:
        thinking = f"{markup.think_start} ... {markup.think_end}"
    elif opening := [marker for marker, to in markup.edges.get("header", ()) if to == "reasoning"]:
        thinking = f"{opening[0]} ..."
    return Known(name_of(markup.reader), by, thinking)


def call_form(tokenizer: Any) -> Opener | Harmony | None:
    """How calls are written where a grammar decides. None for families without any, and for those
    whose answers are more than a thought and a text."""
    markup = markup_of(tokenizer)
    if markup.edges is HARMONY_EDGES:
        names = ("start", "channel", "constrain", "message", "end")
        if not all(_has(tokenizer, f"<|{name}|>") for name in names):
            return None
        return Harmony(*(tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names))
    if markup.reader is None or markup.initial == "header":
        return None
    opener = markup.reader.openers[0]
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content in opener
    }
    if not added:
        return ((opener, None),)
    parts = re.split(f"({'|'.join(map(re.escape, added))})", opener)
    return tuple((part, added.get(part)) for part in parts if part)


def initial_state(tokenizer: Any, markup: Markup, prompt_ids: Sequence[int]) -> str:
    """The state that an answer to this prompt begins in.

    mlx_lm.server takes any start of thinking without an end for an open one; but a user may write
    <think> in a message. Here no marker of turns may follow it, so it is the answer's own.
    """
    if markup.initial == "header":
        tail = list(prompt_ids[-MARKER_TOKENS:])
        for marker, state in markup.edges["header"]:
            ids = marker_ids(tokenizer, marker)
            if tail[-len(ids) :] == ids:
                return state
        return "header"
    if not markup.has_thinking:
        return markup.initial
    tail = list(prompt_ids[-OPENED_WITHIN:])
    start = _after_last(tail, marker_ids(tokenizer, markup.think_start))
    if start <= _after_last(tail, marker_ids(tokenizer, markup.think_end)):
        return "normal"
    after = tail[start:]
    return "normal" if set(tokenizer.get_added_vocab().values()) & set(after) else "reasoning"


def thinking_is_open(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Whether an answer to this prompt begins as reasoning."""
    return initial_state(tokenizer, markup_of(tokenizer), prompt_ids) == "reasoning"


def _has(tokenizer: Any, token: str) -> bool:
    # Not get_vocab(): it would copy the whole vocabulary for every request.
    number = tokenizer.convert_tokens_to_ids(token)
    return number is not None and tokenizer.convert_ids_to_tokens(number) == token


def marker_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a marker."""
    if _has(tokenizer, text):
        return [tokenizer.convert_tokens_to_ids(text)]
    return list(tokenizer.encode(text, add_special_tokens=False))


def _after_last(tokens: list[int], marker: list[int]) -> int:
    """Where the last occurrence of the marker ends; -1 if there is none."""
    for at in range(len(tokens) - len(marker), -1, -1):
        if tokens[at : at + len(marker)] == marker:
            return at + len(marker)
    return -1
