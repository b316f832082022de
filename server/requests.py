"""The client's JSON, checked and typed: what a request may ask for, before any work is done.

Called on rank 0's HTTP threads. Imports no mlx. Everything that can be refused is refused here,
with an ApiError that names the field. Unknown fields are ignored, as OpenAI's clients expect;
fields that would change the answer and are not supported yet are refused instead, because an
answer that silently ignores them is a wrong answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.errors import bad_request, model_not_found
from server.fields import (
    Body,
    array,
    boolean,
    check_text,
    integer,
    mapping,
    number,
    show,
    string,
    wrong,
)

MAX_JSON_DEPTH = 100
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_INT = 2**31 - 1
ROLES = ("system", "developer", "user", "assistant", "tool")
# Arguments of the call that renders a template, not variables of the template: with them a client
# could run a template of its own, or get something other than token ids back.
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
    """What chat and completions share."""

    sampling: Sampling
    max_tokens: int | None  # None: the server's default
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class ChatRequest:
    """A checked body of POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    template_kwargs: dict[str, Any]
    common: Common


@dataclass(frozen=True)
class CompletionRequest:
    """A checked body of POST /v1/completions. prompt is text, or token ids."""

    prompt: str | list[int]
    common: Common


@dataclass(frozen=True)
class Served:
    """What requests are checked against: the model's names and its default sampling."""

    model_id: str
    aliases: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError 400 for anything else."""
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not valid UTF-8: {error}") from None
    except RecursionError:
        raise bad_request(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.") from None
    except ValueError as error:  # JSONDecodeError, a constant, or an integer of absurd length
        raise bad_request(f"The body is not valid JSON: {show(str(error), 200)}") from None
    if not isinstance(body, dict):
        raise bad_request(f"The body must be a JSON object, not {show(body)}.")
    _check_depth(body)
    return body


def parse_chat(body: Body, served: Served) -> ChatRequest:
    """Checks a chat request. Raises ApiError."""
    common = _parse_common(body, served)
    _refuse_unsupported_chat(body)
    messages = array(body, "messages")
    if not messages:
        raise wrong("messages", messages, "a non-empty array of messages")
    return ChatRequest(
        messages=[_message(m, f"messages[{i}]") for i, m in enumerate(messages)],
        tools=array(body, "tools") or None,
        template_kwargs=_template_kwargs(body),
        common=common,
    )


def parse_completion(body: Body, served: Served) -> CompletionRequest:
    """Checks a completion request. Raises ApiError."""
    common = _parse_common(body, served)
    if boolean(body, "echo"):
        raise _unsupported("echo")
    if integer(body, "logprobs", 0, 20) is not None:  # 0 asks for the chosen tokens' own
        raise _unsupported("logprobs")
    if string(body, "suffix"):
        raise _unsupported("suffix")
    best_of = integer(body, "best_of", 1, 1)
    del best_of  # only 1 is allowed, and it changes nothing
    return CompletionRequest(prompt=_prompt(body.get("prompt")), common=common)


def check_model(body: Body, served: Served) -> None:
    """Absent means the served model; any other name is a 404. The name is never looked up."""
    model = string(body, "model")
    if model is not None and model != served.model_id and model not in served.aliases:
        raise model_not_found(show(model, 100)[1:-1], served.model_id)


def _parse_common(body: Body, served: Served) -> Common:
    check_model(body, served)
    if integer(body, "n", 1, 128) not in (None, 1):
        raise _unsupported("n", "1")
    if mapping(body, "logit_bias"):
        raise _unsupported("logit_bias")
    if integer(body, "min_tokens", 0, MAX_INT):
        raise _unsupported("min_tokens")
    if array(body, "stop_token_ids"):
        raise _unsupported("stop_token_ids")
    options = mapping(body, "stream_options") or {}
    max_tokens = integer(body, "max_completion_tokens", 1, MAX_INT)
    legacy_max = integer(body, "max_tokens", 1, MAX_INT)
    return Common(
        sampling=_sampling(body, served.sampling),
        max_tokens=legacy_max if max_tokens is None else max_tokens,
        stop=_stop(body.get("stop")),
        ignore_eos=boolean(body, "ignore_eos"),
        stream=boolean(body, "stream"),
        include_usage=boolean(options, "include_usage"),
    )


def _sampling(body: Body, default: Sampling) -> Sampling:
    def given(value, fallback):
        return fallback if value is None else value

    top_k = integer(body, "top_k", -1, MAX_INT)
    return Sampling(
        temperature=given(number(body, "temperature", 0, 2), default.temperature),
        top_p=given(number(body, "top_p", 0, 1, above=True), default.top_p),
        top_k=default.top_k if top_k is None else max(top_k, 0),  # vLLM's -1: no limit
        min_p=given(number(body, "min_p", 0, 1), default.min_p),
        seed=integer(body, "seed", INT64_MIN, INT64_MAX),
        presence_penalty=given(number(body, "presence_penalty", -2, 2), 0.0),
        frequency_penalty=given(number(body, "frequency_penalty", -2, 2), 0.0),
        repetition_penalty=given(
            number(body, "repetition_penalty", 0, 10, above=True), default.repetition_penalty
        ),
    )


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    allowed = f"a string or an array of at most {MAX_STOP_STRINGS} strings"
    if not isinstance(items, list) or len(items) > MAX_STOP_STRINGS:
        raise wrong("stop", value, allowed)
    for item in items:
        if len(check_text(item, "stop")) > MAX_STOP_CHARS:
            raise wrong("stop", item, f"at most {MAX_STOP_CHARS} characters long")
    # An empty stop string can stop nothing; some clients send one for "none".
    return tuple(dict.fromkeys(item for item in items if item))


def _message(message: Any, name: str) -> dict[str, Any]:
    """One turn, as chat templates expect it: text content, tool arguments as objects."""
    if not isinstance(message, dict):
        raise wrong(name, message, "an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise wrong(f"{name}.role", role, f"one of {', '.join(ROLES)}")
    turn: dict[str, Any] = {"role": role, "content": _content(message, name)}
    for key in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        if message.get(key) is not None:
            turn[key] = check_text(message[key], f"{name}.{key}")
    if message.get("tool_calls") is not None:
        calls = array(message, "tool_calls") or []
        turn["tool_calls"] = [
            _tool_call(call, f"{name}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    return turn


def _content(message: Mapping[str, Any], name: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return check_text(content, f"{name}.content")
    if not isinstance(content, list):
        raise wrong(f"{name}.content", content, "a string, null or an array of text parts")
    texts = []
    for i, part in enumerate(content):
        at = f"{name}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise wrong(f"{at}.type", kind, "'text' (this server takes text only)")
        texts.append(check_text(part.get("text"), f"{at}.text"))
    return "".join(texts)


def _tool_call(call: Any, name: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise wrong(name, call, "an object with a function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass  # the model's own malformed call, sent back to it: the template shows it as text
    return {**call, "function": {**function, "arguments": arguments}}


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]  # a list of one prompt is that prompt
    if isinstance(value, str) and value:
        return check_text(value, "prompt")
    if isinstance(value, list) and value:
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return value
        if all(isinstance(item, str | list) for item in value):
            raise _unsupported("prompt", "one prompt a request")
    raise wrong("prompt", value, "a non-empty string or array of token ids")


def _template_kwargs(body: Body) -> dict[str, Any]:
    kwargs = dict(mapping(body, "chat_template_kwargs") or {})
    for name in sorted(NOT_TEMPLATE_VARIABLES & kwargs.keys()):
        raise bad_request(f"'chat_template_kwargs' must not hold {name!r}.", "chat_template_kwargs")
    effort = string(body, "reasoning_effort")
    if effort is not None:
        kwargs.setdefault("reasoning_effort", effort)
    return kwargs


def _refuse_unsupported_chat(body: Body) -> None:
    if boolean(body, "logprobs") or integer(body, "top_logprobs", 0, 20):
        raise _unsupported("logprobs")
    response_format = mapping(body, "response_format") or {}
    if response_format.get("type") not in (None, "text"):
        raise _unsupported("response_format.type", "'text'")
    if body.get("tool_choice") not in (None, "none", "auto"):
        raise _unsupported("tool_choice", "'none' or 'auto'")


def _unsupported(name: str, instead: str = "absent"):
    return bad_request(
        f"{name!r} is not supported by this server yet; it must be {instead}.",
        name,
        "unsupported_parameter",
    )


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(root: Any) -> None:
    """Walks without recursion, as a body that parsed may still be too deep for a template."""
    level = [root]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise bad_request(f"The body is nested deeper than {MAX_JSON_DEPTH} levels.")
