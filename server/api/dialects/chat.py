"""POST /v1/chat/completions: its requests in, its answers out."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from server.api.dialects.completions import finite, tell_usage
from server.api.fields import Body, array, boolean, check_text, integer, mapping, string
from server.api.formats import parse_format, parse_tools
from server.api.json_limits import InnerJson, TooManyValues
from server.api.requests import check_turns, parse_common
from server.protocol.errors import ApiError, bad_request, wrong
from server.protocol.pieces import CallPiece, Event, Piece, TokenLogprob, Usage
from server.protocol.requests import ChatRequest, Served

ROLES = ("system", "developer", "user", "assistant", "tool")
# Arguments of the call that renders a template, not variables of the template: with them a client
# could run a template of its own, or get something other than token ids back.
NOT_TEMPLATE_VARIABLES = {
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "tokenizer_kwargs", "sanitize_control_tokens",
    "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask",
}  # fmt: skip


def parse(body: Body, served: Served) -> ChatRequest:
    """Checks a chat request. Raises ApiError."""
    common = parse_common(body, served)
    messages = array(body, "messages")
    if not messages:
        raise wrong("messages", messages, "a non-empty array of messages")
    check_turns(messages, "messages")
    tools, choice, parallel = parse_tools(body)
    inner = InnerJson()
    return ChatRequest(
        messages=[parse_message(m, f"messages[{i}]", inner) for i, m in enumerate(messages)],
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        template_kwargs=_template_kwargs(body),
        format=parse_format(body),
        common=replace(common, logprobs=_alternatives(body)),
    )


def _alternatives(body: Body) -> int | None:
    """How many alternatives to tell beside each token; None for no log-probabilities."""
    asked, top = boolean(body, "logprobs"), integer(body, "top_logprobs", 0, 20)
    if top and not asked:
        raise bad_request("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    return (top or 0) if asked else None


def parse_message(message: Any, name: str, inner: InnerJson) -> dict[str, Any]:
    """One turn, as chat templates expect it: text content, tool arguments as objects. inner reads
    the JSON texts in it."""
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
            _tool_call(call, f"{name}.tool_calls[{i}]", inner) for i, call in enumerate(calls)
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


def _tool_call(call: Any, name: str, inner: InnerJson) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise wrong(name, call, "an object with a function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = inner.loads(arguments)
        except TooManyValues as error:
            raise bad_request(f"{name + '.function.arguments'!r} {error}", name) from None
        except (ValueError, RecursionError):
            pass  # the model's own malformed call, sent back to it: the template shows it as text
    return {**call, "function": {**function, "arguments": arguments}}


def _template_kwargs(body: Body) -> dict[str, Any]:
    kwargs = dict(mapping(body, "chat_template_kwargs") or {})
    for name in sorted(NOT_TEMPLATE_VARIABLES & kwargs.keys()):
        raise bad_request(f"'chat_template_kwargs' must not hold {name!r}.", "chat_template_kwargs")
    effort = string(body, "reasoning_effort")
    if effort is not None:
        kwargs.setdefault("reasoning_effort", effort)
    return kwargs


class ChatDialect:
    """One answer. choices: how many; logprobs: whether they were asked for."""

    def __init__(
        self, model: str, fingerprint: str, choices: int, logprobs: bool, include_usage: bool
    ) -> None:
        self._frame = {
            "id": "chatcmpl-" + uuid.uuid4().hex,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._asked = logprobs
        self._include_usage = include_usage
        self._choices = [_Told() for _ in range(choices)]

    def opening(self) -> list[Event]:
        first = {"role": "assistant", "content": ""}
        return [self._chunk(i, first) for i in range(len(self._choices))]

    def piece(self, piece: Piece) -> list[Event]:
        told, parts = self._choices[piece.choice], piece.parts
        logprobs = [_logprob(token) for token in piece.logprobs]
        told.add(piece, logprobs)
        deltas: list[dict[str, Any]] = []
        if parts.reasoning:
            # Two names for one thing: some clients read only the one, some only the other.
            deltas.append({"reasoning_content": parts.reasoning, "reasoning": parts.reasoning})
        if parts.text or logprobs:
            deltas.append({"content": parts.text})
        deltas += [{"tool_calls": [_call_delta(call)]} for call in parts.calls]
        events = [self._chunk(piece.choice, delta) for delta in deltas]
        if logprobs:
            place = 1 if parts.reasoning else 0
            events[place][1]["choices"][0]["logprobs"] = {"content": logprobs, "refusal": None}
        if piece.finish is not None:
            events.append(self._chunk(piece.choice, {}, piece.finish))
        return events

    def closing(self, usage: Usage) -> list[Event]:
        events: list[Event] = []
        if self._include_usage:
            _, chunk = self._chunk(0, {})
            events.append((None, chunk | {"choices": [], "usage": tell_usage(usage)}))
        return [*events, (None, "[DONE]")]

    def whole(self, usage: Usage) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": told.message(),
                "logprobs": {"content": told.logprobs, "refusal": None} if self._asked else None,
                "finish_reason": told.finish,
            }
            for i, told in enumerate(self._choices)
        ]
        return self._frame | {"choices": choices, "usage": tell_usage(usage)}

    def failed(self, error: ApiError) -> list[Event]:
        return [(None, error.body())]

    def error_body(self, error: ApiError) -> dict[str, Any]:
        return error.body()

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        extra = {"usage": None} if self._include_usage else {}
        return None, self._frame | {"object": "chat.completion.chunk", "choices": [choice]} | extra


class _Told:
    """What one choice has said so far."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.finish: str | None = None

    def add(self, piece: Piece, logprobs: list[dict[str, Any]]) -> None:
        self.text += piece.parts.text
        self.reasoning += piece.parts.reasoning
        self.logprobs += logprobs
        self.finish = piece.finish
        for call in piece.parts.calls:
            if call.index == len(self.calls):
                self.calls.append(_call_delta(call))
                del self.calls[-1]["index"]
            else:
                self.calls[call.index]["function"]["arguments"] += call.arguments

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.reasoning:
            message |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        if self.calls:
            message |= {"content": self.text or None, "tool_calls": self.calls}
        return message


def _call_delta(call: CallPiece) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    def one(t: TokenLogprob) -> dict[str, Any]:
        return {"token": t.text, "logprob": finite(t.logprob), "bytes": list(t.bytes)}

    return one(token) | {"top_logprobs": [one(t) for t in token.top]}
