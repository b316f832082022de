"""HTTP by hand, for tests that need to be rude, early, slow or gone."""

import json
import socket
from dataclasses import dataclass, field

DEADLINE_S = 20


@dataclass
class RawAnswer:
    """One answer. Header names are in lower case; body is without its chunks."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        """The error, which must have OpenAI's four keys."""
        assert self.headers["content-type"] == "application/json", self
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class RawClient:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def ask(self, data: bytes | str, head: bool = False) -> RawAnswer:
        self.send(data)
        return self.read(head)

    def read(self, head: bool = False) -> RawAnswer:
        """The next answer; head: it has no body."""
        answer = self.read_head()
        if head or answer.status < 200:
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while chunk := self.read_chunk():
                answer.chunks.append(chunk)
            answer.body = b"".join(answer.chunks)
        elif "content-length" in answer.headers:
            length = int(answer.headers["content-length"])
            answer.body = self._file.read(length)
            assert len(answer.body) == length, "the answer was cut"
        else:
            answer.body = self._file.read()
        return answer

    def read_head(self) -> RawAnswer:
        """Status and headers alone."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), f"no status line: {line!r}"
        headers = {}
        while (header := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return RawAnswer(int(line.split()[1]), headers)

    def read_chunk(self) -> bytes:
        """The next chunk; empty at the end of the stream."""
        size = self._file.readline()
        assert size.endswith(b"\r\n"), f"the stream was cut at {size!r}"
        data = self._file.read(int(size, 16))
        assert self._file.readline() == b"\r\n"
        return data

    def rest(self) -> bytes:
        """Everything until the server closes."""
        return self._file.read()


def request(
    method: str, path: str, body: bytes | str | dict | None = None, *headers: str, version="1.1"
) -> bytes:
    """The bytes of a well-formed request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
    if isinstance(body, dict):
        body = json.dumps(body)
        lines.append("Content-Type: application/json")
    if isinstance(body, str):
        body = body.encode()
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
