"""The HTTP transport of rank 0: sockets, deadlines, bodies in, JSON and event streams out.

One thread a connection, from the standard library's http.server. Knows nothing of models: what a
URL does is the `app`'s business (routes.py). Imports no mlx.

Trust: a client may be slow, wrong or hostile. Every read has a deadline, every size a limit, and
every error is JSON in OpenAI's shape.
"""

import io
import json
import logging
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from server.errors import ApiError, bad_request, engine_failed, unavailable

IDLE_S = 75.0  # keep-alive: until the next request's first byte
HEADER_S = 15.0  # from the first byte to the end of the headers
BODY_S = 60.0  # for the whole body
SEND_S = 60.0  # for one write to a client that does not read
MAX_BODY_BYTES = 32 * 2**20
MAX_CONNECTIONS = 1024
BACKLOG = 1024  # connections the kernel holds while we are busy; the default of 5 resets bursts

log = logging.getLogger(__name__)


class SlowClient(Exception):
    """A read deadline has passed. Not an OSError, so the standard library lets it through."""


class DeadlineReader(io.RawIOBase):
    """A socket's bytes, until a deadline that one slow byte after another cannot move."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0

    def allow(self, seconds: float) -> None:
        """Reads from now on must end within seconds."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise SlowClient
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise SlowClient from None


class Server(ThreadingHTTPServer):
    """Listens as soon as it is built, so that /health can say "loading".

    app(exchange) answers one request. Raises OSError when the address is taken.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(
        self,
        host: str,
        port: int,
        app: Callable[["Exchange"], None],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.app = app
        self._places = threading.BoundedSemaphore(max_connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Exchange)

    def start(self) -> None:
        """Serves in a thread until the process ends."""
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()

    def process_request(self, request, client_address) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        error = unavailable("Too many connections.", "too_many_connections")
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
        )
        request.settimeout(1.0)
        try:
            request.sendall(head.encode() + body)
        except OSError:
            pass  # it did not wait for the answer
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address) -> None:
        log.exception("connection from %s failed", client_address[0])


class Exchange(BaseHTTPRequestHandler):
    """One connection: requests in, answers out. `app` sees it as one request at a time."""

    protocol_version = "HTTP/1.1"
    server_version = "mlx-cluster"
    sys_version = ""
    disable_nagle_algorithm = True  # 40 ms a keep-alive request otherwise
    server: Server

    # The connection's life.

    def setup(self) -> None:
        super().setup()
        self.reader = DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self.reader)

    def handle(self) -> None:
        self.close_connection = False
        while not self.close_connection:
            self._fresh()
            try:
                self.reader.allow(IDLE_S)
                if not self.rfile.peek(1):
                    return
                self.reader.allow(HEADER_S)
                self.handle_one_request()
            except SlowClient:
                if self.raw_requestline or self.rfile.peek(0):
                    self._give_up(ApiError(408, "The request took too long to arrive."))
                return
            except OSError:
                return  # the client is gone; whoever worked for it has noticed

    def _fresh(self) -> None:
        self.request_id = "req_" + uuid.uuid4().hex[:24]
        self.raw_requestline = b""
        self.requestline = self.command = ""
        self.request_version = "HTTP/1.1"
        self.headers = {}  # type: ignore[assignment]  # until parsed
        self._body_read = False
        self._answered = False
        self._chunked = False

    def _dispatch(self) -> None:
        try:
            self._check_framing()
            self.server.app(self)
        except ApiError as error:
            self.send_api_error(error)
        except SlowClient:
            self._give_up(ApiError(408, "The body took too long to arrive."))
        except OSError:
            raise
        except Exception:
            log.exception("%s %s failed", self.request_id, self.path[:200])
            self._give_up(engine_failed("Internal error; the server's log has the details."))
        if not self._body_read and self._has_body():
            self.close_connection = True  # an unread body would be taken for the next request

    do_GET = do_POST = do_HEAD = do_OPTIONS = _dispatch
    do_PUT = do_DELETE = do_PATCH = do_TRACE = _dispatch

    # Reading.

    def _check_framing(self) -> None:
        """Refuses what two parsers could read in two ways."""
        lengths = self.headers.get_all("Content-Length") or []
        encoding = self.headers.get("Transfer-Encoding")
        error = None
        if encoding is not None and (lengths or encoding.strip().lower() != "chunked"):
            error = bad_request("Transfer-Encoding must be 'chunked', without Content-Length.")
        elif len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths):
            error = bad_request("Content-Length must be one whole number of bytes.")
        elif lengths and (len(lengths[0]) > 15 or int(lengths[0]) > MAX_BODY_BYTES):
            error = ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if error is not None:
            self.close_connection = True
            raise error

    def handle_expect_100(self) -> bool:
        try:
            self._check_framing()  # refuse before the client sends it all
        except ApiError as error:
            self.send_api_error(error)
            return False
        return super().handle_expect_100()

    def _has_body(self) -> bool:
        if not self.headers:
            return False
        return "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0"

    def read_body(self) -> bytes:
        """The request's body. Raises ApiError 411, 413 or 415, SlowClient."""
        self._body_read = True
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            self.close_connection = True
            raise ApiError(415, f"Content-Encoding {encoding!r} is not supported; send it plain.")
        self.reader.allow(BODY_S)
        if "Transfer-Encoding" in self.headers:
            return self._read_chunks()
        if "Content-Length" not in self.headers:
            raise ApiError(411, "A body with a Content-Length is required.")
        return self._read_exactly(int(self.headers["Content-Length"]))

    def _read_exactly(self, length: int) -> bytes:
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionAbortedError("the client left in the middle of its body")
        return data

    def _read_chunks(self) -> bytes:
        data = bytearray()
        while True:
            line = self.rfile.readline(1026)
            size = line.split(b";", 1)[0].strip()
            if not line.endswith(b"\n") or not size or size.strip(b"0123456789abcdefABCDEF"):
                self.close_connection = True
                raise bad_request("The chunked body is malformed.")
            length = int(size[:16], 16)
            if len(data) + length > MAX_BODY_BYTES:
                self.close_connection = True
                raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
            if length == 0:
                break
            data += self._read_exactly(length)
            if self.rfile.readline(3) not in (b"\r\n", b"\n"):
                self.close_connection = True
                raise bad_request("The chunked body is malformed.")
        for _ in range(64):  # trailers
            if self.rfile.readline(8192) in (b"\r\n", b"\n", b""):
                return bytes(data)
        self.close_connection = True
        raise bad_request("The chunked body has too many trailers.")

    def client_gone(self) -> bool:
        """Whether the client has closed its side. Never blocks."""
        try:
            ready, _, _ = select.select([self.connection], [], [], 0)
            return bool(ready) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    # Writing.

    def send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """One JSON body. HEAD gets the headers alone."""
        # Escaped ASCII: a lone surrogate in an echoed name cannot break the encoding.
        data = json.dumps(body, ensure_ascii=True).encode() + b"\n"
        self._answered = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self._finish_headers()
        if self.command != "HEAD":
            self._write(data)

    def send_api_error(self, error: ApiError) -> None:
        """An error, whatever has been sent so far: a JSON answer, or the end of a stream."""
        if self._chunked:
            self.send_event(error.body())
            self.end_stream()
            self.close_connection = True
        elif not self._answered:
            self.send_json(error.status, error.body(), error.headers())

    def begin_stream(self) -> None:
        """The 200 of a server-sent event stream."""
        self._answered = self._chunked = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Accel-Buffering", "no")  # nginx would hold events back
        if self.request_version == "HTTP/1.0":
            self.close_connection = True
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self._finish_headers()

    def send_event(self, data: Any) -> None:
        """One event; data is JSON, or the bare text "[DONE]"."""
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        self._write_chunk(f"data: {text}\n\n".encode())

    def send_ping(self) -> None:
        """A comment that clients skip and proxies take for life."""
        self._write_chunk(b": ping\n\n")

    def end_stream(self) -> None:
        """The empty chunk. A client that has left by now has its answer."""
        self._chunked = False
        if self.request_version != "HTTP/1.0":
            try:
                self._write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

    @property
    def streaming(self) -> bool:
        """Whether begin_stream() was called and end_stream() not yet."""
        return self._chunked

    def _write_chunk(self, data: bytes) -> None:
        if self.request_version != "HTTP/1.0":
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        self._write(data)

    def _write(self, data: bytes) -> None:
        self.connection.settimeout(SEND_S)
        self.wfile.write(data)

    def _finish_headers(self) -> None:
        self.send_header("x-request-id", self.request_id)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.connection.settimeout(SEND_S)
        self.end_headers()

    def _give_up(self, error: ApiError) -> None:
        self.close_connection = True
        try:
            self.send_api_error(error)
        except OSError:
            pass  # nobody to tell

    # The standard library's own voice.

    def send_error(self, code, message=None, explain=None) -> None:
        """Replaces HTML error pages: bad request lines, huge headers, unknown methods."""
        self.close_connection = True
        code = 405 if code == 501 else int(code)
        self.send_api_error(ApiError(code, f"{message or 'The request could not be read'}."))

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.client_address[0], format % args)
