"""Sends one Generation to its client in one Dialect, whole or as a stream of events.

Runs on the HTTP thread of the request, on rank 0.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from server.observe.account import Answering, Texts
from server.protocol.client import ClientGone
from server.protocol.errors import ApiError
from server.protocol.pieces import Dialect, Event, Piece
from server.protocol.requests import Common
from server.text.generation import Generation, Waiting
from server.transport.http_server import Exchange

PING_S = 5.0  # a stream with nothing to send begins, and says so, each time after this long

PROGRESS_S = 0.5  # between two events of a prompt's progress, for those who want them

log = logging.getLogger(__name__)


def answer(
    exchange: Exchange,
    dialect: Dialect,
    generation: Generation,
    common: Common,
) -> None:
    """Sends the answer, or the error that takes its place. common: whether it is a stream, and one
    that says how far the prompt is. Raises OSError: the client left."""
    pieces = _noted(generation, exchange.account.texts)
    with (
        accounted(exchange, generation, partial(_send_error, exchange, dialect)),
        contextlib.closing(pieces),  # cancels, unless the answer is complete
    ):
        if common.stream:
            _stream(exchange, dialect, generation, pieces, common.return_progress)
        else:
            _send_whole(exchange, dialect, generation, pieces)


class Answer(Answering, Protocol):
    """Which has to be told that it is over."""

    def answered(self) -> None:
        """The last byte is sent, or there is nobody left to send it to."""
        ...


@contextlib.contextmanager
def accounted(
    exchange: Exchange, generation: Answer, send_error: Callable[[ApiError], None]
) -> Iterator[None]:
    """Around the sending of an answer: what becomes of it, for the account and the log."""
    started = time.monotonic()
    outcome = "cut"
    try:
        yield
        outcome = "done"
    except ClientGone:
        outcome, exchange.account.left = "client left", True
        exchange.close_connection = True
    except OSError:
        outcome = "client left"
        raise
    except ApiError as error:
        outcome, exchange.account.error = f"error {error.status}", error
        send_error(error)
    finally:
        generation.answered()
        usage = generation.usage()
        log.info(
            "%s %s: %d prompt tokens, %d generated, %s, %.2f s",
            exchange.request_id,
            exchange.account.route,
            usage.prompt,
            usage.completion,
            outcome,
            time.monotonic() - started,
        )


def _noted(generation: Generation, texts: Texts | None) -> Iterator[Piece | Waiting]:
    """The generation's pieces; their text is noted, if the request log wants it."""
    pieces = iter(generation)
    try:
        for piece in pieces:
            if texts is not None and isinstance(piece, Piece):
                texts.add(piece)
            yield piece
    finally:
        pieces.close()


def _send_whole(exchange: Exchange, dialect: Dialect, generation: Generation, pieces) -> None:
    for piece in pieces:
        if isinstance(piece, Piece):
            dialect.piece(piece)
    exchange.send_json(200, dialect.whole(generation.usage()))


def _stream(
    exchange: Exchange, dialect: Dialect, generation: Generation, pieces, tells: bool
) -> None:
    opened = begun = False  # begun: the prompt is done
    shown: tuple[int, int] | None = None  # how far the client knows it to be
    told = 0.0  # when
    heard: float | None = 0.0  # when the client last heard something; None: just now
    for piece in pieces:
        if isinstance(piece, Piece):
            begun = True
            if not opened:
                _send(exchange, dialect.opening())
                opened = True
            if events := dialect.piece(piece):
                _send(exchange, events)
                heard = None
            continue
        if tells and not begun and piece.seconds - told >= PROGRESS_S:
            told, progress = piece.seconds, generation.progress()
            if (progress.processed, progress.place) != shown:
                shown, heard = (progress.processed, progress.place), told
                if not opened:
                    _send(exchange, dialect.opening())
                    opened = True
                _send(exchange, dialect.progress(progress))
        if heard is None:
            heard = piece.seconds
        elif piece.seconds - heard >= PING_S:
            # Until now a failure could still be a plain status; now silence would be worse.
            heard = piece.seconds
            if not opened:
                _send(exchange, dialect.opening())
                opened = True
            _keep_alive(exchange, dialect)
    _send(exchange, dialect.closing(generation.usage()))
    exchange.end_stream()


class Alive:
    """Tells a stream that waits for its model to be loaded that it still does. Until it begins, a
    failure can still be a plain status."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._heard = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._heard < PING_S:
            return
        self._heard = time.monotonic()
        if not self._exchange.streaming:
            self._exchange.begin_stream()
        self._exchange.send_ping(text)


def _keep_alive(exchange: Exchange, dialect: Dialect) -> None:
    """A sign of life. Agents give up a stream without events after some minutes, whatever comments
    it has; where a dialect has no event that says nothing, a comment is better than silence."""
    events = dialect.waiting()
    _send(exchange, events)
    if not events:
        exchange.send_ping()


def _send(exchange: Exchange, events: list[Event]) -> None:
    if not exchange.streaming:
        exchange.begin_stream()
    for name, data in events:
        exchange.send_event(data, name)


def _send_error(exchange: Exchange, dialect: Dialect, error: ApiError) -> None:
    if exchange.streaming:
        _send(exchange, dialect.failed(error))
        exchange.end_stream()
        exchange.close_connection = True
    else:
        exchange.send_api_error(error)
