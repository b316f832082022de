"""The HTTP front end: requests one after another, methods, streams, failures, and many at once."""

import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.transport.exchange import WRITE_BYTES
from server.transport.http_server import Server
from tests.support.http_app import CHUNKED, LARGE, App, assert_closed, serving
from tests.support.raw_http import DEADLINE_S, RawClient, request


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


def test_a_large_answer_is_written_in_pieces_that_each_have_their_time(client, monkeypatch):
    written = []

    def write(self, data: bytes) -> int:
        written.append(len(data))
        self._sock.sendall(data)
        return len(data)

    monkeypatch.setattr(socketserver._SocketWriter, "write", write)
    answer = client.ask(request("GET", "/large"))
    assert len(answer.body) == LARGE and sum(written) > LARGE
    assert max(written) <= WRITE_BYTES


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
