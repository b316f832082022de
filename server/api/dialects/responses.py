"""POST /v1/responses, the way out: an answer as OpenAI's Response object and its events.

Pure but for ids and the clock; called on rank 0's HTTP threads. The way in is
responses_request.py.
"""

import time
import uuid
from collections.abc import Callable
from typing import Any

from server.api.dialects.blocks import Block, Blocks, Step
from server.api.dialects.call_input import CallInput, input_of
from server.api.dialects.completions import drafts_of, tell_progress
from server.api.dialects.own_items import told
from server.api.dialects.responses_request import Echo, parse
from server.api.dialects.responses_tools import Called
from server.protocol.errors import ApiError
from server.protocol.pieces import Event, Piece, Progress, Usage

__all__ = ["Echo", "ResponsesDialect", "error_body", "parse"]

# By the kind of a block; "input" is a call that holds a text; "own" one that is an item of its own.
PREFIXES = {"reasoning": "rs_", "text": "msg_", "call": "fc_", "input": "ctc_"}
# The names of the events for a part of an item that grows.
GROWTH = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
    "input": "response.custom_tool_call_input",
}


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error answer: the same as chat's."""
    return error.body()


class ResponsesDialect:
    """One answer as a Response. Implements pieces.Dialect.

    keep: takes the Response when it is complete, before the client hears of that: its next
    request may follow at once.
    """

    def __init__(
        self, echo: Echo, keep: Callable[[dict[str, Any]], None] = lambda response: None
    ) -> None:
        self._echo = echo
        self._keep = keep
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._completed: int | None = None
        self._blocks = Blocks()
        self._finish: str | None = None
        self._told = 0  # events so far; the next one's sequence number
        self._opened = False
        self._input = CallInput()  # of the call that grows, if it holds a text

    def opening(self) -> list[Event]:
        """The Response, still empty, twice: created, then in progress."""
        self._opened = True
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def waiting(self) -> list[Event]:
        """In progress, again. Without what was said so far, or a long answer would be told over
        and over."""
        response = self._response("in_progress") | {"output": []}
        return [self._event("response.in_progress", response=response)]

    def progress(self, progress: Progress) -> list[Event]:
        """An event of our own, of a type that OpenAI's API does not have."""
        return [self._event("prompt_progress", **tell_progress(progress))]

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
        status = "incomplete" if self._finish == "length" else "completed"
        response = self._response(status, usage)
        self._keep(response)
        return response

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
        block, kind = step.block, self._kind(step.block)
        if self._called(block).own:
            return self._step_of_own(step)
        is_call = kind in ("call", "input")
        at = {"item_id": self._item_id(block), "output_index": block.index}
        part_at = at if is_call else at | {"content_index": 0}
        # Text events alone have logprobs, which the SDK's types require.
        logprobs = {"logprobs": []} if kind == "text" else {}
        growth = GROWTH[kind]
        if step.act == "grow":
            delta = self._input.add(step.text) if kind == "input" else step.text
            if not delta:
                return []  # before an event is made, as that takes a number
            return [self._event(f"{growth}.delta", **part_at, delta=delta, **logprobs)]
        item = {"output_index": block.index, "item": self._item(block)}
        if step.act == "open":
            self._input = CallInput()
            events = [self._event("response.output_item.added", **item)]
            if not is_call:
                part = {"part": _part(block)}
                events.append(self._event("response.content_part.added", **part_at, **part))
            return events
        if kind == "input":
            text = input_of(block.text)
            rest = text[len(self._input.told) :]
            events = [self._event(f"{growth}.delta", **part_at, delta=rest)] if rest else []
            events.append(self._event(f"{growth}.done", **part_at, input=text))
        elif is_call:
            events = [self._arguments_done(block)]
        else:
            events = [
                self._event(f"{growth}.done", **part_at, text=block.text, **logprobs),
                self._event("response.content_part.done", **part_at, part=_part(block)),
            ]
        return [*events, self._event("response.output_item.done", **item)]

    def _step_of_own(self, step: Step) -> list[Event]:
        """Nothing before its end: only then is it known whether it has what its item must have. If
        not, it is told as a function's call, which may hold anything."""
        block = step.block
        if step.act != "close":
            return []
        item, index = self._item(block), {"output_index": block.index}
        begun = item | {"status": "in_progress"}
        if self._kind(block) == "own":
            events = [self._event("response.output_item.added", **index, item=begun)]
        else:
            at = {"item_id": item["id"], **index}
            begun |= {"arguments": ""}
            events = [self._event("response.output_item.added", **index, item=begun)]
            if block.text:
                events.append(self._event(f"{GROWTH['call']}.delta", **at, delta=block.text))
            events.append(self._arguments_done(block))
        return [*events, self._event("response.output_item.done", **index, item=item)]

    def _arguments_done(self, block: Block) -> Event:
        return self._event(
            f"{GROWTH['call']}.done",
            item_id=self._item_id(block),
            output_index=block.index,
            name=self._called(block).name,
            arguments=block.text,
        )

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
            "output": [self._item(block) for block in self._blocks.all if not self._held(block)],
            "truncation": "disabled",
            "usage": usage and _usage(usage),
            "user": None,
            **self._echo.fields,
        }

    def _called(self, block: Block) -> Called:
        return self._echo.called.get(block.name or "", Called(block.name or ""))

    def _kind(self, block: Block) -> str:
        if block.kind != "call":
            return block.kind
        called = self._called(block)
        if called.own and told(called.own, block.text) is not None:
            return "own"
        return "input" if called.takes_text else "call"

    def _held(self, block: Block) -> bool:
        """Whether the client has not heard of it yet."""
        return block.status == "in_progress" and self._called(block).own is not None

    def _item_id(self, block: Block) -> str:
        kind = self._kind(block)
        own = self._called(block).own if kind == "own" else None
        return (own.prefix if own else PREFIXES[kind]) + block.key

    def _item(self, block: Block) -> dict[str, Any]:
        """The block as an output item. One that has just been opened holds no part yet."""
        item = {"id": self._item_id(block), "status": block.status}
        if block.kind == "call":
            called = self._called(block)
            if called.own and (own := told(called.own, block.text)) is not None:
                return {**item, "call_id": block.id, **own}
            item |= {"call_id": block.id, "name": called.name}
            item |= {} if called.namespace is None else {"namespace": called.namespace}
            if called.takes_text:
                return {**item, "type": "custom_tool_call", "input": input_of(block.text)}
            return {**item, "type": "function_call", "arguments": block.text}
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
        "output_tokens_details": {"reasoning_tokens": usage.reasoning, **drafts_of(usage)},
        "total_tokens": usage.prompt + usage.completion,
    }


def _code(error: ApiError) -> str:
    """One of the codes that a Response's error may have."""
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"
