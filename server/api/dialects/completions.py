"""POST /v1/completions: its requests in, its answers out."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

from server.api.fields import Field, Fields, needed, read, record
from server.api.formats import FORMATS, format_of
from server.api.inputs import TEXT_INPUT, inputs
from server.api.kinds import FLAG, whole
from server.api.kinds import TEXT as STRING
from server.api.requests import (
    CHOICES,
    GENERATING,
    MAX_CHOICES,
    choices_of,
    common_of,
)
from server.protocol.errors import ApiError, bad_request, wrong
from server.protocol.pieces import Event, Piece, Progress, TokenLogprob, Usage
from server.protocol.requests import CompletionRequest, Served

MAX_PROMPTS = 128
LOWEST = -9999.0  # JSON has no -Infinity

COMPLETION: Fields = {
    **GENERATING,
    **CHOICES,
    **FORMATS,
    "prompt": needed(
        inputs(MAX_PROMPTS),
        "Choice index = prompt index x n + j.",
        cost="as text. Token ids: 0.1 s thread a million",
    ),
    "echo": Field(FLAG, "With `logprobs`: the prompt's log-probabilities, too."),
    "logprobs": Field(
        whole(0, 20), "How many alternatives to tell.", cost="nothing before the answer"
    ),
    "best_of": Field(whole(1, MAX_CHOICES), "The same as n, or absent."),
    "suffix": Field(
        STRING,
        "What comes after the answer, for models with tokens for filling in the middle; with "
        "others 400. Not with `echo`.",
        cost="as text",
    ),
}
BODY = record(COMPLETION, name="CompletionRequest")


def parse(body: Mapping[str, Any], served: Served) -> CompletionRequest:
    """Checks a completion request. Raises ApiError."""
    asked = read(BODY, body)
    common = common_of(asked, served, **choices_of(asked, body))
    best_of = asked.get("best_of", common.n)
    if best_of != common.n:
        raise wrong("best_of", best_of, f"absent, or equal to n ({common.n})")
    suffix = asked.get("suffix", "")
    if "" in asked["prompt"] and not suffix:
        raise wrong("prompt", "", TEXT_INPUT.allowed)
    if suffix and asked.get("echo"):
        raise bad_request("'echo' cannot be used with 'suffix'.", "echo")
    return CompletionRequest(
        prompts=asked["prompt"],
        suffix=suffix,
        echo=asked.get("echo", False),
        format=format_of(asked),
        common=common,
    )


class CompletionDialect:
    """One answer. choices: how many; logprobs: whether they were asked for."""

    def __init__(
        self, model: str, fingerprint: str, choices: int, logprobs: bool, include_usage: bool
    ) -> None:
        self._frame = {
            "id": "cmpl-" + uuid.uuid4().hex,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._asked = logprobs
        self._include_usage = include_usage
        self._texts = [""] * choices
        self._offsets = [0] * choices  # characters of the tokens so far
        self._finishes: list[str | None] = [None] * choices
        self._logprobs: list[dict[str, list]] = [_no_logprobs() for _ in range(choices)]

    def opening(self) -> list[Event]:
        return []

    def waiting(self) -> list[Event]:
        return []  # a chunk has text: one without would be taken for a first token

    def progress(self, progress: Progress) -> list[Event]:
        """Without a choice: one would be taken for a first token."""
        return [(None, self._frame | {"choices": []} | tell_progress(progress))]

    def piece(self, piece: Piece) -> list[Event]:
        i, text = piece.choice, piece.parts.text
        logprobs = None
        if self._asked:
            logprobs, self._offsets[i] = _logprobs(piece.logprobs, self._offsets[i])
            if piece.logprobs and piece.logprobs[0].logprob is None:
                # An echo. It may have more tokens than text, as start-of-text is not echoed.
                self._offsets[i] = len(text)
            for name, values in logprobs.items():
                self._logprobs[i][name] += values
        self._texts[i] += text
        self._finishes[i] = piece.finish
        return [self._chunk(i, text, logprobs, piece.finish)]

    def closing(self, usage: Usage) -> list[Event]:
        events: list[Event] = []
        if self._include_usage:
            events.append((None, self._frame | {"choices": [], "usage": tell_usage(usage)}))
        return [*events, (None, "[DONE]")]

    def whole(self, usage: Usage) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "text": text,
                "logprobs": self._logprobs[i] if self._asked else None,
                "finish_reason": self._finishes[i],
            }
            for i, text in enumerate(self._texts)
        ]
        return self._frame | {"choices": choices, "usage": tell_usage(usage)}

    def failed(self, error: ApiError) -> list[Event]:
        return [(None, error.body())]

    def error_body(self, error: ApiError) -> dict[str, Any]:
        return error.body()

    def _chunk(self, index: int, text: str, logprobs: Any, finish: str | None) -> Event:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        extra = {"usage": None} if self._include_usage else {}
        return None, self._frame | {"choices": [choice]} | extra


def tell_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object, for chat and completions."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            **drafts_of(usage),
        },
    }


def tell_progress(progress: Progress) -> dict[str, Any]:
    """What the chunks and events of all APIs call it: llama.cpp's words, and two of ours, place
    and time to go."""
    left = progress.left
    told = {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(1000 * progress.seconds),
        "place": progress.place,
        "remaining_ms": None if left is None else round(1000 * left),
    }
    return {"prompt_progress": told}


def drafts_of(usage: Usage) -> dict[str, int]:
    """By OpenAI's names for them in chat, in all APIs."""
    return {
        "accepted_prediction_tokens": usage.drafts_right,
        "rejected_prediction_tokens": usage.drafts_wrong,
    }


def finite(logprob: float | None) -> float | None:
    """A log-probability as JSON can tell it."""
    return None if logprob is None else max(logprob, LOWEST)


def _no_logprobs() -> dict[str, list]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _logprobs(tokens: tuple[TokenLogprob, ...], offset: int) -> tuple[dict[str, list], int]:
    """The legacy shape, and the offset after it. offset: characters of the tokens before these,
    which may be ahead of the text, as that waits for what could begin a stop string."""
    told = _no_logprobs()
    for token in tokens:
        told["tokens"].append(token.text)
        told["token_logprobs"].append(finite(token.logprob))
        top = {t.text: finite(t.logprob) for t in token.top}
        told["top_logprobs"].append(None if token.logprob is None else top)
        begun = [byte & 0xC0 != 0x80 for byte in token.bytes]  # UTF-8: a character's first byte
        inside = bool(begun) and not begun[0] and offset > 0
        told["text_offset"].append(offset - inside)
        offset += sum(begun)
    return told, offset
