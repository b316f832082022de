"""Many requests at once from one thread: non-blocking sockets, one selector.

The loop does as little as it can while requests run: it notes when bytes came, and keeps them.
They are taken apart later (answers.py), in moments when nothing arrives or at the end, because
on a small machine the client's own work would slow the server that it measures.

Every request has a connection of its own, closed at the end (`Connection: close`): servers differ
in what they keep open. The time to connect is part of a request's time.
"""

import collections
import contextlib
import errno
import heapq
import itertools
import json
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from scripts.lib.bench.answers import Answer, read_answer

READ_BYTES = 1 << 16
TICK_S = 0.2  # between two looks at deadlines
DONE = b"data: [DONE]"
AFTER_DONE_S = 1.0  # for the server to close; then we do
HELD_BYTES = 32 << 20  # of answers not taken apart; beyond, idle moments are used for it


@dataclass(eq=False)
class Call:
    """One request. Times are time.perf_counter(). label says whose it is."""

    path: str
    fields: dict[str, Any]
    deadline_s: float
    label: Any = None
    due: float = 0.0  # when it was to be sent
    sent: float = 0.0  # when it was: the connect began
    ended: float = 0.0
    failure: str = ""  # refused, reset, timeout, abandoned, or empty
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    answer: Answer | None = None

    def read(self) -> Answer:
        """Takes the answer apart, once."""
        if self.answer is None:
            self.answer = read_answer(self.sent, self.ended, self.pieces, self.failure)
            self.pieces = []
        return self.answer


class _Connection:
    """A call on its way. stage: connecting, handshake, sending, reading."""

    def __init__(self, call: Call, sock: socket.socket, request: bytes, then) -> None:
        self.call, self.sock, self.left, self.then = call, sock, request, then
        self.stage = "connecting"
        self.deadline = call.sent + call.deadline_s


class Swarm:
    """Calls against one server. url: with or without /v1 at its end. Raises OSError if nothing
    answers there."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r}: must be a URL as http://host:port")
        self._host = parts.hostname
        self._netloc = parts.netloc.rpartition("@")[2]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._key = key
        port = parts.port or (443 if self._tls else 80)
        # Finds the address that answers, where a name has several; and says early when none does.
        with socket.create_connection((self._host, port), timeout=10) as probe:
            self._family, self._address = probe.family, probe.getpeername()
        self._selector = selectors.DefaultSelector()
        self._waiting: list[tuple[float, int, Call | None, Callable | None]] = []  # heap by time
        self._order = itertools.count()
        self._connections: dict[Call, _Connection] = {}
        self._unread: collections.deque[Call] = collections.deque()
        self._held = 0
        self.ended = 0
        self.on_tick: Callable[[], None] | None = None
        self.on_piece: Callable[[Call], None] | None = None

    @property
    def running(self) -> int:
        """Calls on their way."""
        return len(self._connections)

    def start(
        self, call: Call, at: float | None = None, then: Callable[[Call], None] | None = None
    ) -> None:
        """Sends it at a time (now). then is called in the loop when it has ended, however."""
        call.due = time.perf_counter() if at is None else at
        heapq.heappush(self._waiting, (call.due, next(self._order), call, then))

    def call_at(self, at: float, action: Callable[[], None]) -> None:
        """Calls action in the loop at a time."""
        heapq.heappush(self._waiting, (at, next(self._order), None, action))

    def abandon(self, calls: list[Call]) -> None:
        """Hangs up on those that still run, and forgets those that wait."""
        gone = set(calls)
        self._waiting = [one for one in self._waiting if one[2] not in gone]
        heapq.heapify(self._waiting)
        for call in calls:
            if call in self._connections:
                self._end(self._connections[call], "abandoned")

    def run(self) -> None:
        """Until no call waits or runs."""
        ticked = 0.0
        try:
            while self._waiting or self._connections:
                now = time.perf_counter()
                while self._waiting and self._waiting[0][0] <= now:
                    _, _, call, then = heapq.heappop(self._waiting)
                    if call is None:
                        then()
                    else:
                        self._open(call, then)
                if now - ticked >= TICK_S:
                    ticked = now
                    self._tick(now)
                self._wait()
        finally:
            for connection in list(self._connections.values()):
                connection.then = None
                self._end(connection, "abandoned")

    def ask(self, path: str, fields: dict | None = None, deadline_s: float = 60) -> Answer:
        """One request, by itself. Without fields: a GET."""
        call = Call(path, fields or {}, deadline_s)
        self.start(call)
        self.run()
        return call.read()

    # The loop's parts.

    def _wait(self) -> None:
        wait = TICK_S
        if self._waiting:
            wait = max(0.0, min(wait, self._waiting[0][0] - time.perf_counter()))
        spare = self._held > HELD_BYTES and bool(self._unread)
        ready = self._selector.select(0 if spare else wait)
        for key, _ in ready:
            # What became of one before it may have ended this one.
            if key.data.call in self._connections:
                self._advance(key.data)
        if spare and not ready:
            self._read_one()

    def _tick(self, now: float) -> None:
        for connection in list(self._connections.values()):
            if now > connection.deadline:
                done = connection.stage == "done"
                self._end(connection, "" if done else "timeout")
        if self.on_tick:
            self.on_tick()

    def _read_one(self) -> None:
        call = self._unread.popleft()
        self._held -= sum(len(data) for _, data in call.pieces)
        call.read()

    def _open(self, call: Call, then: Callable | None) -> None:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = self._render(call)
        call.sent = time.perf_counter()
        connection = _Connection(call, sock, request, then)
        self._connections[call] = connection
        code = sock.connect_ex(self._address)
        self._selector.register(sock, selectors.EVENT_WRITE, connection)
        if code not in (0, errno.EINPROGRESS):
            self._end(connection, _name(code))

    def _render(self, call: Call) -> bytes:
        body = json.dumps(call.fields).encode() if call.fields else b""
        lines = [
            f"{'POST' if body else 'GET'} {self._base}{call.path} HTTP/1.1",
            f"Host: {self._netloc}",
            "Connection: close",
            "Accept: text/event-stream, application/json",
        ]
        if self._key:
            lines.append(f"Authorization: Bearer {self._key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def _advance(self, one: _Connection) -> None:
        try:
            if one.stage == "connecting":
                code = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._end(one, _name(code))
                    return
                if self._tls is None:
                    one.stage = "sending"
                else:
                    self._selector.unregister(one.sock)
                    one.sock = self._tls.wrap_socket(
                        one.sock, server_hostname=self._host, do_handshake_on_connect=False
                    )
                    self._selector.register(one.sock, selectors.EVENT_WRITE, one)
                    one.stage = "handshake"
            if one.stage == "handshake":
                one.sock.do_handshake()
                one.stage = "sending"
            if one.stage == "sending":
                self._send(one)
            else:
                self._receive(one)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._listen(one, selectors.EVENT_WRITE if one.stage == "sending" else 0)
        except ssl.SSLWantWriteError:
            self._listen(one, selectors.EVENT_WRITE)
        except ssl.SSLError as error:
            self._end(one, f"tls: {error.reason or error}")
        except OSError as error:
            self._end(one, _name(error.errno or 0))

    def _send(self, one: _Connection) -> None:
        while one.left:
            one.left = one.left[one.sock.send(one.left) :]
        one.stage = "reading"
        self._listen(one, 0)

    def _receive(self, one: _Connection) -> None:
        while True:
            data = one.sock.recv(READ_BYTES)
            if not data:
                self._end(one, "" if one.call.pieces else "reset")
                return
            one.call.pieces.append((time.perf_counter(), data))
            if DONE in data[-256:]:
                one.stage = "done"
                one.deadline = time.perf_counter() + AFTER_DONE_S
            if self.on_piece:
                self.on_piece(one.call)
            # A selector cannot see what TLS has read ahead.
            if self._tls is None or not one.sock.pending() or one.call not in self._connections:
                return

    def _listen(self, one: _Connection, also: int) -> None:
        self._selector.modify(one.sock, selectors.EVENT_READ | also, one)

    def _end(self, one: _Connection, failure: str) -> None:
        call = one.call
        del self._connections[call]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one.sock)
        one.sock.close()
        call.failure, call.ended = failure, time.perf_counter()
        self.ended += 1
        self._held += sum(len(data) for _, data in call.pieces)
        self._unread.append(call)
        if one.then:
            one.then(call)


def _name(code: int) -> str:
    """A failure's name from its errno."""
    if code == errno.ECONNREFUSED:
        return "refused"
    if code in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED):
        return "reset"
    return errno.errorcode.get(code, "failed").lower()
