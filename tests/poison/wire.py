"""HTTP itself abused: methods, request lines, paths, headers, framing, smuggling, half requests."""

import random

from tests.poison.case import BAD, CHAT, COMPLETIONS, FINE, Case, wire
from tests.support.raw_http import request

GOOD = b'{"prompt": [5, 6], "max_tokens": 2, "temperature": 0}'
STREAM = b'{"prompt": [5, 6], "max_tokens": 500, "ignore_eos": true, "stream": true}'
MEBI = 2**20
NOTHING: tuple[int, ...] = ()


def cases() -> list[Case]:
    return [
        *_methods(),
        *_lines(),
        *_paths(),
        *_headers(),
        *_lengths(),
        *_chunks(),
        *_smuggling(),
        *_pipelines(),
        *_halves(),
    ]


def _post(*headers: str, data: bytes = GOOD, line: str = f"POST {COMPLETIONS} HTTP/1.1") -> bytes:
    """A request with just these headers; nothing says how long the body is, unless they do."""
    return "\r\n".join([line, "Host: localhost", *headers, "", ""]).encode("latin-1") + data


def _methods() -> list[Case]:
    found = []
    for method in (
        "GET", "HEAD", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "BREW",
        "post", "POST\0", "P\xd6ST", "M" * 1000, "__class__", "_dispatch", "../GET",
    ):  # fmt: skip
        data = request("METHOD", COMPLETIONS, GOOD).replace(b"METHOD", method.encode("latin-1"), 1)
        found.append(wire(f"{method[:10]!a} completions", data, 405, head=method == "HEAD"))
    for method, path, status in (
        ("OPTIONS", COMPLETIONS, FINE),
        ("OPTIONS", "*", 404),
        ("POST", "/health", 405),
        ("DELETE", "/v1/models", 405),
        ("HEAD", "/health", FINE),
        ("HEAD", "/nowhere", 404),
        ("TRACE", "/", 405),
        ("CONNECT", "example.invalid:443", 405),
    ):
        data = request(method, path)
        found.append(wire(f"{method} {path}", data, status, head=method == "HEAD"))
    return found


def _lines() -> list[Case]:
    chance = random.Random(5)
    rest = "\r\nHost: localhost\r\n\r\n"
    found = [
        wire(f"line: {line[:40]!a}", line + rest, status)
        for line, status in {
            "GET": BAD,
            "GET /health": FINE,  # the way of 1991, but with headers
            "POST /health": BAD,
            "GET /health HTTP/1.1 more": BAD,
            "GET /health HTTP/0.9": 505,
            "GET /health HTTP/1.2": 505,
            "GET /health HTTP/2.0": 505,
            "GET /health HTTP/3": BAD,
            "GET /health HTTP/x.y": BAD,
            "GET /health HTTP/-1.1": BAD,
            "GET /health HTTP/1.1.1": BAD,
            "GET /health HTTP/99999999999.1": BAD,
            "GET /health http/1.1": BAD,
            "GET /health ICAP/1.1": BAD,
            "SSH-2.0-OpenSSH_9.9": BAD,
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": BAD,
            "\0\0\0\0": BAD,
            "*1": BAD,
            ": HTTP/1.1": BAD,
        }.items()
    ]
    return [
        *found,
        wire("two blanks between words", "GET  /health   HTTP/1.1" + rest, FINE),
        wire("tabs between words", "GET\t/health\tHTTP/1.1" + rest, FINE),
        wire("bare newlines", "GET /health HTTP/1.1\nHost: localhost\n\n", FINE),
        wire("HTTP/1.0", "GET /health HTTP/1.0\r\n\r\n", FINE),
        wire("no Host", "GET /health HTTP/1.1\r\n\r\n", FINE),
        wire("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        wire("TLS", b"\x16\x03\x01\x00\x05hello\n", BAD),
        wire("a line of 70,000", "GET /" + "a" * 70_000 + " HTTP/1.1" + rest, 414),
        wire("no line ever", "a" * 70_000, 414),
        wire("nothing but newlines", "\r\n" * 1000, leave="close"),
        wire("random bytes", chance.randbytes(4096) + b"\r\n\r\n", leave="close"),
        wire("random bytes, reset", chance.randbytes(100_000), leave="reset"),
    ]


def _paths() -> list[Case]:
    return [
        wire(f"path: {path[:40]!a}", request("GET", "PATH").replace(b"PATH", path.encode()), status)
        for path, status in {
            "/": FINE,
            "/v1": FINE,
            "/v1/": FINE,
            "/v1/health": FINE,
            "/v1/v1/health": 404,
            "/health/": FINE,
            "//health": FINE,
            "/health?x=%00&y[]=1#z": FINE,
            "/health;x=1": 404,
            "/Health": 404,
            "/%68ealth": 404,
            "/health%00": 404,
            "/health%20": 404,
            "/v1/models": FINE,
            "/v1/models/demo": FINE,
            "/v1/models/d%65mo": FINE,
            "/v1/models/": FINE,
            "/v1/models/%2F": 404,
            "/v1/models/..%2f..%2f..%2fetc%2fpasswd": 404,
            "/v1/models/%00": 404,
            "/v1/models/%ff%fe": 404,
            "/v1/models/%": 404,
            "/v1/models/%ed%a0%80": 404,
            "/v1/models/" + "a" * 60_000: 404,
            "/v1/models/é": 404,
            "/../../../../etc/passwd": 404,
            "/%2e%2e/%2e%2e/etc/passwd": 404,
            "/v1/chat%2Fcompletions": 404,
            "/v1//chat/completions": 404,
            "\\health": 404,
            "health": 404,
            "http://127.0.0.1/health": FINE,
            "http://other.invalid/health": 403,
            "http://[::1/health": BAD,
            "http://[x]/health": BAD,
            "file:///etc/passwd": 404,
            "?": FINE,
            "#": FINE,
            "/\x01\x02\x7f": 404,
        }.items()
    ]


def _headers() -> list[Case]:
    def get(*headers: str) -> bytes:
        return _post(*headers, data=b"", line="GET /health HTTP/1.1")

    return [
        wire("101 headers", get(*(f"x{i}: 1" for i in range(101))), 431),
        wire("10,000 headers", get(*(f"x{i}: 1" for i in range(10_000))), 431),
        wire("a header of 66,000", get("x: " + "a" * 66_000), 431),
        wire("a header name of 66,000", get("a" * 66_000 + ": x"), 431),
        wire("90 headers of 60,000", get(*(f"x{i}: {'a' * 60_000}" for i in range(90))), 431),
        wire("no colon", get("nothing"), BAD),
        wire("no name", get(": x"), BAD),
        wire("blank before the colon", get("Content-Length : 5"), BAD),
        wire("blank before the first", get(" x: 1").replace(b"Host: localhost\r\n", b""), BAD),
        wire("folded", get("x: 1", " 2"), BAD),
        wire("nul in a value", get("x: a\0b"), BAD),
        wire("latin-1", get("x: \xff"), FINE),
        wire("latin-1 name", get("x\xe9: x"), BAD),
        wire("many hosts", get("Host: a", "Host: b"), BAD),
        wire("evil host", get("Host: 169.254.169.254/$(reboot)").replace(
             b"Host: localhost\r\n", b""), BAD),
        wire("another's host", get("Host: evil.invalid").replace(b"Host: localhost\r\n", b""), 403),
        wire("odd Connection", get("Connection: close, keep-alive, , upgrade"), FINE),
        wire("h2c", get("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AA"), FINE),
        wire("websocket", get("Connection: Upgrade", "Upgrade: websocket"), FINE),
        wire("method override", get("X-HTTP-Method-Override: DELETE"), FINE),
        wire("odd Authorization", get("Authorization: \xff", "x-api-key: \xfe"), FINE),
        wire("odd Origin", get("Origin: null", "Access-Control-Request-Headers: a\tb"), 403),
        wire("range", get("Range: bytes=0-18446744073709551615," * 50), FINE),
        wire("gzip body", _post("Content-Encoding: gzip", f"Content-Length: {len(GOOD)}"), 415),
        wire("odd type", _post("Content-Type: \xff/..", f"Content-Length: {len(GOOD)}"), FINE),
        wire("no charset like it", _post("Content-Type: application/json; charset=utf-7",
             f"Content-Length: {len(GOOD)}"), FINE),
        wire("expects too much", _post("Expect: 100-continue", f"Content-Length: {33 * MEBI}",
             data=b""), 413),
        wire("expects a continue", _post("Expect: 100-continue", f"Content-Length: {len(GOOD)}"),
             100, FINE),
    ]  # fmt: skip


def _lengths() -> list[Case]:
    found = [
        wire(f"length {value[:30]!a}", _post(f"Content-Length: {value}"), BAD)
        for value in (
            "", "-1", "+5", "5.0", "0x5", "1e1", "5,5", "5 5", "5;5", "five", "5\0", "\xb2", "\xff",
            "1_0", "NaN", "--5",
        )
    ]  # fmt: skip
    n = f"Content-Length: {len(GOOD)}"
    return [
        *found,
        wire("no length", _post(), 411),
        wire("length twice, the same", _post(n, n), BAD),
        wire("two lengths", _post(n, "Content-Length: 3"), BAD),
        wire("33 MB announced", _post(f"Content-Length: {33 * MEBI}"), 413),
        wire("2**63 announced", _post("Content-Length: 9223372036854775808"), 413),
        wire("a length of 5,000 digits", _post("Content-Length: " + "9" * 5000), 413),
        wire("leading zeros", _post(f"Content-Length: 0000{len(GOOD)}"), FINE),
        wire("length 0", _post("Content-Length: 0", data=b""), BAD),
        wire("one byte too few", _post(f"Content-Length: {len(GOOD) - 1}") + b"\r\n", BAD, BAD),
        wire("body on a GET", request("GET", "/health", b"hello"), FINE),
        wire("body on a HEAD", request("HEAD", "/health", b"hello"), FINE, head=True),
    ]


def _chunks() -> list[Case]:
    def chunked(data: bytes) -> bytes:
        return _post("Transfer-Encoding: chunked", data=data)

    size = b"%x\r\n" % len(GOOD)
    whole = size + GOOD + b"\r\n0\r\n"
    found = [
        wire(f"chunk size {text[:20]!a}", chunked(text + b"\r\n" + GOOD + b"\r\n0\r\n\r\n"), BAD)
        for text in (b"", b"-1", b"+5", b"0x5", b"5.", b"g", b"\xff", b"\0", b";", b"3 5", b"1_0")
    ]
    return [
        *found,
        wire("chunks", chunked(whole + b"\r\n"), FINE),
        wire("chunks of a byte",
             chunked(b"".join(b"1\r\n%c\r\n" % c for c in GOOD) + b"0\r\n\r\n"), FINE),
        wire("chunk with an extension",
             chunked(size[:-2] + b';a="\xff\r"\r\n' + GOOD + b"\r\n0\r\n\r\n"), FINE),
        wire("chunk with bare newlines", chunked(whole.replace(b"\r\n", b"\n") + b"\n"), BAD),
        wire("chunk longer than it says", chunked(b"5\r\n" + GOOD + b"\r\n0\r\n\r\n"), BAD),
        wire("chunk of 2**64", chunked(b"10000000000000000\r\n" + GOOD), 413),
        wire("chunk size of 2,000 digits", chunked(b"0" * 2000 + b"5\r\n" + GOOD), BAD),
        wire("33 MB in chunks", chunked((b"100000\r\n" + b" " * MEBI + b"\r\n") * 33), 413),
        wire("trailers", chunked(whole + b"a: b\r\n\r\n"), FINE),
        wire("1,000 trailers", chunked(whole + b"a: b\r\n" * 1000 + b"\r\n"), BAD),
        wire("no chunk at all", chunked(b"0\r\n\r\n"), BAD),
    ]  # fmt: skip


def _smuggling() -> list[Case]:
    """Where two parsers could see two different requests: the second must never be answered."""
    second = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    found = []
    for encodings in (
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Transfer-Encoding: identity"],
        ["Content-Length: 5", "Content-Length: 0"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: chunked;q=1"],
        ["Transfer-Encoding: \x0bchunked\0"],
        ["Transfer-Encoding:", " chunked", "Content-Length: 5"],
        ["Transfer-Encoding : chunked", "Content-Length: 5"],
        [" Transfer-Encoding: chunked", "Content-Length: 5"],
        ["x: y\r\r", "Content-Length: 5"],
        ["x: y\rContent-Length: 5"],
        ["x: y\rTransfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5\r", "Transfer-Encoding: chunked"],
    ):
        shown = ", ".join(encodings)
        found.append(wire(f"{shown!a}", _post(*encodings, data=b"0\r\n\r\n" + second), BAD))
    old = f"POST {COMPLETIONS} HTTP/1.0"
    return [
        *found,
        wire("chunks under HTTP/1.0",
             _post("Transfer-Encoding: chunked", data=b"0\r\n\r\n" + second, line=old), BAD),
        wire("a request as an unread body", request("GET", "/health", second), FINE),
        wire("a request as a refused body", request("POST", "/nowhere", second), 404),
        wire("a request after HTTP/1.0", request("GET", "/health", version="1.0") + second, FINE),
        wire("a request after close", request("GET", "/health", None, "Connection: close") + second,
             FINE),
    ]  # fmt: skip


def _pipelines() -> list[Case]:
    get, good = request("GET", "/health"), request("POST", COMPLETIONS, GOOD)
    bad = request("POST", CHAT, b"{}")
    return [
        wire("50 in one write", get * 50, *[FINE] * 50),
        wire("10 completions in one write", good * 10, *[FINE] * 10),
        wire("good and bad in turn", (good + bad + get) * 5, *[FINE, BAD, FINE] * 5),
        wire("nothing after a broken one", good + b"GET\r\n\r\n" + get, FINE, BAD),
        wire("100 completions, then gone", good * 100, leave="close"),
        wire("100 completions, then reset", good * 100, leave="reset"),
        wire("1,000 bad ones, then gone", bad * 1000, leave="close"),
    ]


def _halves() -> list[Case]:
    whole = request("POST", COMPLETIONS, GOOD)
    stream = request("POST", COMPLETIONS, STREAM)
    cuts = [1, 4, 20, whole.index(b"\r\n\r\n") + 2, whole.index(b"\r\n\r\n") + 4, len(whole) - 1]
    found = [
        wire(f"{cut} bytes, then {leave}", whole[:cut], leave=leave)
        for cut in cuts
        for leave in ("close", "reset", "shutdown")
    ]
    for leave in ("close", "reset", "shutdown"):
        found.append(wire(f"asked, then {leave}", whole, leave=leave))
        found.append(wire(f"asked for a stream, then {leave}", stream, leave=leave))
    return [
        *found,
        wire("nothing at all", b"", leave="close"),
        wire("nothing at all, reset", b"", leave="reset"),
        wire("half a chunk", _post("Transfer-Encoding: chunked", data=b"fff\r\n{"), leave="close"),
        wire("waits for a continue and leaves",
             _post("Expect: 100-continue", "Content-Length: 5", data=b""), leave="close"),
    ]  # fmt: skip
