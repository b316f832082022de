"""From a ticket's token events to pieces of text: deadlines, disconnects and stop strings.

Runs on the HTTP thread of the request, on rank 0. The one place where a request's clock is
looked at. However it ends, the engine's side is told: the ticket is cancelled.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.errors import timed_out
from server.prompts import TextOut
from server.tickets import Failed, Line, Ticket, Token

POLL_S = 0.1  # how often to look whether the client is still there


class ClientGone(Exception):
    """The client closed its connection."""


@dataclass(frozen=True)
class Piece:
    """Some text of the answer, perhaps empty; finish is "stop" or "length" on the last one."""

    text: str
    tokens: int  # generated so far
    finish: str | None = None


@dataclass(frozen=True)
class Waiting:
    """Nothing to send yet. seconds: since the request was accepted."""

    seconds: float


def generate(
    ticket: Ticket,
    line: Line,
    text: TextOut,
    client_gone: Callable[[], bool],
    timeout: float,
) -> Iterator[Piece | Waiting]:
    """Yields the answer piece by piece, and Waiting while there is none.

    Raises ApiError (the engine failed, or timeout seconds since acceptance have passed) or
    ClientGone. Closing the iterator cancels the request.
    """
    deadline = ticket.accepted + timeout
    looked = time.monotonic()
    produced = 0
    finished = False
    try:
        while True:
            event = ticket.get(POLL_S)
            now = time.monotonic()
            if isinstance(event, Failed):
                raise event.error
            # By the clock, too: tokens may come faster than silence ever falls.
            if event is None or now - looked >= POLL_S:
                looked = now
                if client_gone():
                    raise ClientGone
            if isinstance(event, Token):
                produced += 1
                finished = event.finish is not None
                piece = text.add(event.id)
                if finished and not text.stopped:
                    piece += text.finish()
                if text.stopped:
                    yield Piece(piece, produced, "stop")
                    return
                if piece or finished:
                    yield Piece(piece, produced, event.finish)
                if finished:
                    return
            else:
                yield Waiting(now - ticket.accepted)
            if now > deadline:
                raise timed_out(timeout)
    finally:
        if not finished:
            line.cancel(ticket)
