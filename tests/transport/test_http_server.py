"""The transport against raw sockets: what slow, wrong, rude and absent clients get."""

import contextlib
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.protocol.errors import ApiError
from server.transport import exchange, incoming, request_body
from server.transport.http_server import Exchange, Server
from tests.support.raw_http import DEADLINE_S, RawClient, request


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


@pytest.fixture(scope="module")
def shared():
    app = App()
    with serving(app) as server:
        yield app, server.port


@pytest.fixture
def app(shared) -> App:
    shared[0].paths.clear()
    return shared[0]


@pytest.fixture
def port(shared) -> int:
    return shared[1]


@pytest.fixture
def client(port):
    with RawClient(port) as client:
        yield client


def assert_closed(client: RawClient) -> None:
    assert client.rest() == b""


# Requests one after another.


def test_keep_alive_answers_each_request_with_its_own_id(client):
    first = client.ask(request("GET", "/ok"))
    second = client.ask(request("POST", "/echo", "hello"))
    assert (first.status, second.status) == (200, 200)
    assert second.json == {"length": 5, "start": "hello"}
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_connection_close_is_honoured(client):
    answer = client.ask(request("GET", "/ok", None, "Connection: close"))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert_closed(client)


def test_pipelined_requests_are_answered_in_order(client):
    client.send(
        request("POST", "/echo", "one") + request("GET", "/missing") + request("POST", "/echo", "2")
    )
    assert client.read().json["start"] == "one"
    assert client.read().status == 404
    assert client.read().json["start"] == "2"


def test_a_body_nobody_read_is_not_taken_for_the_next_request(client, app):
    smuggled = request("GET", "/ok")
    answer = client.ask(request("POST", "/refuse", smuggled) + smuggled)
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert_closed(client)
    assert app.paths == ["/refuse"]


@pytest.mark.parametrize("path", ["/refuse", "/missing"])
def test_a_client_that_is_still_sending_gets_its_refusal(port, path):
    """Closing with bytes unread used to reset the connection, and the answer was lost."""
    with RawClient(port) as client:
        client.send(request("POST", path, b"x" * 8_000_000))
        assert client.read().status in (401, 404)
        assert_closed(client)


# Methods.


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "PATCH", "DELETE"])
def test_known_methods_reach_the_app(client, method):
    assert client.ask(request(method, "/ok")).json == {"method": method}


def test_head_gets_the_headers_alone(client):
    answer = client.ask(request("HEAD", "/ok"), head=True)
    assert answer.status == 200 and int(answer.headers["content-length"]) > 0
    assert client.ask(request("HEAD", "/missing"), head=True).status == 404
    assert client.ask(request("GET", "/ok")).status == 200


@pytest.mark.parametrize("method", ["BREW", "get", "CONNECT", "PROPFIND", "__class__", "GET\x00"])
def test_unknown_methods_are_405_in_json(client, method):
    answer = client.ask(request(method, "/ok"))
    assert answer.status == 405
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


# Request lines and headers.


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET", 400),
        ("GET /ok HTTP/one", 400),
        ("GET /ok HTTP/1", 400),
        ("GET /ok HTTP/1.1 and more", 400),
        ("POST /ok", 400),
        ("GET /ok HTTP/2.0", 505),
        ("GET /ok HTTP/1.7", 505),
        ("GET /ok HTTP/0.9", 505),
        ("\x16\x03\x01\x02\x00\x01", 400),  # a TLS hello
        ("GET /" + "a" * 70_000 + " HTTP/1.1", 414),
    ],
)
def test_unreadable_request_lines_get_a_status_line_and_json(client, line, status):
    """http.server answers these in HTTP/0.9 style, without a status line."""
    answer = client.ask(line + "\r\n\r\n")
    assert answer.status == status
    assert len(answer.error["message"]) < 300
    assert_closed(client)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["X-Long: " + "a" * 70_000], 431),
        ([f"X-{n}: {'a' * 10_000}" for n in range(7)], 431),
        ([f"X-{n}: 1" for n in range(200)], 431),
        (["Content-Length : 5"], 400),
        (["no colon here"], 400),
        ([" folded before anything"], 400),
    ],
)
def test_header_lines_that_cannot_be_trusted_are_refused(client, headers, status):
    answer = client.ask("\r\n".join(["POST /echo HTTP/1.1", *headers, "", ""]))
    assert answer.status == status and answer.error["message"]
    assert_closed(client)


# Lengths and encodings.


@pytest.mark.parametrize(
    "value", ["abc", "-1", "+5", "1 2", "", "5, 5", "0x5", "5.0", "\u0665", "1e3"]
)
def test_content_length_that_is_no_number_is_400(client, app, value):
    answer = client.ask(f"POST /echo HTTP/1.1\r\nContent-Length: {value}\r\n\r\nhello")
    assert answer.status == 400 and "Content-Length" in answer.error["message"]
    assert_closed(client)
    assert not app.paths


@pytest.mark.parametrize("second", ["5", "6"])
def test_two_content_lengths_are_400(client, second):
    answer = client.ask(
        f"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: {second}\r\n\r\nhello"
    )
    assert answer.status == 400
    assert_closed(client)


@pytest.mark.parametrize("length", [33554433, 10**14, 10**40])
def test_body_over_the_limit_is_413_before_it_is_sent(client, length):
    answer = client.ask(f"POST /echo HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")
    assert answer.status == 413 and answer.error["message"]
    assert_closed(client)


def test_chunked_body_over_the_limit_is_413(client, monkeypatch):
    monkeypatch.setattr(request_body, "MAX_BODY_BYTES", 100)
    head = "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = client.ask(head + "40\r\n" + "x" * 64 + "\r\n" + "40\r\n" + "x" * 64 + "\r\n0\r\n\r\n")
    assert answer.status == 413
    assert_closed(client)


def test_body_without_a_length_is_411_and_the_end(client):
    answer = client.ask("POST /echo HTTP/1.1\r\n\r\nhello")
    assert answer.status == 411 and answer.error["message"]
    assert_closed(client)


def test_empty_body_is_a_body(client):
    assert client.ask(request("POST", "/echo", "")).json["length"] == 0
    assert client.ask(request("GET", "/ok")).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "gzip, identity"])
def test_compressed_body_is_415(client, encoding):
    answer = client.ask(request("POST", "/echo", "hello", f"Content-Encoding: {encoding}"))
    assert answer.status == 415 and answer.error["message"]
    assert_closed(client)


def test_identity_encoding_is_plain(client):
    answer = client.ask(request("POST", "/echo", "hello", "Content-Encoding: identity"))
    assert answer.json["length"] == 5


CHUNKED = "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "body",
    [
        "5\r\nhello\r\n0\r\n\r\n",
        "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "0005;name=value\r\nhello\r\n0;last\r\nTrailer: 1\r\nOther: 2\r\n\r\n",
        "1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n000\r\n\r\n",
    ],
)
def test_chunked_body_is_put_together_and_the_connection_goes_on(client, body):
    answer = client.ask(CHUNKED + body)
    assert answer.json == {"length": 5, "start": "hello"}
    assert client.ask(request("GET", "/ok")).status == 200


@pytest.mark.parametrize(
    "body",
    [
        "hello",
        "\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        ";\r\nhello",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n",
        "5" + ";" * 5000 + "\r\nhello\r\n0\r\n\r\n",
        "0\r\n" + "Trailer: 1\r\n" * 100 + "\r\n",
    ],
)
def test_malformed_chunks_are_400_and_the_end(client, body):
    client.send(CHUNKED + body)
    client.socket.shutdown(socket.SHUT_WR)
    answer = client.read()
    assert answer.status == 400 and "chunked" in answer.error["message"]
    assert_closed(client)


def test_a_long_chunk_size_is_not_cut_to_a_short_one(client, app):
    """Sixteen zeros before the size made it the last chunk; the rest was the next request."""
    smuggled = request("GET", "/ok")
    size = b"0" * 16 + f"{len(smuggled):x}".encode()
    client.send(CHUNKED.encode() + size + b"\r\n" + smuggled + b"\r\n0\r\n\r\n")
    assert client.read().json["length"] == len(smuggled)
    assert client.ask(request("GET", "/missing")).status == 404
    assert app.paths == ["/echo", "/missing"]


@pytest.mark.parametrize(
    "headers",
    [
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding:",
    ],
)
def test_framing_that_two_parsers_could_read_in_two_ways_is_400(client, headers):
    answer = client.ask(f"POST /echo HTTP/1.1\r\n{headers}\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert answer.status == 400 and "Transfer-Encoding" in answer.error["message"]
    assert_closed(client)


def test_expect_continue_is_answered_before_the_body(client):
    head = "POST /echo HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert client.ask(head).status == 100
    assert client.ask("hello").json["length"] == 5


def test_a_request_without_a_key_is_refused_before_its_body(client):
    """The body, up to 32 MB of it, was asked for and waited for first."""
    head = "POST /key HTTP/1.1\r\nContent-Length: 30000000\r\n"
    answer = client.ask(head + "Expect: 100-continue\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert_closed(client)


def test_a_request_with_a_key_is_told_to_go_on_when_the_body_is_wanted(client):
    head = "POST /key HTTP/1.1\r\nContent-Length: 5\r\nx-api-key: k\r\nExpect: 100-continue"
    assert client.ask(head + "\r\n\r\n").status == 100
    assert client.ask("hello").json["length"] == 5
    assert client.ask(request("GET", "/ok")).status == 200


def test_a_byte_order_mark_before_a_body_is_skipped(client):
    answer = client.ask(request("POST", "/echo", b"\xef\xbb\xbf{}"))
    assert answer.json == {"length": 2, "start": "{}"}
    answer = client.ask(CHUNKED.encode() + b"2\r\n\xef\xbb\r\n2\r\n\xbf1\r\n0\r\n\r\n")
    assert answer.json == {"length": 1, "start": "1"}


def test_expect_continue_is_refused_when_the_body_would_be(client):
    head = "POST /echo HTTP/1.1\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
    assert client.ask(head).status == 413
    assert_closed(client)


# Slow clients.


def test_slow_headers_are_408(client, monkeypatch):
    monkeypatch.setattr(exchange, "HEADER_S", 0.2)
    answer = client.ask("GET /ok HTTP/1.1\r\nX-Half: ")
    assert answer.status == 408 and answer.error["message"]
    assert_closed(client)


def test_a_byte_at_a_time_does_not_move_the_deadline(client, monkeypatch):
    monkeypatch.setattr(exchange, "HEADER_S", 0.3)
    with contextlib.suppress(OSError):
        for letter in "GET /ok HTTP/1.1\r\nX-Slow: " + "a" * 1000:
            client.send(letter)
            client.socket.settimeout(0.05)
            try:
                if client.socket.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
    client.socket.settimeout(DEADLINE_S)
    assert client.read().status == 408


def test_half_a_request_line_is_408(client, monkeypatch):
    """Nothing parsed yet, but something arrived: that is a request, not an idle connection."""
    monkeypatch.setattr(exchange, "HEADER_S", 0.2)
    assert client.ask("GE").status == 408
    assert_closed(client)


@pytest.mark.parametrize(
    "start",
    [
        request("POST", "/echo", "hello")[:-1],
        CHUNKED.encode() + b"5\r\nhel",
        CHUNKED.encode() + b"5\r\nhello\r\n",
    ],
)
def test_slow_bodies_are_408(client, monkeypatch, start):
    monkeypatch.setattr(request_body, "BODY_S", 0.2)
    answer = client.ask(start)
    assert answer.status == 408 and answer.error["message"]
    assert_closed(client)


def test_a_body_that_trickles_is_408_long_before_the_last_deadline(client, monkeypatch):
    monkeypatch.setattr(request_body, "BODY_GRACE_S", 0.2)
    monkeypatch.setattr(request_body, "BODY_RATE", 10**9)
    answer = client.ask(request("POST", "/echo", b"x" * 1000)[:-1])
    assert answer.status == 408
    assert_closed(client)


def test_a_connection_that_asks_nothing_is_closed_sooner_than_one_that_has_asked(port, monkeypatch):
    monkeypatch.setattr(exchange, "FIRST_BYTE_S", 0.2)
    with RawClient(port) as silent, RawClient(port) as asking:
        assert asking.ask(request("GET", "/ok")).status == 200
        assert_closed(silent)
        assert asking.ask(request("GET", "/ok")).status == 200


def test_idle_connections_are_closed_without_a_word_or_a_log_entry(client, monkeypatch, caplog):
    """The standard library's reader raised a second time, and each idle client left a traceback."""
    monkeypatch.setattr(exchange, "IDLE_S", 0.2)
    assert client.ask(request("GET", "/ok")).status == 200
    assert_closed(client)
    time.sleep(0.1)
    assert "Traceback" not in caplog.text


def test_a_client_that_does_not_read_is_given_up(client, app, monkeypatch):
    monkeypatch.setattr(exchange, "SEND_S", 0.2)
    client.send(request("GET", "/flood"))
    assert app.unwritable.wait(DEADLINE_S)


# Clients that leave.


def test_a_client_that_leaves_is_noticed(port, app):
    app.left.clear()
    with RawClient(port) as client:
        client.send(request("GET", "/wait"))
        deadline = time.monotonic() + DEADLINE_S
        while "/wait" not in app.paths:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert app.left.wait(DEADLINE_S)


BEHIND = {
    "a newline": b"\r\n",
    "the start of a request": b"POST /echo HT",
    "a request": request("GET", "/ok"),
    "several requests": request("POST", "/echo", "hello") * 50,
    "half a megabyte": b"junk" * 2**17,
    "several megabytes": b"\0" * 2**22,
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_a_client_that_leaves_is_noticed_behind_whatever_it_has_sent(port, app, behind, how):
    """One unread byte hid the end of the connection, and the request ran on to its last token."""
    app.left.clear()
    with RawClient(port) as client:
        with contextlib.suppress(OSError):  # what is too much is refused while it is sent
            client.send(request("GET", "/wait") + behind)
        if how == "half-close":
            client.socket.shutdown(socket.SHUT_WR)
        elif how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "half-close":
            client.close()
        assert app.left.wait(DEADLINE_S)


def test_what_was_sent_ahead_is_answered_in_its_turn(client, app):
    """Looking for the client's end must not lose a byte of the requests behind."""
    ahead = request("POST", "/echo", b"x" * 100_000) + request("GET", "/missing")
    app.go_on.clear()
    client.send(request("GET", "/look") + ahead[:70_000])
    deadline = time.monotonic() + DEADLINE_S
    while "/look" not in app.paths:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.send(ahead[70_000:] + request("GET", "/ok")[:10])
    app.go_on.set()
    assert client.read().json == {"gone": False}
    assert client.read().json["length"] == 100_000
    assert client.read().status == 404
    client.send(request("GET", "/ok")[10:])
    assert client.read().status == 200


def test_a_client_that_sends_on_and_on_before_its_answer_is_told(client):
    with contextlib.suppress(OSError):
        client.send(request("GET", "/wait") + b"x" * 2 * incoming.AHEAD_BYTES)
    answer = client.read()
    assert answer.status == 400 and str(incoming.AHEAD_BYTES) in answer.error["message"]
    assert_closed(client)


def test_a_half_closed_client_whose_answer_takes_time_is_told_why_there_is_none(client):
    """Half closed and closed look the same from here; who can still read deserves a reason."""
    client.send(request("GET", "/generate"))
    client.socket.shutdown(socket.SHUT_WR)
    answer = client.read()
    assert answer.status == 400 and answer.error["code"] == "client_closed_request"
    assert answer.headers["connection"] == "close"
    assert_closed(client)


def test_a_half_closed_client_s_stream_ends_with_the_reason(client):
    client.send(request("GET", "/generate-stream"))
    client.socket.shutdown(socket.SHUT_WR)
    answer = client.read()
    assert answer.chunks[0] == b'data: {"n":0}\n\n'
    assert b"client_closed_request" in answer.chunks[-1]
    assert_closed(client)


@pytest.mark.parametrize("cut", [2, 20, -3, -1])
def test_a_head_that_is_cut_is_no_request(client, app, cut):
    """The end of the connection was taken for the end of the headers."""
    client.send(request("GET", "/ok", None, "X-Some: thing")[:cut])
    client.socket.shutdown(socket.SHUT_WR)
    assert client.read().status == 400
    assert_closed(client)
    assert not app.paths


def test_a_pipelining_client_has_not_left(client):
    client.send(request("GET", "/is-there") + request("GET", "/is-there"))
    assert client.read().json == {"gone": False}
    assert client.read().json == {"gone": False}


def test_a_client_on_a_high_file_descriptor_has_not_left(client, port):
    """select() raises for descriptors from 1024 on, and that counted as "gone"."""
    held = []
    try:
        while not held or held[-1] < 1100:
            held.append(os.dup(client.socket.fileno()))
        with RawClient(port) as high:
            assert high.ask(request("GET", "/is-there")).json == {"gone": False}
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_a_half_closed_client_is_answered_and_then_closed(client):
    client.send(request("POST", "/echo", "hello"))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.read().json["length"] == 5
    assert_closed(client)


def test_a_client_that_leaves_in_its_body_harms_nobody(port):
    with RawClient(port) as client:
        client.send(request("POST", "/echo", "hello")[:-2])
    with RawClient(port) as client:
        client.send(CHUNKED + "5\r\nhe")
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.read()  # for one that has closed its sending side only
        assert (answer.status, answer.error["code"]) == (400, "client_closed_request")
        assert_closed(client)
    with RawClient(port) as client:
        assert client.ask(request("GET", "/ok")).status == 200


# Streams.


def test_a_stream_comes_an_event_a_chunk_and_the_connection_goes_on(client):
    answer = client.ask(request("GET", "/stream"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.chunks == [
        b'data: {"n":0}\n\n', b'data: {"n":1}\n\n', b'data: {"n":2}\n\n', b"data: [DONE]\n\n",
    ]  # fmt: skip
    assert client.ask(request("GET", "/ok")).status == 200


def test_http_1_0_gets_its_stream_without_chunks_until_the_end(client):
    answer = client.ask(request("GET", "/stream", version="1.0"))
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.body.startswith(b'data: {"n":0}\n\n')
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_http_1_0_is_closed_after_one_answer(client, connection):
    answer = client.ask(
        request("POST", "/echo", "hello", f"Connection: {connection}", version="1.0")
    )
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert_closed(client)


def test_http_1_0_has_no_chunked_bodies(client):
    answer = client.ask(CHUNKED.replace("1.1", "1.0") + "5\r\nhello\r\n0\r\n\r\n")
    assert answer.status == 400


# Failures of the app.


@pytest.mark.parametrize("path", ["/fail", "/fail-on-a-file"])
def test_an_exception_is_a_500_that_tells_nothing(client, path):
    answer = client.ask(request("GET", path))
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert "bug" not in answer.error["message"] and "client" not in answer.error["message"]


@pytest.mark.parametrize(("path", "events"), [("/fail-in-stream", 2), ("/time-out-in-stream", 1)])
def test_a_failure_in_a_stream_is_an_error_event_and_the_end(client, path, events):
    answer = client.ask(request("GET", path))
    assert answer.status == 200 and len(answer.chunks) == events
    assert answer.chunks[-1].startswith(b'data: {"error":{"message":')
    assert_closed(client)


# Many at once.


def test_connections_over_the_cap_are_503_and_find_a_place_later():
    app = App()
    with serving(app, max_connections=2) as server:
        with RawClient(server.port) as one, RawClient(server.port) as two:
            assert one.ask(request("GET", "/ok")).status == 200
            assert two.ask(request("GET", "/ok")).status == 200
            with RawClient(server.port) as three:
                answer = three.read()
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
                assert answer.error["code"] == "too_many_connections"
                assert_closed(three)
            assert one.ask(request("GET", "/ok")).status == 200
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with RawClient(server.port) as later:
                if later.ask(request("GET", "/ok")).status == 200:
                    return
        pytest.fail("the places were not given back")


def test_200_connects_at_once_are_all_answered(port):
    gate = threading.Barrier(50)

    def ask(_) -> list[int]:
        gate.wait()
        clients = [RawClient(port) for _ in range(4)]
        statuses = [client.ask(request("GET", "/ok")).status for client in clients]
        for client in clients:
            client.close()
        return statuses

    with ThreadPoolExecutor(50) as pool:
        assert [s for statuses in pool.map(ask, range(50)) for s in statuses] == [200] * 200


def test_a_taken_port_is_an_error_not_a_shared_port(port):
    with pytest.raises(OSError):
        Server("127.0.0.1", port, App())


def test_listening_asks_no_name_server(monkeypatch):
    def no_dns(*_):
        raise AssertionError("asked for a name")

    monkeypatch.setattr(socket, "getfqdn", no_dns)
    monkeypatch.setattr(socket, "gethostbyaddr", no_dns)
    with serving(App()) as server, RawClient(server.port) as client:
        assert client.ask(request("GET", "/ok")).status == 200
