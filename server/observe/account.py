"""What became of one HTTP request: filled in as it goes through the server, closed at its end.

Each belongs to one HTTP thread of rank 0 until it is closed. Imports no mlx.
"""

import time
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.protocol.errors import ApiError
from server.protocol.pieces import Parts, Piece, Usage

ANSWERED, REFUSED, FAILED, CUT = "answered", "refused", "failed", "cut"
OUTCOMES = (ANSWERED, REFUSED, FAILED, CUT)
# The routes that use the engine: those that the totals of /cluster and the request log speak of.
GENERATING = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
)  # fmt: skip
MESSAGE_CHARS = 1000  # of an error, in the logs
UNREADABLE = "unreadable"  # the route of what never was a request


class Timed(Protocol):
    """A ticket, as it is seen from here: when what happened to it, by time.monotonic(); 0: not yet.
    The engine's side writes them through the Recorder. max_tokens: the most that it may get."""

    prompt: Sized
    max_tokens: int

    accepted: float
    started: float
    first_token: float
    last_token: float


class Answering(Protocol):
    """What generates the answer of a request."""

    def tickets(self) -> list[Timed]:
        """One a choice."""
        ...

    def usage(self) -> Usage:
        """Tokens so far."""
        ...

    def rows(self) -> list[int]:
        """Tokens in the KV cache of each choice that the ranks hold."""
        ...

    def stop(self, error: ApiError) -> None:
        """Ends it: the ranks drop it, and the client is told."""
        ...

    def tokens(self) -> list[int]:
        """Those that each choice has got."""
        ...

    def finish_reasons(self) -> list[str | None]:
        """One a choice; None while it has none."""
        ...


@dataclass
class Texts:
    """What a request said and was answered, for the request log of those who want it."""

    prompts: list[str]
    answers: dict[int, Parts] = field(default_factory=dict)  # by choice

    def add(self, piece: Piece) -> None:
        """One more piece of an answer."""
        self.answers[piece.choice] = self.answers.get(piece.choice, Parts()) + piece.parts

    def describe(self) -> dict[str, Any]:
        """As the log has it."""
        parts = [self.answers[choice] for choice in sorted(self.answers)]
        return {"prompts": self.prompts, "answers": [_describe_parts(one) for one in parts]}


@dataclass
class Account:
    """One request. route is a pattern, never what the client wrote; key is a label, never a key;
    owner says who has it, and is in no log; model: whose answer it asks for, once that is known.

    code: the status line that was sent, if any. left: the client went away before it had all.
    """

    request_id: str
    method: str = ""
    route: str = ""
    key: str | None = None
    owner: str = ""
    model: str = ""
    code: int | None = None
    error: ApiError | None = None
    left: bool = False
    stream: bool = False
    generation: Answering | None = None
    texts: Texts | None = None  # only with LOG_PROMPTS
    started: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.time)  # by the wall clock
    seconds: float = 0.0  # from the first byte to the end, once closed

    @property
    def generates(self) -> bool:
        """Whether it asks for an answer by the model."""
        return self.method == "POST" and self.route in GENERATING

    @property
    def error_message(self) -> str | None:
        """What the client was told, for a log: printable, and not without end."""
        text = self.error.message if self.error else None
        return text if text is None or len(text) <= MESSAGE_CHARS else text[:MESSAGE_CHARS] + "..."

    @property
    def outcome(self) -> str:
        """answered: the client has its whole answer. cut: it left before. refused: the server
        would not begin (a wrong request, no key, no room, not ready). failed: it began, or should
        have, and could not finish."""
        if self.left or (self.code is None and self.error is None):
            return CUT
        if self.error is None:
            return ANSWERED
        begun = self.generation is not None
        return FAILED if begun or self.error.status not in (*range(400, 500), 503) else REFUSED


def _describe_parts(parts: Parts) -> dict[str, Any]:
    told: dict[str, Any] = {"text": parts.text}
    if parts.reasoning:
        told["reasoning"] = parts.reasoning
    calls: dict[int, dict[str, str]] = {}
    for call in parts.calls:
        one = calls.setdefault(call.index, {"name": "", "arguments": ""})
        one["name"] += call.name or ""
        one["arguments"] += call.arguments
    if calls:
        told["calls"] = list(calls.values())
    return told
