"""One connection of the HTTP transport: requests in, JSON and event streams out.

Runs on the connection's own thread, on rank 0. Knows nothing of models: what a URL does is the
`app`'s business (routes.py). Every read has a deadline, and every error is JSON in the shape that
the app has for its path.
"""

import contextlib
import json
import logging
import socket
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from server.observe.account import Account, Answering
from server.protocol.client import ClientGone
from server.protocol.errors import ApiError, bad_request, engine_failed, unavailable
from server.transport.incoming import MAX_HEADER_BYTES, Incoming, SlowClient
from server.transport.places import BODY, BUSY, HEAD, IDLE, Place
from server.transport.request_body import check_framing, check_readable, has_body, read_body

if TYPE_CHECKING:
    from server.transport.http_server import Server

FIRST_BYTE_S = 15.0  # for a connection on which nothing was ever asked
IDLE_S = 75.0  # keep-alive: until the next request's first byte
HEADER_S = 15.0  # from the first byte to the end of the headers
SPARE_S = 2.0  # for either, where all places but the spare ones are taken
SEND_S = 60.0  # for one write to a client that does not read
WRITE_BYTES = 2**20  # of it: thousands of vectors take a slow client longer than one may
LINGER_S = 5.0  # for a client that is still sending when it has been refused

log = logging.getLogger(__name__)


class Exchange(BaseHTTPRequestHandler):
    """One connection: requests in, answers out. `app` sees it as one request at a time."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # an unreadable request line gets a status line, too
    server_version = "mlx-cluster"
    sys_version = ""
    disable_nagle_algorithm = True  # 40 ms a keep-alive request otherwise
    server: "Server"

    def __init__(self, connection: socket.socket, address: Any, server: "Server", place: Place):
        self.place = place
        super().__init__(connection, address, server)

    # The connection's life.

    def setup(self) -> None:
        super().setup()
        self.rfile = Incoming(self.connection, self.place.hold)

    def handle(self) -> None:
        self.close_connection = self._unread = False
        asked = False
        while not self.close_connection:
            self._fresh()
            self._allow(IDLE_S if asked else FIRST_BYTE_S)
            try:
                if not self.rfile.wait():
                    return
            except (SlowClient, OSError):
                return  # nothing was asked
            self.account = Account(self.request_id)
            asked = True
            self._allow(HEADER_S)
            try:
                self.place.enter(HEAD)
                self.rfile.begin_head()
                self.handle_one_request()
            except SlowClient:
                self._give_up(ApiError(408, "The request took too long to arrive."))
            except ApiError as error:
                self._give_up(self.place.gave_way or error)
            except OSError:
                self.account.left = True
                return  # the client is gone; whoever worked for it has noticed
            finally:
                if self.account.route or self.account.code:
                    self.server.on_closed(self.account)
        self._say_why_it_ends()
        if self._unread:
            self._linger()

    def _allow(self, seconds: float) -> None:
        self.rfile.allow(min(SPARE_S, seconds) if self.place.spare else seconds)

    def _fresh(self) -> None:
        self.request_id = "req_" + uuid.uuid4().hex[:24]
        self.account = Account(self.request_id)  # begins anew with the first byte
        self.requestline = self.command = self.path = ""
        self.request_version = "HTTP/1.1"
        self.headers = {}  # type: ignore[assignment]  # until parsed
        self.common_headers: dict[str, str] = {}  # the app's, for whatever is answered
        self.raw_requestline = b""
        self._body_read = False
        self._awaits_continue = False
        self._answered = False
        self._chunked = False
        self.place.drop()
        self.place.enter(IDLE)

    def _hang_up(self) -> None:
        """The connection ends after this answer, as what follows on it makes no sense."""
        self.close_connection = self._unread = True

    def _linger(self) -> None:
        """Drops what the client still sends: closing on unread bytes would reset the connection,
        and the reset would overtake the answer."""
        self.place.drop()
        self.place.enter(IDLE)
        self.rfile.allow(LINGER_S)
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.waste()
        except (SlowClient, OSError):
            pass  # it had its chance

    def _say_why_it_ends(self) -> None:
        """To a client that has closed its sending side, as `nc -N` does, and may still read: that
        cannot be told from leaving, so its answer was given up."""
        if not self.account.left or not self.rfile.ended:
            return
        error = bad_request(
            "The connection's sending side was closed before the answer was complete, which counts "
            "as leaving; keep it open until then.",
            code="client_closed_request",
        )
        account, self.account = self.account, Account(self.request_id)  # the other one is closed
        with contextlib.suppress(OSError):
            self.send_api_error(error)
        self.account = account

    def parse_request(self) -> bool:
        self.rfile.begin_headers()
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
        self.rfile.end_head()
        try:
            self._check_head()
            if self.place.spare:
                self._be_brief()
            self.server.app(self)
        except ApiError as error:
            self.send_api_error(error)
        except SlowClient:
            self._give_up(ApiError(408, "The body took too long to arrive."))
        except ClientGone:
            self.account.left = self.close_connection = True
        except (ConnectionError, TimeoutError):
            self.account.left = True
            raise  # the client's doing
        except Exception:
            log.exception("%s %r failed", self.request_id, self.path[:200])
            self._give_up(engine_failed("Internal error; the server's log has the details."))

    do_GET = do_POST = do_HEAD = do_OPTIONS = _dispatch
    do_PUT = do_DELETE = do_PATCH = do_TRACE = _dispatch

    def _check_head(self) -> None:
        try:
            self.place.enter(BUSY)
            check_framing(self.headers, self.request_version, self.rfile.ambiguous)
        except ApiError:
            self._hang_up()  # nobody can tell where the next request would begin
            raise

    def _be_brief(self) -> None:
        """A spare place is for those who look how the server is, one after another."""
        self.close_connection = True
        if self.command not in ("GET", "HEAD", "OPTIONS"):
            raise unavailable("Too many connections.", "too_many_connections")

    # Reading.

    def handle_expect_100(self) -> bool:
        # Not before the app wants the body: it may be refused, for its key or its length.
        self._awaits_continue = True
        return True

    def read_body(self) -> bytes:
        """The request's body. Raises ApiError 400, 411, 413, 415 or 503, SlowClient."""
        self._body_read = True
        self.place.enter(BODY)
        try:
            check_readable(self.headers)
            if self._awaits_continue:
                self.connection.settimeout(SEND_S)
                self.send_response_only(100)
                self.end_headers()
            return read_body(self.headers, self.rfile)
        except ApiError:
            self._hang_up()  # there may be more of it
            raise
        finally:
            try:
                self.place.enter(BUSY)
            except ApiError:
                self._hang_up()
                raise

    def client_gone(self) -> bool:
        """Whether the client has closed its side, be it behind bytes that it sent before. Never
        blocks. Raises ApiError 400 for a client that sends on and on meanwhile."""
        try:
            return self.rfile.look_ahead()
        except ApiError:
            self._hang_up()
            raise

    # Writing.

    def send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """One JSON body. HEAD gets the headers alone."""
        # Escaped ASCII: a lone surrogate in an echoed name cannot break the encoding.
        data = json.dumps(body, ensure_ascii=True).encode() + b"\n"
        self.send_body(status, "application/json", data, headers)

    def send_body(
        self, status: int, content_type: str, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """One body of whatever kind. HEAD, and who has it already, get the headers alone."""
        self._answered = True
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self._finish_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            self._write(data)

    def admitted(self, generation: Answering, stream: bool) -> None:
        """The request has its place in the queue, and this will be its answer."""
        self.account.generation, self.account.stream = generation, stream
        self.place.admit()

    def send_api_error(self, error: ApiError) -> None:
        """An error, whatever has been sent so far: a JSON answer, or the end of a stream."""
        self.account.error = error
        # The path decides even where its line, or what came after it, could not be read.
        words = self.raw_requestline.decode("latin-1").split()
        body = self.server.error_body(self.path or "".join(words[1:2]), error)
        if self._chunked:
            self.send_event(body, "error" if body.get("type") == "error" else None)
            self.end_stream()
            self.close_connection = True
        elif not self._answered:
            self.send_json(error.status, body, error.headers())

    def send_response(self, code, message=None) -> None:
        self.account.code = int(code)
        self.place.drop()  # it has been worked on
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

    def send_ping(self, text: str = "ping") -> None:
        """A comment that clients skip and proxies take for life. text: of one line."""
        self._write_chunk(f": {text}\n\n".encode())

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
        for start in range(0, len(data), WRITE_BYTES):
            self.wfile.write(data[start : start + WRITE_BYTES])

    def _finish_headers(self) -> None:
        self.send_header("x-request-id", self.request_id)
        for name, value in self.common_headers.items():
            self.send_header(name, value)
        if not self._body_read and has_body(self.headers):
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
        if code == 431:
            text = f"The headers are more than 100, or larger than {MAX_HEADER_BYTES} bytes"
        if code == 405:
            allow = {"Allow": "GET, HEAD, OPTIONS, POST"}
            raised = ApiError(code, f"{text}.", code="method_not_allowed", headers=allow)
        else:
            raised = ApiError(code, f"{text}.")
        self.send_api_error(raised)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %r", self.client_address[0], format % args)
