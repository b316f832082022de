"""What the HTTP front end makes of request lines, headers, lengths and encodings."""

import socket

import pytest

from server.transport import request_body
from tests.support.http_app import CHUNKED, assert_closed
from tests.support.raw_http import request


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
