"""An app for the front end, which answers by path and counts what it sees."""

import contextlib
import threading
import time

from server.protocol.errors import ApiError
from server.transport.http_server import Exchange, Server
from tests.support.raw_http import DEADLINE_S, RawClient

LARGE = 5 * 2**20 // 2
CHUNKED = "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class App:
    """Answers by path; counts what it sees."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.go_on = threading.Event()
        self.unwritable = threading.Event()
        self.paths: list[str] = []

    def __call__(self, exchange: Exchange) -> None:
        self.paths.append(exchange.path)
        getattr(self, exchange.path.strip("/").replace("-", "_"), self.missing)(exchange)

    def missing(self, exchange: Exchange) -> None:
        raise ApiError(404, "no such path")

    def ok(self, exchange: Exchange) -> None:
        exchange.send_json(200, {"method": exchange.command})

    def large(self, exchange: Exchange) -> None:
        exchange.send_body(200, "text/plain", b"x" * LARGE)

    def echo(self, exchange: Exchange) -> None:
        body = exchange.read_body()
        exchange.send_json(200, {"length": len(body), "start": body[:20].decode("latin-1")})

    def refuse(self, exchange: Exchange) -> None:
        raise ApiError(401, "not you")

    def stream(self, exchange: Exchange) -> None:
        exchange.begin_stream()
        for n in range(3):
            exchange.send_event({"n": n})
        exchange.send_event("[DONE]")
        exchange.end_stream()

    def fail(self, exchange: Exchange) -> None:
        raise RuntimeError("a bug")

    def fail_on_a_file(self, exchange: Exchange) -> None:
        raise FileNotFoundError("not the client's doing")

    def fail_in_stream(self, exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send_event({"n": 0})
        raise RuntimeError("a bug")

    def time_out_in_stream(self, exchange: Exchange) -> None:
        exchange.begin_stream()
        raise ApiError(504, "too slow")

    def wait(self, exchange: Exchange) -> None:
        end = time.monotonic() + DEADLINE_S
        try:
            while not exchange.client_gone():
                assert time.monotonic() < end, "the client's leaving was not seen"
                time.sleep(0.01)
        finally:
            self.left.set()
        exchange.close_connection = True

    def generate(self, exchange: Exchange) -> None:
        self.wait(exchange)
        exchange.account.left = True  # as responder.py does

    def generate_stream(self, exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send_event({"n": 0})
        self.generate(exchange)

    def look(self, exchange: Exchange) -> None:
        exchange.client_gone()
        assert self.go_on.wait(DEADLINE_S)
        self.is_there(exchange)

    def key(self, exchange: Exchange) -> None:
        if "x-api-key" not in exchange.headers:
            raise ApiError(401, "no key")
        self.echo(exchange)

    def is_there(self, exchange: Exchange) -> None:
        exchange.send_json(200, {"gone": exchange.client_gone()})

    def flood(self, exchange: Exchange) -> None:
        exchange.begin_stream()
        try:
            while True:
                exchange.send_event("x" * 2**20)
        except OSError:
            self.unwritable.set()
            raise


@contextlib.contextmanager
def serving(app, **options):
    server = Server("127.0.0.1", 0, app, **options)
    server.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def assert_closed(client: RawClient) -> None:
    assert client.rest() == b""
