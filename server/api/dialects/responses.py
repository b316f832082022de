"""POST /v1/responses, the way out: an answer as OpenAI's Response object and its events.

Pure but for ids and the clock; called on rank 0's HTTP threads. The way in is
responses_request.py.
"""

import time
import uuid
from typing import Any

from server.api.dialects.blocks import Block, Blocks, Step
from server.api.dialects.responses_request import Echo, parse
from server.protocol.errors import ApiError
from server.protocol.pieces import Event, Piece, Usage

__all__ = ["Echo", "ResponsesDialect", "error_body", "parse"]

PREFIXES = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}
# The names of the events for a part of an item that grows.
GROWTH = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error answer: the same as chat's."""
    return error.body()


class ResponsesDialect:
    """One answer as a Response. Implements pieces.Dialect."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._completed: int | None = None
        self._blocks = Blocks()
        self._finish: str | None = None
        self._told = 0  # events so far; the next one's sequence number
        self._opened = False

    def opening(self) -> list[Event]:
        """The Response, still empty, twice: created, then in progress."""
        self._opened = True
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def piece(self, piece: Piece) -> list[Event]:
        """Events of the items that the piece opens, grows and closes."""
        events = [event for step in self._blocks.add(piece.parts) for event in self._step(step)]
        if piece.finish:
            self._finish = piece.finish
            self._completed = int(time.time())
            for step in self._blocks.end(cut=piece.finish == "length"):
                events += self._step(step)
        return events

    def closing(self, usage: Usage) -> list[Event]:
        """The event that ends the stream, with the whole Response."""
        response = self.whole(usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The Response object, the same as the stream's last event has."""
        return self._response("incomplete" if self._finish == "length" else "completed", usage)

    def failed(self, error: ApiError) -> list[Event]:
        """response.failed. SDKs take no event before response.created, so that comes first."""
        events = [] if self._opened else self.opening()
        response = self._response("failed", error=error)
        return [*events, self._event("response.failed", response=response)]

    def error_body(self, error: ApiError) -> dict[str, Any]:
        """See error_body of this module."""
        return error_body(error)

    def _event(self, type: str, **fields: Any) -> Event:
        data = {"type": type, **fields, "sequence_number": self._told}
        self._told += 1
        return type, data

    def _step(self, step: Step) -> list[Event]:
        block = step.block
        at = {"item_id": _item_id(block), "output_index": block.index}
        part_at = at if block.kind == "call" else at | {"content_index": 0}
        # Text events alone have logprobs, which the SDK's types require.
        logprobs = {"logprobs": []} if block.kind == "text" else {}
        growth = GROWTH[block.kind]
        if step.act == "grow":
            return [self._event(f"{growth}.delta", **part_at, delta=step.text, **logprobs)]
        item = {"output_index": block.index, "item": _item(block)}
        if step.act == "open":
            events = [self._event("response.output_item.added", **item)]
            if block.kind != "call":
                part = {"part": _part(block)}
                events.append(self._event("response.content_part.added", **part_at, **part))
            return events
        if block.kind == "call":
            done = {"name": block.name, "arguments": block.text}
            events = [self._event(f"{growth}.done", **part_at, **done)]
        else:
            events = [
                self._event(f"{growth}.done", **part_at, text=block.text, **logprobs),
                self._event("response.content_part.done", **part_at, part=_part(block)),
            ]
        return [*events, self._event("response.output_item.done", **item)]

    def _response(
        self, status: str, usage: Usage | None = None, error: ApiError | None = None
    ) -> dict[str, Any]:
        cut = status == "incomplete"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._completed if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error and {"code": _code(error), "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [_item(block) for block in self._blocks.all],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": usage and _usage(usage),
            "user": None,
            **self._echo.fields,
        }


def _item_id(block: Block) -> str:
    return PREFIXES[block.kind] + block.key


def _item(block: Block) -> dict[str, Any]:
    """The block as an output item. One that has just been opened holds no part yet."""
    item = {"id": _item_id(block), "status": block.status}
    if block.kind == "call":
        call = {"call_id": block.id, "name": block.name, "arguments": block.text}
        return {**item, "type": "function_call", **call}
    parts = [] if block.status == "in_progress" and not block.text else [_part(block)]
    if block.kind == "reasoning":
        return {**item, "type": "reasoning", "summary": [], "content": parts}
    return {**item, "type": "message", "role": "assistant", "content": parts}


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _code(error: ApiError) -> str:
    """One of the codes that a Response's error may have."""
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"
