"""Grammars that keep the compiler busy, sent to the whole front end: others do not notice."""

import itertools
import os
import signal
import socket
import struct
import threading
import time

import pytest

from server.grammar import process as grammar_process
from server.grammar.queue import MAX_GRAMMARS_EACH
from tests.support.front_end import FrontEnd
from tests.support.raw_http import request

GUARD_S = 120.0  # against a hang
HOSTILE = 30
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset
KEYS = ("first", "second")
JSON = {"response_format": {"type": "json_object"}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def running(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY=",".join(KEYS))
    one.prompts.warm()
    yield one
    one.end()
    one.prompts._grammars.close()


@pytest.fixture
def front_end(running):
    yield running
    wait_until(lambda: waiting(running) == (0, 0))


numbers = itertools.count()


def hostile(n: int | None = None) -> dict:
    """It takes more than the compiler may: for each n another one, and otherwise a new one."""
    n = next(numbers) if n is None else n
    terms = [f"/(.|\\n)*{chr(97 + i)}(.|\\n){{{i + 10}}}{chr(98 + i)}(.|\\n)*/" for i in range(16)]
    return {"guided_grammar": "start: T\nT: " + " & ".join([*terms, f"/(.|\\n)*x{n}(.|\\n)*/"])}


def chat(fields: dict) -> dict:
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200} | fields


def text(fields: dict) -> dict:
    return {"prompt": "hi", "max_tokens": 200} | fields


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


def send(front_end: FrontEnd, path: str, body: dict, key: str) -> socket.socket:
    """A request that nobody waits for the answer of, yet."""
    one = socket.create_connection(("127.0.0.1", front_end.server.port))
    one.sendall(request("POST", path, body, bearer(key)))
    return one


def leave(one: socket.socket, rudely: bool) -> None:
    if rudely:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    one.close()


def waiting(front_end: FrontEnd) -> tuple[int, int]:
    return front_end.prompts._grammars._queue.waiting()


def wait_until(true) -> None:
    deadline = time.monotonic() + GUARD_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connections(front_end: FrontEnd) -> int:
    return len(front_end.server.places._taken)


@pytest.mark.parametrize(("path", "wrap"), [(CHAT, chat), (TEXT, text)])
def test_clients_that_left_hold_no_thread_and_nothing_is_compiled_for_them(front_end, path, wrap):
    """Thirty had a plain json_object wait for more than 200 s; a thousand held every place."""
    refused = front_end.prompts._grammars._cache._refused
    before = len(refused)
    clients = [send(front_end, path, wrap(hostile()), KEYS[0]) for _ in range(HOSTILE)]
    wait_until(lambda: waiting(front_end) == (MAX_GRAMMARS_EACH, MAX_GRAMMARS_EACH))
    for number, client in enumerate(clients):
        leave(client, rudely=bool(number % 2))
    wait_until(lambda: connections(front_end) == 0)
    wait_until(lambda: waiting(front_end) == (0, 0))
    assert len(refused) - before < MAX_GRAMMARS_EACH


def test_known_grammars_and_other_clients_go_first(front_end):
    clients = [send(front_end, CHAT, chat(hostile()), KEYS[0]) for _ in range(HOSTILE)]
    wait_until(lambda: waiting(front_end) == (MAX_GRAMMARS_EACH, MAX_GRAMMARS_EACH))
    # Even for the one who sends them: it waits for no compilation.
    for key in KEYS:
        answer = front_end.ask("POST", CHAT, chat(JSON), bearer(key))
        assert answer.status == 200
    new = {"guided_regex": "(honest|new){1,3}"}
    assert front_end.ask("POST", CHAT, chat(new), bearer(KEYS[1])).status == 200
    assert front_end.ask("GET", "/health").status == 200
    # All of that while they still wait for their turns.
    assert waiting(front_end)[0] > 1
    for client in clients:
        client.close()


def test_beyond_the_most_that_wait_it_is_429_with_retry_after(front_end):
    clients = [send(front_end, CHAT, chat(hostile()), KEYS[0]) for _ in range(MAX_GRAMMARS_EACH)]
    wait_until(lambda: waiting(front_end)[0] == MAX_GRAMMARS_EACH)
    answer = front_end.ask("POST", CHAT, chat(hostile()), bearer(KEYS[0]))
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json["error"]["code"] == "rate_limit_exceeded"
    for client in clients:
        client.close()


def test_one_that_was_too_slow_is_refused_at_once_the_next_time(front_end):
    number = next(numbers)
    first = front_end.ask("POST", CHAT, chat(hostile(number)), bearer(KEYS[0]))
    assert first.status == 400
    assert "takes longer than" in first.json["error"]["message"]
    queue = front_end.prompts._grammars._queue
    before = queue._count
    second = front_end.ask("POST", CHAT, chat(hostile(number)), bearer(KEYS[1]))
    assert (second.status, second.json) == (400, first.json)
    assert queue._count == before


def test_time_spent_waiting_is_the_requests_own(demo_model_dir):
    one = FrontEnd(demo_model_dir, REQ_TIMEOUT="0.3")
    try:
        answer = one.ask("POST", CHAT, chat(hostile()))
        assert answer.status == 504
        assert answer.json["error"]["code"] == "request_timeout"
    finally:
        one.end()
        one.prompts._grammars.close()


def test_a_stopped_child_is_replaced_and_the_request_answered(front_end, monkeypatch):
    """Structured output was blocked for ever, for every client."""
    monkeypatch.setattr(grammar_process, "PING_WALL_S", 0.5)
    child = front_end.prompts._grammars._tools[1]._child
    os.kill(child.pid, signal.SIGSTOP)
    new = {"guided_regex": "(honest|newer){1,3}"}
    known = front_end.ask("POST", CHAT, chat(JSON), bearer(KEYS[0]))
    assert known.status == 200
    assert front_end.ask("POST", CHAT, chat(new), bearer(KEYS[1])).status == 200
    assert child.returncode is not None


def test_a_child_stopped_at_work_is_503_with_retry_after(front_end, monkeypatch):
    monkeypatch.setattr(grammar_process, "ANSWER_WALL_S", 5.0)
    checker = front_end.prompts._grammars._tools[1]
    child, ask_child, begun = checker._child, checker._ask, threading.Event()
    answers = []

    def watched(child, question: bytes, seconds: float):
        if b"grammar" in question:  # before, it is asked whether it is there, and replaced
            begun.set()
        return ask_child(child, question, seconds)

    def ask() -> None:
        answers.append(front_end.ask("POST", CHAT, chat(hostile()), bearer(KEYS[0])))

    monkeypatch.setattr(checker, "_ask", watched)
    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(GUARD_S)
    os.killpg(child.pid, signal.SIGSTOP)
    thread.join(GUARD_S)
    assert answers[0].status == 503
    assert int(answers[0].headers["retry-after"]) >= 1
    new = {"guided_regex": "(another|new){1,3}"}
    assert front_end.ask("POST", CHAT, chat(new), bearer(KEYS[0])).status == 200
