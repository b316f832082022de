"""A request's body: how long it says it is, and its bytes, whole or in chunks.

Called by the HTTP thread of the connection, on rank 0, when a route wants the body: the key has
been asked for by then. Strict wherever two parsers could read the same bytes in two ways.
"""

import time
from email import errors as email_errors
from email.message import Message
from io import BytesIO

from server.protocol.client import ClientGone
from server.protocol.errors import ApiError, bad_request
from server.transport.incoming import Incoming

BODY_S = 60.0  # for the whole body
BODY_GRACE_S = 10.0  # from then on it must have come at BODY_RATE, on the average
BODY_RATE = 4096  # bytes a second: less than the slowest line that people still use
MAX_BODY_BYTES = 32 * 2**20
MAX_TRAILERS = 64
MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, as some editors put it before a text
# Header lines that two parsers would take apart in two ways. Other defects concern MIME bodies.
BROKEN_HEADERS = (
    email_errors.MissingHeaderBodySeparatorDefect,
    email_errors.FirstHeaderLineIsContinuationDefect,
    email_errors.MisplacedEnvelopeHeaderDefect,
    email_errors.InvalidHeaderDefect,
)


def check_framing(headers: Message, version: str, ambiguous: bool) -> None:
    """Raises ApiError 400 or 413 for a head that leaves open where the request ends, or when it
    does so too late. ambiguous: whether one of its lines was."""
    lengths = [n.strip() for n in headers.get_all("Content-Length", [])]
    encodings = [e.strip().lower() for e in headers.get_all("Transfer-Encoding", [])]
    if ambiguous or any(isinstance(defect, BROKEN_HEADERS) for defect in headers.defects):
        raise bad_request("A header line is malformed.")
    if encodings and version == "HTTP/1.0":
        raise bad_request("HTTP/1.0 has no Transfer-Encoding.")
    if encodings and (lengths or encodings != ["chunked"]):
        raise bad_request("Transfer-Encoding must be 'chunked', without Content-Length.")
    if len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths):
        raise bad_request("Content-Length must be one whole number of bytes.")
    if lengths and (len(lengths[0]) > 15 or int(lengths[0]) > MAX_BODY_BYTES):
        raise _too_large()


def has_body(headers: Message) -> bool:
    """Whether bytes of a body follow the head."""
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


def check_readable(headers: Message) -> None:
    """Raises ApiError 411 or 415 for a body that cannot be read."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(415, f"Content-Encoding {encoding[:100]!r} is not supported; send it plain.")
    if "Transfer-Encoding" not in headers and "Content-Length" not in headers:
        raise ApiError(411, "A body with a Content-Length is required.")


def read_body(headers: Message, incoming: Incoming) -> bytes:
    """The body without a byte order mark, after check_framing and check_readable. Raises ApiError
    400 or 413, SlowClient, or OSError when the client leaves."""
    part = _Part(incoming)
    if "Transfer-Encoding" in headers:
        _read_chunks(incoming, part)
    else:
        part.read(int(headers["Content-Length"]))
    return part.data.getvalue().removeprefix(MARK)


class _Part:
    """What has come so far, and how long the rest may take."""

    def __init__(self, incoming: Incoming) -> None:
        self.data = BytesIO()
        self._incoming = incoming
        self._began = time.monotonic()
        self.allow()

    def allow(self) -> None:
        """Sets the deadline anew, which moves with what has come, but not beyond BODY_S."""
        whole = min(BODY_S, BODY_GRACE_S + self.data.tell() / BODY_RATE)
        self._incoming.allow(self._began + whole - time.monotonic())

    def read(self, count: int) -> None:
        end = self.data.tell() + count
        while left := end - self.data.tell():
            more = self._incoming.read_some(left)
            if not more:
                raise ClientGone
            self.data.write(more)
            self.allow()


def _read_chunks(incoming: Incoming, part: _Part) -> None:
    """Strict: a bare newline or a plus sign is where parsers disagree."""
    while True:
        line = incoming.readline(1026)
        size = line.split(b";", 1)[0].strip()
        if not line.endswith(b"\r\n") or not size or size.strip(b"0123456789abcdefABCDEF"):
            raise _malformed_chunks()
        length = int(size, 16)
        if part.data.tell() + length > MAX_BODY_BYTES:
            raise _too_large()
        if length == 0:
            break
        part.read(length)
        if incoming.readline(3) != b"\r\n":
            raise _malformed_chunks()
    for _ in range(MAX_TRAILERS):
        if incoming.readline(8192) == b"\r\n":
            return
    raise _malformed_chunks()


def _malformed_chunks() -> ApiError:
    return bad_request("The chunked body is malformed.")


def _too_large() -> ApiError:
    return ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
