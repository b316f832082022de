"""What a soak's clients do beside honest requests, to bring a server down or to hold it up.

Each attack is a function of a Client (soak_load.py) and its connection. Those that must be refused
say with which status; of the others only that the server goes on, which the honest requests of all
other clients find out. Bounded in size and time: a soak is many of them, not a large one.
"""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.dev.soak_load import Client

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES, COUNT, TOKENIZE = "/v1/messages", "/v1/messages/count_tokens", "/tokenize"
WHOLE_MOST = 2**20  # bytes of an answer that is looked at
PATIENCE_S = 30.0  # for an answer on a bare socket
# What may be answered to a request that is fine but costly: it is done, or there is no room.
FINE_OR_FULL = (200, 429, 503)

# A beginning that many prompts share, so that the server keeps it, reuses it and gives it up.
SHARED = "You are the help desk of a railway. Answer in one sentence. " * 8


def leave_choices(client: "Client", connection: http.client.HTTPConnection) -> None:
    """Several choices of one prompt that begins as others do; gone while they are computed."""
    chance = client.chance
    ask = {
        "prompt": SHARED + "Question " * chance.randrange(1, 120), "n": chance.randrange(2, 4),
        "max_tokens": chance.randrange(1, 60), "stream": chance.random() < 0.5, "temperature": 0,
    }  # fmt: skip
    client.send(connection, COMPLETIONS, json.dumps(ask))
    time.sleep(chance.random() ** 2)


def take_choices(client: "Client", connection: http.client.HTTPConnection) -> None:
    """The same, waited for: greedy choices of one prompt are alike."""
    ask = {"prompt": SHARED + "When does it leave?", "n": 2, "max_tokens": 12, "temperature": 0}
    body = client.answered(connection, COMPLETIONS, ask)
    if body is not None and len({choice["text"] for choice in body["choices"]}) != 1:
        client.differs()


def leave_grammar(client: "Client", connection: http.client.HTTPConnection) -> None:
    """A grammar that nobody has had before, and that takes long to compile."""
    letters = "".join(client.chance.choices("abcdefghijklmnopqrstuvwxyz", k=12))
    wanted = "(" + "|".join(f"{letter}{{1,400}}[a-z]*" for letter in letters) + "){5,300}"
    field: dict = {"guided_regex": wanted}
    if client.chance.random() < 0.5:
        texts = [{"type": "string", "pattern": f"^({one}.{{1,300}}){{9}}$"} for one in letters]
        field = {"guided_json": {"type": "array", "items": {"anyOf": texts}, "minItems": 50}}
    client.send(connection, COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 5} | field))
    time.sleep(client.chance.random() * 0.3)


def take_grammar(client: "Client", connection: http.client.HTTPConnection) -> None:
    """An honest answer in JSON, beside those."""
    turn = {"role": "user", "content": "Name a colour, as JSON."}
    ask = {"messages": [turn], "max_tokens": 24, "response_format": {"type": "json_object"}}
    client.send(connection, CHAT, json.dumps(ask))
    expect(client, connection, FINE_OR_FULL)


def send_large_text(client: "Client", connection: http.client.HTTPConnection) -> None:
    """Megabytes to be tokenized. Half of the time nobody waits for it."""
    text = "lorem ipsum " * client.chance.choice((30_000, 100_000, 300_000))
    path = client.chance.choice((TOKENIZE, COUNT, MESSAGES, COMPLETIONS))
    turns = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    ask = {TOKENIZE: {"prompt": text}, COMPLETIONS: {"prompt": [text] * 4, "max_tokens": 1}}
    client.send(connection, path, json.dumps(ask.get(path, turns)))
    if client.chance.random() < 0.5:
        time.sleep(client.chance.random())
    else:
        expect(client, connection, (*FINE_OR_FULL, 400))


def send_values(client: "Client", connection: http.client.HTTPConnection) -> None:
    """A body of nothing but brackets."""
    client.send(connection, COMPLETIONS, '{"prompt": [' + "[[],[]]," * 600_000 + "[]]}")
    expect(client, connection, (400, 429))


def send_stops(client: "Client", connection: http.client.HTTPConnection) -> None:
    """More stop strings than there may be, or as many as there may be, for several choices."""
    many = client.chance.random() < 0.5
    stops = [chr(65 + i % 26) * (1000 if many else 60) + str(i) for i in range(64)]
    ask = {"prompt": "x", "n": 3, "stop": stops, "max_tokens": 4}
    client.send(connection, COMPLETIONS, json.dumps(ask))
    expect(client, connection, (400,) if many else FINE_OR_FULL)


def send_odd_limits(client: "Client", connection: http.client.HTTPConnection) -> None:
    """Limits as some clients write them."""
    limit = client.chance.choice((8.0, -1, None))
    ask = {"prompt": "x", "max_tokens": limit, "stream": limit != 8.0}
    client.send(connection, COMPLETIONS, "\ufeff" + json.dumps(ask))
    answer = connection.getresponse()
    check(client, answer, FINE_OR_FULL)
    answer.read(2000)  # and gone: it may be as long as the context


def send_from_a_page(client: "Client", connection: http.client.HTTPConnection) -> None:
    """A web page of another site, through the browser of somebody who can reach the server."""
    odd = client.chance.choice(
        ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"})
    )
    headers = client.headers | odd | {"Content-Type": "text/plain"}
    connection.request("POST", COMPLETIONS, b'{"prompt": "x", "max_tokens": 200}', headers)
    expect(client, connection, (403,))


def leave_behind_bytes(client: "Client", connection: http.client.HTTPConnection) -> None:
    """Gone, with something after the request that hides it."""
    rest = client.chance.choice(
        (b"\r\n", b"GET /he", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    )
    with bare(client, connection, {"prompt": SHARED, "max_tokens": 300}, rest):
        time.sleep(client.chance.random())


def close_half(client: "Client", connection: http.client.HTTPConnection) -> None:
    """Closes its sending side only; it is told that there will be no answer."""
    with bare(client, connection, {"prompt": SHARED, "max_tokens": 300}, b"") as sock:
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def send_escapes(client: "Client", connection: http.client.HTTPConnection) -> None:
    """What a terminal would obey, wherever it may be written."""
    host = f"localhost:{connection.port}".encode()
    with opened(connection) as sock:
        sock.sendall(
            b"GET /\x1b]0;owned\x07\x9b31m#\x7f\x1b[2J HTTP/1.1\r\nHost: " + host + b"\r\n"
            b"User-Agent: \x1b[31m\r\nX-Request-Id: \x1b[2J\r\nConnection: close\r\n\r\n"
        )
        while sock.recv(65536):
            pass


def say_nothing(client: "Client", connection: http.client.HTTPConnection) -> None:
    """A connection with nothing on it, or with a head that does not end."""
    with opened(connection) as sock:
        sock.sendall(
            client.chance.choice((b"", b"POST /v1/completions HT", b"GET / HTTP/1.1\r\nA: b"))
        )
        time.sleep(client.chance.random() * 2)


# By name, with how often.
ATTACKS: dict[str, tuple[Callable, int]] = {
    "choices left": (leave_choices, 3),
    "choices": (take_choices, 2),
    "grammar left": (leave_grammar, 1),
    "grammar": (take_grammar, 2),
    "large text": (send_large_text, 1),
    "brackets": (send_values, 1),
    "stop strings": (send_stops, 1),
    "odd limits": (send_odd_limits, 1),
    "another site's page": (send_from_a_page, 1),
    "left behind bytes": (leave_behind_bytes, 1),
    "half closed": (close_half, 1),
    "escapes": (send_escapes, 1),
    "silence": (say_nothing, 1),
}


def expect(
    client: "Client", connection: http.client.HTTPConnection, statuses: tuple[int, ...]
) -> None:
    """Waits for an answer with one of these."""
    answer = connection.getresponse()
    check(client, answer, statuses)
    answer.read(WHOLE_MOST)


def check(client: "Client", answer: http.client.HTTPResponse, statuses: tuple[int, ...]) -> None:
    """Counts an answer that should not have come."""
    if answer.status not in statuses:
        client.wrong(f"status {answer.status}", answer.read(500).decode("utf-8", "replace"))


@contextlib.contextmanager
def opened(connection: http.client.HTTPConnection) -> Iterator[socket.socket]:
    """The connection's own socket; that the server closes it first is fine."""
    connection.connect()
    connection.sock.settimeout(PATIENCE_S)
    try:
        yield connection.sock
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()


@contextlib.contextmanager
def bare(
    client: "Client", connection: http.client.HTTPConnection, ask: dict, rest: bytes
) -> Iterator[socket.socket]:
    """A socket on which a completion was asked for, and more was sent behind it."""
    body = json.dumps(ask).encode()
    lines = [f"POST {COMPLETIONS} HTTP/1.1", f"Host: localhost:{connection.port}"]
    lines += [f"{name}: {value}" for name, value in client.headers.items()]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    with opened(connection) as sock:
        sock.sendall("\r\n".join(lines).encode() + body + rest)
        yield sock
