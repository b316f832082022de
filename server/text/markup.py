"""How a model family marks reasoning and tool calls in the text that it writes.

What mlx-lm infers from the tokenizer comes first. Added here are the families that mlx-lm 0.32
has no markers for: gpt-oss (harmony), DeepSeek's calls, Llama 3's calls, Magistral's thinking.
Called on rank 0's HTTP threads; only looks at the tokenizer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.text.call_parsers import parse_deepseek, parse_dsml, parse_harmony, parse_llama

# Parsers that refuse a call whose end is missing, so that they can be asked without its end marker.
STRICT = {"json_tools", "mistral", "kimi_k3"}
# Turn markers have a few tokens; a section that was opened further back is not the template's.
OPENED_WITHIN = 4096

HARMONY_EDGES = {
    "header": [
        ("<|channel|>analysis<|message|>", "reasoning"),
        ("to=functions.", "tool"),
        ("<|message|>", "normal"),
    ],
    "reasoning": [("<|end|>", "header"), ("<|start|>", "header")],
    "normal": [("<|end|>", "header"), ("<|start|>", "header")],
    "tool": [("<|end|>", "header"), ("<|start|>", "header")],
}


@dataclass(frozen=True)
class Markup:
    """Named as in mlx_lm's TokenizerWrapper, for its make_text_state_machine.

    States are "normal" (content), "reasoning", "tool" and "header" (text that is dropped).
    """

    think_start: str | None = None
    think_end: str | None = None
    tool_call_start: str | None = None
    tool_call_end: str | None = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    initial: str = "normal"
    parser: Callable[[str, Any], Any] | None = None
    strict: bool = False  # the parser refuses cut calls
    plain_json: bool = False  # a call is a {"name", "arguments"} object and nothing else
    bare_json: bool = False  # an answer that begins with { is a call, without any marker
    reopens: bool = True  # there may be reasoning after content
    short_ids: bool = False  # the template takes back only ids of nine letters and digits

    @property
    def has_thinking(self) -> bool:
        return self.think_start is not None

    @property
    def has_tool_calling(self) -> bool:
        return self.tool_call_start is not None

    def without_calls(self) -> "Markup":
        """The same where calls are not asked for, and what looks like one is text."""
        edges = {
            state: [(text, to) for text, to in edges if to != "tool"]
            for state, edges in self.response_transitions.items()
            if state != "tool"
        }
        return replace(
            self,
            tool_call_start=None,
            tool_call_end=None,
            response_transitions=edges,
            parser=None,
            plain_json=False,
            bare_json=False,
        )


def markup_of(tokenizer: Any) -> Markup:
    """What the family of this mlx_lm TokenizerWrapper uses. Cheap enough for every request."""
    harmony = all(_has(tokenizer, token) for token in ("<|channel|>", "<|message|>", "<|start|>"))
    if harmony and not tokenizer.response_transitions:
        return Markup(
            tool_call_start="to=functions.",
            tool_call_end="<|call|>",
            response_transitions=HARMONY_EDGES,
            initial="header",
            parser=parse_harmony,
            strict=True,
        )
    kind = getattr(tokenizer.tool_parser, "__module__", "").rpartition(".")[2]
    found = Markup(
        think_start=tokenizer.think_start,
        think_end=tokenizer.think_end,
        tool_call_start=tokenizer.tool_call_start,
        tool_call_end=tokenizer.tool_call_end,
        structural_markers=tuple(tokenizer.structural_markers),
        response_transitions=tokenizer.response_transitions,
        initial=tokenizer.response_initial_state or "normal",
        parser=tokenizer.tool_parser,
        strict=kind in STRICT,
        plain_json=kind == "json_tools",
        # A marker of one token is a word that answers can speak about; longer ones are not.
        reopens=len(tokenizer.think_start_tokens or ()) != 1,
        short_ids=kind == "mistral",
    )
    if not found.has_thinking and _has(tokenizer, "[THINK]"):
        found = replace(found, think_start="[THINK]", think_end="[/THINK]", reopens=False)
    return found if found.has_tool_calling else replace(found, **_calls_of(tokenizer))


def initial_state(tokenizer: Any, markup: Markup, prompt_ids: Sequence[int]) -> str:
    """The state that an answer to this prompt begins in.

    mlx_lm.server takes any start of thinking without an end for an open one; but a user may write
    <think> in a message. Here no marker of turns may follow it, so it is the answer's own.
    """
    if markup.initial == "header":
        message = tokenizer.convert_tokens_to_ids("<|message|>")
        return "normal" if prompt_ids and prompt_ids[-1] == message else "header"
    if not markup.has_thinking:
        return markup.initial
    tail = list(prompt_ids[-OPENED_WITHIN:])
    start = _after_last(tail, _ids(tokenizer, markup.think_start))
    if start <= _after_last(tail, _ids(tokenizer, markup.think_end)):
        return "normal"
    after = tail[start:]
    return "normal" if set(tokenizer.get_added_vocab().values()) & set(after) else "reasoning"


def thinking_is_open(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Whether an answer to this prompt begins as reasoning."""
    return initial_state(tokenizer, markup_of(tokenizer), prompt_ids) == "reasoning"


def _calls_of(tokenizer: Any) -> dict[str, Any]:
    """Markers and parser of calls, for families that mlx-lm does not know."""
    if _has(tokenizer, "｜DSML｜"):
        start, end, parser = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>", parse_dsml
    elif _has(tokenizer, "<｜tool▁calls▁begin｜>"):
        start, end, parser = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", parse_deepseek
    elif _has(tokenizer, "<|python_tag|>"):
        start, end, parser = "<|python_tag|>", "", parse_llama
    else:
        return {}
    return {
        "tool_call_start": start,
        "tool_call_end": end,
        "parser": parser,
        "strict": True,
        "bare_json": parser is parse_llama,
    }


def _has(tokenizer: Any, token: str) -> bool:
    # Not get_vocab(): it would copy the whole vocabulary for every request.
    number = tokenizer.convert_tokens_to_ids(token)
    return number is not None and tokenizer.convert_ids_to_tokens(number) == token


def _ids(tokenizer: Any, text: str) -> list[int]:
    if _has(tokenizer, text):
        return [tokenizer.convert_tokens_to_ids(text)]
    return list(tokenizer.encode(text, add_special_tokens=False))


def _after_last(tokens: list[int], marker: list[int]) -> int:
    """Where the last occurrence of the marker ends; -1 if there is none."""
    for at in range(len(tokens) - len(marker), -1, -1):
        if tokens[at : at + len(marker)] == marker:
            return at + len(marker)
    return -1
