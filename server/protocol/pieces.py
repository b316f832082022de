"""What an answer is made of, whatever dialect it is told in. Frozen data, no behaviour.

generation yields Pieces, a Dialect (dialects/) turns each into what its clients expect, and the
body of an answer that is not streamed folds the same Pieces.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from server.protocol.errors import ApiError


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural log-probability; text is what it adds, bytes its UTF-8.

    logprob is None for the first token of a prompt.
    """

    id: int
    text: str
    bytes: tuple[int, ...]
    logprob: float | None
    top: tuple["TokenLogprob", ...] = ()  # the likeliest, if asked for; their own top is empty


@dataclass(frozen=True)
class CallPiece:
    """Part of a tool call. The first piece of call `index` has its id and name."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""  # JSON text, in pieces


@dataclass(frozen=True)
class Parts:
    """What some tokens add to an answer."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls)

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(
            self.text + other.text, self.reasoning + other.reasoning, self.calls + other.calls
        )


@dataclass(frozen=True)
class Piece:
    """Parts of one choice. finish, on a choice's last piece: "stop", "length", "tool_calls"."""

    choice: int
    parts: Parts = Parts()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    stop_string: str | None = None  # which of the request's stop strings ended the choice


@dataclass(frozen=True)
class Usage:
    """Token ids counted, over all choices; prompt counts each prompt once."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    drafts_right: int = 0
    drafts_wrong: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a request's prompt is. processed: tokens of total, the cached ones among them. place:
    in the queue, 1 is the next; 0: it has begun. seconds: since then. left: seconds to go, None
    while there is nothing to tell it by."""

    total: int
    cached: int
    processed: int
    place: int
    seconds: float
    left: float | None


class TextOut(Protocol):
    """Turns one choice's tokens into parts."""

    stopped: str | None  # the stop string that was reached; what follows is not part of the answer
    reasoning_tokens: int

    def add(self, token: int) -> Parts:
        """What this token makes certain; may be empty."""
        ...

    def finish(self, reason: str) -> tuple[Parts, str]:
        """What was held back, once no more tokens come, and the finish reason to tell: reason
        ("stop" or "length"), or "tool_calls"."""
        ...


# What goes out on a stream: the name of the event (None: no event line) and its data (a JSON
# value, or the bare text "[DONE]").
Event = tuple[str | None, Any]


class Dialect(Protocol):
    """One answer, told in one API's shapes. Made for each request; keeps what it has told."""

    def opening(self) -> list[Event]:
        """Events before the first piece: sent when the first token is there, or when it has taken
        so long that the client must hear something."""
        ...

    def waiting(self) -> list[Event]:
        """Events that add nothing, for a client that would take silence for the end, at any place
        after the opening. None: a comment has to do."""
        ...

    def progress(self, progress: Progress) -> list[Event]:
        """Events that say how far the prompt is, for who asks; between the opening and a piece."""
        ...

    def piece(self, piece: Piece) -> list[Event]:
        """Events of one piece. Called for every piece, streamed or not."""
        ...

    def closing(self, usage: Usage) -> list[Event]:
        """Events after the last choice has finished."""
        ...

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed, from all pieces told so far."""
        ...

    def failed(self, error: ApiError) -> list[Event]:
        """Events that end a stream which has begun and cannot go on."""
        ...

    def error_body(self, error: ApiError) -> dict[str, Any]:
        """The body of an error answer."""
        ...
