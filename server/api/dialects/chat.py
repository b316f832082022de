"""POST /v1/chat/completions, the way out: OpenAI's chat completion, whole and in chunks.

Pure but for ids and the clock; called on rank 0's HTTP threads. The way in is chat_request.py.
"""

import time
import uuid
from typing import Any

from server.api.dialects.chat_request import parse
from server.api.dialects.completions import finite, tell_progress, tell_usage
from server.protocol.errors import ApiError
from server.protocol.pieces import CallPiece, Event, Piece, Progress, TokenLogprob, Usage

__all__ = ["ChatDialect", "parse"]


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

    def waiting(self) -> list[Event]:
        """A chunk of nothing, as the one with the finish reason is but for that."""
        return [self._chunk(0, {})]

    def progress(self, progress: Progress) -> list[Event]:
        event, chunk = self._chunk(0, {})
        return [(event, chunk | tell_progress(progress))]

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
