"""A request as all stages know it: checked and typed, whatever API it came through.

Frozen data, made by api/ on rank 0's HTTP threads. Imports no mlx.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INPUT = "input"  # the one argument of a tool that takes a text
ANY_MODEL = "*"
# Arguments of the call that renders a template, not variables of the template: with them a client
# or a setting could run a template of its own, or get something other than token ids back.
NOT_TEMPLATE_VARIABLES = {
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "tokenizer_kwargs", "sanitize_control_tokens",
    "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask",
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Defaults are OpenAI's; a model's own may replace them."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    seed: int | None = None  # int64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Common:
    """What every kind of request may ask of the engine."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None  # None: the server's default, or as many as fit
    min_tokens: int = 0
    n: int = 1  # choices a prompt
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    logprobs: int | None = None  # None: none; else how many alternatives beside each token
    stream: bool = False
    include_usage: bool = False
    return_progress: bool = False  # the stream tells how far the prompt is
    speculate: bool = True  # drafts may be made for it


@dataclass(frozen=True)
class Format:
    """What the text of an answer must match.

    kind: "json_object" (value None), "json_schema" (a JSON schema), "regex" (a pattern), "choice"
    (a list of strings), "lark" or "ebnf" (a grammar). field names where the client put it, for
    errors.
    """

    kind: str
    value: Any = None
    strict: bool = False
    field: str = "response_format"


@dataclass(frozen=True)
class ToolChoice:
    """mode: "none", "auto", "required" (any tool, at least one call), "named" (this one)."""

    mode: str = "auto"
    name: str | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to continue, from whichever dialect it came.

    messages are as chat templates expect them: content is text, tool-call arguments are objects.
    tools are OpenAI's function tools: {"type": "function", "function": {"name", "description",
    "parameters"}}; deferred: names of those that the prompt does not list. text_formats: what the
    INPUT of a tool must match when the tool is forced, by the tool's name. continues: the answer
    goes on with the last message, which is the assistant's. thinking_budget: tokens after which a
    thought is closed; None: no limit. source: the field that the client put them in, for errors.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    format: Format | None = None
    continues: bool = False
    thinking_budget: int | None = None
    common: Common = field(default_factory=Common)
    text_formats: Mapping[str, Format] = field(default_factory=dict)
    deferred: frozenset[str] = frozenset()
    source: str = "messages"


@dataclass(frozen=True)
class Places:
    """Where other prompts are likely to part from one, in tokens from its start, the first one
    first. shared: the longest of them with nothing of its own conversation in it; 0: none."""

    at: tuple[int, ...] = ()
    shared: int = 0


NOWHERE = Places()


@dataclass(frozen=True)
class CompletionRequest:
    """Prompts to continue: text, or token ids. suffix: what each answer is followed by."""

    prompts: list[str | list[int]]
    suffix: str = ""
    echo: bool = False
    format: Format | None = None
    common: Common = field(default_factory=Common)


@dataclass(frozen=True)
class Served:
    """What requests are checked against: the model's names and its default sampling. aliases: "*"
    among them stands for any. others: that are served, too, and are not meant."""

    model_id: str
    aliases: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    others: tuple[str, ...] = ()

    def knows(self, name: str) -> bool:
        """Whether a client that asks for this model means the one that is served."""
        return name == self.model_id or name in self.aliases or ANY_MODEL in self.aliases
