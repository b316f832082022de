"""A connection's bytes on their way in: until a deadline, line by line, and ahead of time.

Belongs to the one HTTP thread of its connection, on rank 0. What comes while a request is being
answered is kept here, up to a bound, for the requests that follow: only so the end of the
connection can be seen behind it, on any system.
"""

import re
import select
import socket
import time
from collections.abc import Callable
from http.client import HTTPException
from io import BytesIO

from server.protocol.errors import bad_request

READ_BYTES = 65536  # at a time
AHEAD_BYTES = 256 * 2**10  # that may come before the request in hand is answered
MAX_HEADER_BYTES = 64 * 2**10  # all lines together; their number is the standard library's: 100
# What the parser takes for the end of a line, or of all headers, and others do not: a lone
# carriage return, a NUL, a line that continues the one before it.
AMBIGUOUS_LINE = re.compile(rb"\r(?!\n)|\0|^[ \t]")


class SlowClient(Exception):
    """A read deadline has passed. Not an OSError, so the standard library lets it through."""


class Incoming:
    """What http.server reads from. hold(count) hears of all that comes in; it may raise ApiError.

    ambiguous: whether a line was AMBIGUOUS_LINE. ended: whether the client has closed its side.
    """

    def __init__(self, connection: socket.socket, hold: Callable[[int], None]) -> None:
        self._connection = connection
        self._hold = hold
        self._buffer = bytearray()
        self._deadline = 0.0
        self._in_head = False
        self._headers_left: int | None = None
        self.ambiguous = self.ended = False

    # Deadlines: one slow byte after another cannot move them.

    def allow(self, seconds: float) -> None:
        """Reads from now on must end within seconds."""
        self._deadline = time.monotonic() + seconds

    # A request's head.

    def wait(self) -> bool:
        """Until there is a byte of a request; False: there will be none."""
        if not self._buffer:
            self._buffer += self._receive(READ_BYTES)
        return bool(self._buffer)

    def begin_head(self) -> None:
        """What is there already belongs to the request that begins."""
        self.ambiguous, self._in_head, self._headers_left = False, True, None
        self._hold(len(self._buffer))

    def begin_headers(self) -> None:
        """The request line has been read."""
        self._headers_left = MAX_HEADER_BYTES

    def end_head(self) -> None:
        """The headers have been read; lines from now on are those of a chunked body."""
        self._in_head, self._headers_left = False, None

    def readline(self, size: int = -1) -> bytes:
        """A line with its end; without, if it is longer than size bytes, or the client left. In a
        head the latter is ApiError 400, and too much of it an HTTPException."""
        looked = 0
        while True:
            end = self._buffer.find(b"\n", looked)
            whole = end + 1 if end >= 0 else 0
            if size >= 0 and (whole > size or (not whole and len(self._buffer) >= size)):
                whole = size
            if whole:
                break
            looked = len(self._buffer)
            if not self._fill():
                if self._in_head:
                    raise bad_request("The connection ended before the request's headers did.")
                whole = len(self._buffer)
                break
        line = self._take(whole)
        self.ambiguous = self.ambiguous or AMBIGUOUS_LINE.search(line) is not None
        if self._headers_left is not None:
            self._headers_left -= len(line)
            if self._headers_left < 0:
                raise HTTPException(f"The headers are larger than {MAX_HEADER_BYTES} bytes")
        return line

    # A body.

    def read_some(self, most: int) -> bytes:
        """From 1 to most bytes; none when the client has closed its side."""
        if self._buffer:
            return self._take(min(most, len(self._buffer)))
        data = self._receive(min(most, READ_BYTES))
        self._hold(len(data))
        return data

    def read(self, count: int) -> bytes:
        """So many bytes; fewer when the client has closed its side."""
        data = BytesIO()
        while (left := count - data.tell()) and (part := self.read_some(left)):
            data.write(part)
        return data.getvalue()

    # The client's leaving.

    def look_ahead(self) -> bool:
        """Takes what has come meanwhile; whether the client has closed its side, or the connection
        is broken. Never blocks. Raises ApiError 400 for a client that sends on and on."""
        try:
            while not self.ended and self._is_ready():
                data = self._connection.recv(READ_BYTES)
                self.ended = not data
                self._buffer += data
                if len(self._buffer) > AHEAD_BYTES:
                    # The end might be behind it, and no system tells us without reading on.
                    self._buffer.clear()
                    raise bad_request(
                        f"More than {AHEAD_BYTES} bytes were sent on this connection before its "
                        "request was answered."
                    )
        except (OSError, ValueError):
            self.ended = True
        return self.ended

    def waste(self) -> None:
        """Drops what comes until the client closes its side. Raises SlowClient, OSError."""
        self._buffer.clear()
        while self._receive(READ_BYTES):
            pass

    def close(self) -> None:
        """For http.server; the socket is closed by whoever accepted it."""
        self._buffer.clear()

    def _is_ready(self) -> bool:
        poll = select.poll()  # select() refuses descriptors from 1024 on
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _fill(self) -> bool:
        data = self._receive(READ_BYTES)
        self._hold(len(data))
        self._buffer += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _receive(self, most: int) -> bytes:
        if self.ended:
            return b""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise SlowClient
        self._connection.settimeout(left)
        try:
            data = self._connection.recv(most)
        except TimeoutError:
            raise SlowClient from None
        self.ended = not data
        return data
