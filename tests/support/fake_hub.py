"""As much of the Hugging Face hub as looking at a model needs, on 127.0.0.1."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Has one repo, of these files. answers: a status that everything gets, with the error's name
    for the hub's package. sent: bytes of each file that was asked for, by name."""

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.answers: tuple[int, str] | None = None
        self.sent: dict[str, int] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if self.answers is not None:
            status, kind = self.answers
            return _send(request, status, b"", {"X-Error-Code": kind} if kind else {})
        if path.startswith(f"/api/models/{self.repo}"):
            told = {"id": self.repo, "sha": COMMIT, "siblings": [*map(self._tell, self.files)]}
            return _send(request, 200, json.dumps(told).encode())
        if f"/{self.repo}/resolve/{COMMIT}/" in path and name in self.files:
            return self._send_file(request, name)
        return _send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def _tell(self, name: str) -> dict:
        data = self.files[name]
        return {"rfilename": name, "size": len(data), "blobId": _blob(data)}

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data, status, headers = self.files[name], 200, {}
        if wanted := request.headers.get("Range", ""):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        headers |= {"ETag": f'"{_blob(self.files[name])}"', "X-Repo-Commit": COMMIT}
        if request.command == "GET":
            self.sent[name] = self.sent.get(name, 0) + len(data)
        _send(request, status, data, headers)


def files_of(folder: Path) -> dict[str, bytes]:
    """A model folder's files, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _send(
    request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for header in (headers or {}).items():
        request.send_header(*header)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(data)
