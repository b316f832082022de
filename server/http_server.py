"""The HTTP transport of rank 0: sockets, deadlines, bodies in, JSON and event streams out.

One thread a connection, from the standard library's http.server. Knows nothing of models: what a
URL does is the `app`'s business (routes.py). Imports no mlx.

Trust: a client may be slow, wrong or hostile. Every read has a deadline, every size a limit, and
every error is JSON in OpenAI's shape.
"""

import io
import json
import logging
import re
import resource
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable
from email import errors as email_errors
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from server.account import Account
from server.errors import ApiError, bad_request, engine_failed, unavailable

IDLE_S = 75.0  # keep-alive: until the next request's first byte
HEADER_S = 15.0  # from the first byte to the end of the headers
BODY_S = 60.0  # for the whole body
SEND_S = 60.0  # for one write to a client that does not read
LINGER_S = 5.0  # for a client that is still sending when it has been refused
ACCEPT_PAUSE_S = 0.05  # after a failed accept, usually for want of file descriptors
MAX_BODY_BYTES = 32 * 2**20
MAX_TRAILERS = 64
MAX_CONNECTIONS = 1024
BACKLOG = 1024  # connections the kernel holds while we are busy; the default of 5 resets bursts
SPARE_FILES = 512  # descriptors beside the connections: model files, other ranks, logs
# Header lines that two parsers would take apart in two ways. Other defects concern MIME bodies.
BROKEN_HEADERS = (
    email_errors.MissingHeaderBodySeparatorDefect,
    email_errors.FirstHeaderLineIsContinuationDefect,
    email_errors.MisplacedEnvelopeHeaderDefect,
    email_errors.InvalidHeaderDefect,
)
# What the parser takes for the end of a line, or of all headers, and others do not: a lone
# carriage return, a NUL, a line that continues the one before it.
AMBIGUOUS_LINE = re.compile(rb"\r(?!\n)|\0|^[ \t]")

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


class LineReader(io.BufferedReader):
    """Bytes of a DeadlineReader; notes in `ambiguous` whether a line was AMBIGUOUS_LINE."""

    ambiguous = False

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.ambiguous = self.ambiguous or AMBIGUOUS_LINE.search(line) is not None
        return line


class Server(ThreadingMixIn, TCPServer):
    """Listens as soon as it is built, so that /health can say "loading".

    app(exchange) answers one request; on_closed(account), if given, hears of its end.
    Raises OSError when the address is taken.
    """

    # Not http.server's HTTPServer, which asks DNS for the host's name before it listens.
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
        self.on_closed: Callable[[Account], None] = getattr(app, "closed", lambda account: None)
        self.on_refused: Callable[[], None] = getattr(app, "connection_refused", lambda: None)
        self._places = threading.BoundedSemaphore(max_connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        _allow_files(max_connections + SPARE_FILES)
        super().__init__((host, port), Exchange)

    @property
    def port(self) -> int:
        """The port it listens on; of interest when it was asked for port 0."""
        return self.server_address[1]

    def start(self) -> None:
        """Serves in a thread until the process ends."""
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()

    def get_request(self):
        try:
            return super().get_request()
        except OSError as error:
            # The connection stays in the backlog, so without a pause we would spin.
            log.warning("cannot accept a connection: %s", error)
            time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request, client_address) -> None:
        if not self._places.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()  # no thread could be started
            raise

    def _refuse(self, request: socket.socket) -> None:
        """503 from the accepting thread, which must not wait for anybody."""
        self.on_refused()
        error = unavailable("Too many connections.", "too_many_connections")
        body = json.dumps(error.body()).encode() + b"\n"
        head = (
            f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"
        )
        request.setblocking(False)
        try:
            request.sendall(head.encode() + body)
            request.shutdown(socket.SHUT_WR)
            request.recv(65536)  # closing on unread bytes would reset the connection
        except OSError:
            pass  # it did not wait for the answer, or has sent nothing yet
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address) -> None:
        log.exception("connection from %s failed", client_address[0])


def _allow_files(count: int) -> None:
    """Raises the soft limit on open files: macOS starts programs with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.warning("at most %d files can be open at once: %s", soft, error)


class Exchange(BaseHTTPRequestHandler):
    """One connection: requests in, answers out. `app` sees it as one request at a time."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # an unreadable request line gets a status line, too
    server_version = "mlx-cluster"
    sys_version = ""
    disable_nagle_algorithm = True  # 40 ms a keep-alive request otherwise
    server: Server

    # The connection's life.

    def setup(self) -> None:
        super().setup()
        self.reader = DeadlineReader(self.connection)
        self.rfile = LineReader(self.reader)

    def handle(self) -> None:
        self.close_connection = self._unread = False
        while not self.close_connection:
            self._fresh()
            self.reader.allow(IDLE_S)
            try:
                if not self.rfile.peek(1):
                    return
            except (SlowClient, OSError):
                return  # nothing was asked
            self.account = Account(self.request_id)
            self.reader.allow(HEADER_S)
            try:
                self.handle_one_request()
            except SlowClient:
                self._give_up(ApiError(408, "The request took too long to arrive."))
            except OSError:
                self.account.left = True
                return  # the client is gone; whoever worked for it has noticed
            finally:
                if self.account.route or self.account.code:
                    self.server.on_closed(self.account)
        if self._unread:
            self._linger()

    def _fresh(self) -> None:
        self.request_id = "req_" + uuid.uuid4().hex[:24]
        self.requestline = self.command = self.path = ""
        self.request_version = "HTTP/1.1"
        self.headers = {}  # type: ignore[assignment]  # until parsed
        self.common_headers: dict[str, str] = {}  # the app's, for whatever is answered
        self.error_body: Callable[[ApiError], Any] = ApiError.body  # the app's, too
        self.rfile.ambiguous = False
        self._body_read = False
        self._answered = False
        self._chunked = False

    def _hang_up(self) -> None:
        """The connection ends after this answer, as what follows on it makes no sense."""
        self.close_connection = self._unread = True

    def _linger(self) -> None:
        """Drops what the client still sends: closing on unread bytes would reset the connection,
        and the reset would overtake the answer."""
        self.reader.allow(LINGER_S)
        waste = bytearray(65536)
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while self.reader.readinto(waste):
                pass
        except (SlowClient, OSError):
            pass  # it had its chance

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            self.request_version = self.default_request_version  # that of the answer
            self.send_error(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
            return False
        if self.request_version == "HTTP/1.0":
            self.close_connection = True  # its keep-alive needs headers that few still send
        return True

    def _dispatch(self) -> None:
        try:
            self._check_framing()
            self.server.app(self)
        except ApiError as error:
            self.send_api_error(error)
        except SlowClient:
            self._give_up(ApiError(408, "The body took too long to arrive."))
        except (ConnectionError, TimeoutError):
            self.account.left = True
            raise  # the client's doing
        except Exception:
            log.exception("%s %r failed", self.request_id, self.path[:200])
            self._give_up(engine_failed("Internal error; the server's log has the details."))

    do_GET = do_POST = do_HEAD = do_OPTIONS = _dispatch
    do_PUT = do_DELETE = do_PATCH = do_TRACE = _dispatch

    # Reading.

    def _check_framing(self) -> None:
        """Refuses what two parsers could read in two ways."""
        lengths = [n.strip() for n in self.headers.get_all("Content-Length", [])]
        encodings = [e.strip().lower() for e in self.headers.get_all("Transfer-Encoding", [])]
        error = None
        broken = any(isinstance(defect, BROKEN_HEADERS) for defect in self.headers.defects)
        if broken or self.rfile.ambiguous:
            error = bad_request("A header line is malformed.")
        elif encodings and self.request_version == "HTTP/1.0":
            error = bad_request("HTTP/1.0 has no Transfer-Encoding.")
        elif encodings and (lengths or encodings != ["chunked"]):
            error = bad_request("Transfer-Encoding must be 'chunked', without Content-Length.")
        elif len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths):
            error = bad_request("Content-Length must be one whole number of bytes.")
        elif lengths and (len(lengths[0]) > 15 or int(lengths[0]) > MAX_BODY_BYTES):
            error = ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        if error is not None:
            self._hang_up()
            raise error

    def handle_expect_100(self) -> bool:
        try:
            self._check_framing()  # refuse before the client sends it all
        except ApiError as error:
            self.send_api_error(error)
            return False
        return super().handle_expect_100()

    def _has_body(self) -> bool:
        return "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0"

    def read_body(self) -> bytes:
        """The request's body. Raises ApiError 411, 413 or 415, SlowClient."""
        self._body_read = True
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            self._hang_up()
            raise ApiError(415, f"Content-Encoding {encoding!r} is not supported; send it plain.")
        self.reader.allow(BODY_S)
        if "Transfer-Encoding" in self.headers:
            return self._read_chunks()
        if "Content-Length" not in self.headers:
            self._hang_up()  # there may be a body all the same
            raise ApiError(411, "A body with a Content-Length is required.")
        return self._read_exactly(int(self.headers["Content-Length"]))

    def _read_exactly(self, length: int) -> bytes:
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionAbortedError("the client left in the middle of its body")
        return data

    def _read_chunks(self) -> bytes:
        """A chunked body. Strict: a bare newline or a plus sign is where parsers disagree."""
        data = bytearray()
        while True:
            line = self.rfile.readline(1026)
            size = line.split(b";", 1)[0].strip()
            if not line.endswith(b"\r\n") or not size or size.strip(b"0123456789abcdefABCDEF"):
                raise self._malformed_chunks()
            length = int(size, 16)
            if len(data) + length > MAX_BODY_BYTES:
                self._hang_up()
                raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
            if length == 0:
                break
            data += self._read_exactly(length)
            if self.rfile.readline(3) != b"\r\n":
                raise self._malformed_chunks()
        for _ in range(MAX_TRAILERS):
            if self.rfile.readline(8192) == b"\r\n":
                return bytes(data)
        raise self._malformed_chunks()

    def _malformed_chunks(self) -> ApiError:
        self._hang_up()
        return bad_request("The chunked body is malformed.")

    def client_gone(self) -> bool:
        """Whether the client has closed its side. Never blocks."""
        try:
            poll = select.poll()  # select() refuses descriptors from 1024 on
            poll.register(self.connection, select.POLLIN)
            return bool(poll.poll(0)) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    # Writing.

    def send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """One JSON body. HEAD gets the headers alone."""
        # Escaped ASCII: a lone surrogate in an echoed name cannot break the encoding.
        data = json.dumps(body, ensure_ascii=True).encode() + b"\n"
        self.send_body(status, "application/json", data, headers)

    def send_body(
        self, status: int, content_type: str, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """One body of whatever kind. HEAD gets the headers alone."""
        self._answered = True
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self._finish_headers()
        if self.command != "HEAD":
            self._write(data)

    def send_api_error(self, error: ApiError) -> None:
        """An error, whatever has been sent so far: a JSON answer, or the end of a stream."""
        self.account.error = error
        body = self.error_body(error)
        if self._chunked:
            self.send_event(body)
            self.end_stream()
            self.close_connection = True
        elif not self._answered:
            self.send_json(error.status, body, error.headers())

    def send_response(self, code, message=None) -> None:
        self.account.code = int(code)
        super().send_response(code, message)

    def begin_stream(self) -> None:
        """The 200 of a server-sent event stream."""
        self._answered = self._chunked = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Accel-Buffering", "no")  # nginx would hold events back
        if self.request_version != "HTTP/1.0":
            self.send_header("Transfer-Encoding", "chunked")
        self._finish_headers()

    def send_event(self, data: Any, name: str | None = None) -> None:
        """One event, with its name if it has one; data is JSON, or the bare text "[DONE]"."""
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        head = "" if name is None else f"event: {name}\n"
        self._write_chunk(f"{head}data: {text}\n\n".encode())

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
        for name, value in self.common_headers.items():
            self.send_header(name, value)
        if not self._body_read and self._has_body():
            self._hang_up()  # an unread body would be taken for the next request
        if self.close_connection:
            self.send_header("Connection", "close")
        self.connection.settimeout(SEND_S)
        self.end_headers()

    def _give_up(self, error: ApiError) -> None:
        self._hang_up()
        try:
            self.send_api_error(error)
        except OSError:
            self.account.left = True  # nobody to tell

    # The standard library's own voice.

    def send_error(self, code, message=None, explain=None) -> None:
        """Replaces HTML error pages: bad request lines, huge headers, unknown methods."""
        self._hang_up()
        code = 405 if code == 501 else int(code)
        text = (message or "The request could not be read")[:200]
        if code == 405:
            allow = {"Allow": "GET, HEAD, OPTIONS, POST"}
            raised = ApiError(code, f"{text}.", code="method_not_allowed", headers=allow)
        else:
            raised = ApiError(code, f"{text}.")
        self.send_api_error(raised)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %r", self.client_address[0], format % args)
