"""Answers to play to the clients of a dialect, and a server on a free port that plays them."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from server.protocol.errors import ApiError
from server.protocol.pieces import CallPiece, Dialect, Event, Parts, Piece, Usage
from server.protocol.requests import Served

SERVED = Served("served-model", aliases=("nickname",))
USAGE = Usage(prompt=11, completion=7, cached=4, reasoning=3, drafts_right=2, drafts_wrong=1)


def said(text: str, finish: str | None = None, stop: str | None = None) -> Piece:
    return Piece(0, Parts(text), finish=finish, stop_string=stop)


def thought(text: str) -> Piece:
    return Piece(0, Parts(reasoning=text))


def called(index: int, arguments: str = "", name: str | None = None) -> Piece:
    id = None if name is None else f"call_{index}"
    return Piece(0, Parts(calls=(CallPiece(index, id, name, arguments),)))


def ended(finish: str = "stop") -> Piece:
    return Piece(0, finish=finish)


SCRIPTS: dict[str, list[Piece]] = {
    "text": [said("Hel"), said("lo"), ended()],
    "text and end in one piece": [said("Hi", "stop")],
    "nothing": [ended()],
    "only a line feed": [said("\n"), ended()],
    "reasoning then text": [thought("\nI "), thought("think\n"), said("\n\n"), said("So"), ended()],
    "empty reasoning": [thought("\n\n"), said("\n\n"), said("So"), ended()],
    "one call": [called(0, name="add"), called(0, '{"a":'), called(0, " 1}"), ended("tool_calls")],
    "call without arguments": [called(0, "{}", name="now"), ended("tool_calls")],
    "two calls": [
        called(0, '{"a": 1}', name="add"),
        said("\n"),
        called(1, name="add"),
        called(1, '{"a": 2}'),
        ended("tool_calls"),
    ],
    "text then call": [
        thought("Hm."),
        said("I'll add.\n"),
        called(0, name="add"),
        called(0, '{"a": 1}'),
        ended("tool_calls"),
    ],
    "all in one piece": [
        Piece(0, Parts("t", "r", (CallPiece(0, "call_0", "add", "{}"),)), finish="tool_calls")
    ],
    "cut in text": [said("Hel"), ended("length")],
    "cut in reasoning": [thought("I th"), ended("length")],
    "stop string": [said("One, "), said("two", "stop", "three")],
}


def stream_of(dialect: Dialect, pieces: list[Piece]) -> list[Event]:
    events = list(dialect.opening())
    for piece in pieces:
        events += dialect.piece(piece)
    return events + dialect.closing(USAGE)


def whole_of(dialect: Dialect, pieces: list[Piece]) -> dict[str, Any]:
    for piece in pieces:
        dialect.piece(piece)
    return dialect.whole(USAGE)


@contextmanager
def playing(reply: Callable[[str, dict[str, Any]], Any]) -> Iterator[str]:
    """A server whose URL is yielded. reply(path, body) gives a JSON value or a list of
    events, or raises Refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                answer = reply(self.path.split("?")[0], body)
            except Refused as refused:
                self._send(refused.error.status, "application/json", json.dumps(refused.body))
                return
            if isinstance(answer, list):
                text = "".join(f"event: {name}\ndata: {json.dumps(d)}\n\n" for name, d in answer)
                self._send(200, "text/event-stream", ": ping\n\n" + text)
            else:
                self._send(200, "application/json", json.dumps(answer))

        def _send(self, status: int, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Refused(Exception):
    """An error answer: the error, in its dialect's shape."""

    def __init__(self, error: ApiError, body: dict[str, Any]) -> None:
        super().__init__(error.message)
        self.error, self.body = error, body
