"""POST /v1/messages and /v1/messages/count_tokens, the way out: Anthropic's Message and events.

Pure but for ids; called on rank 0's HTTP threads. The way in is messages_request.py.
"""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from server.api.dialects.blocks import Block, Blocks, Step
from server.api.dialects.completions import drafts_of, tell_progress
from server.api.dialects.messages_request import Echo, parse, parse_count
from server.api.dialects.server_tools import told_to_the_client
from server.protocol.errors import ApiError
from server.protocol.pieces import Event, Piece, Progress, Usage

__all__ = ["Echo", "MessagesDialect", "count", "error_body", "parse", "parse_count"]

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def count(tokens: int) -> dict[str, int]:
    """The body of count_tokens' answer."""
    return {"input_tokens": tokens}


NO_THREADS = "thread_unsupported_request"


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error answer, and the data of the event that ends a stream with one."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    body = {"type": ERROR_TYPES.get(error.status, other), "message": error.message}
    if error.param == "thread":
        # Anthropic's SDKs send the same again, whole.
        body["details"] = {"error_code": NO_THREADS, "unsupported": [error.param]}
    return {"type": "error", "error": body}


class MessagesDialect:
    """One answer as a Message. Implements pieces.Dialect.

    prompt_tokens: of the whole prompt; message_start tells it before the usage is known.
    """

    def __init__(self, echo: Echo, prompt_tokens: int) -> None:
        self._model = echo.model
        self._prompt_tokens = prompt_tokens
        self._id = f"msg_{uuid.uuid4().hex}"
        self._blocks = Blocks()
        self._before = told_to_the_client(echo.unavailable)
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def opening(self) -> list[Event]:
        """The Message, still empty, and the ping that follows it."""
        message = self._message([], Usage(self._prompt_tokens, 0))
        events = [_event("message_start", message=message), _event("ping")]
        for index, block in enumerate(self._before):
            events.append(_event("content_block_start", index=index, content_block=block))
            events.append(_event("content_block_stop", index=index))
        return events

    def waiting(self) -> list[Event]:
        """A message_delta that tells no end yet: SDKs drop pings before anyone hears of them."""
        delta = {"stop_reason": None, "stop_sequence": None}
        usage = _usage(Usage(self._prompt_tokens, 0))
        return [_event("message_delta", delta=delta, usage=usage)]

    def progress(self, progress: Progress) -> list[Event]:
        """An event of our own: Anthropic says that there may be types which a client does not
        know, and its SDKs pass them on."""
        return [_event("prompt_progress", **tell_progress(progress))]

    def piece(self, piece: Piece) -> list[Event]:
        """Events of the content blocks that the piece opens, grows and closes."""
        events = [event for step in self._blocks.add(piece.parts) for event in self._tell(step)]
        if piece.finish:
            self._stop = {
                "stop_reason": STOP_REASONS[piece.finish],
                "stop_sequence": piece.stop_string,
            }
            if piece.finish == "stop" and piece.stop_string is not None:
                self._stop["stop_reason"] = "stop_sequence"
            for step in self._blocks.end(cut=piece.finish == "length"):
                events += self._tell(step)
        return events

    def closing(self, usage: Usage) -> list[Event]:
        """Why it stopped, what it took, and the end."""
        return [
            _event("message_delta", delta=self._stop, usage=_usage(usage) | drafts_of(usage)),
            _event("message_stop"),
        ]

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The Message, the same as an SDK gathers from the stream, but for the drafts of its usage:
        those that it does not know, it does not gather."""
        content = [_content(block) for block in self._blocks.all]
        message = self._message(self._before + content, usage)
        return message | {"usage": message["usage"] | drafts_of(usage)}

    def failed(self, error: ApiError) -> list[Event]:
        """The error event, on which SDKs raise."""
        return [("error", error_body(error))]

    def error_body(self, error: ApiError) -> dict[str, Any]:
        """See error_body of this module."""
        return error_body(error)

    def _tell(self, step: Step) -> list[Event]:
        return _tell(step, len(self._before) + step.block.index)

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **self._stop,
            "usage": _usage(usage),
        }


def _event(type: str, **fields: Any) -> Event:
    return type, {"type": type, **fields}


def _tell(step: Step, index: int) -> list[Event]:
    block = step.block
    if step.act == "open":
        return [_event("content_block_start", index=index, content_block=_content(block))]
    if step.act == "grow":
        type, key = DELTAS[block.kind]
        delta = {"type": type, key: step.text}
        return [_event("content_block_delta", index=index, delta=delta)]
    events = []
    if block.kind == "reasoning":
        # Nothing to sign here, but clients take a thought without a signature for a broken one.
        delta = {"type": "signature_delta", "signature": ""}
        events.append(_event("content_block_delta", index=index, delta=delta))
    return [*events, _event("content_block_stop", index=index)]


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.text)}


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object; one that was cut short has none that could be relied on."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts what came from the cache apart from the other input."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


def model_card(card: dict[str, Any]) -> dict[str, Any]:
    """A model as GET /v1/models/{id} tells it to who sends anthropic-version: what others are told,
    in Anthropic's words beside."""
    created = datetime.fromtimestamp(card["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**card, "type": "model", "display_name": card["root"], "created_at": created}


def list_models(cards: list[dict[str, Any]]) -> dict[str, Any]:
    """All of them, as one page."""
    ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"], "has_more": False}
    return {"object": "list", "data": list(map(model_card, cards)), **ends}
