"""Clients of the HTTP front end that are slow, or leave."""

import contextlib
import os
import socket
import struct
import time

import pytest

from server.transport import exchange, incoming, request_body
from tests.support.http_app import CHUNKED, assert_closed
from tests.support.raw_http import DEADLINE_S, RawClient, request


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
    with RawClient(port) as asking:
        assert asking.ask(request("GET", "/ok")).status == 200
        monkeypatch.setattr(exchange, "FIRST_BYTE_S", 0.2)
        with RawClient(port) as silent:
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
