"""A front end that does not serve, failures on the way, and clients that leave."""

import contextlib
import dataclasses
import itertools
import json
import socket
import threading
import time

import openai
import pytest

from server.api import responder
from server.protocol.errors import engine_failed, unavailable
from server.protocol.events import Failed, Prefilled, Token
from server.text import following
from server.transport.http_server import Exchange
from tests.support.api_service import (
    MODEL,
    Service,
    chat,
)
from tests.support.raw_http import RawClient, request


def test_while_loading_only_small_questions_are_answered(tmp_path):
    service = Service(tmp_path)
    try:
        service.status.phases.stage("loading: 1.0 of 4.0 GB")
        health = service.ask("GET", "/health")
        assert (health.status, health.headers["retry-after"]) == (503, "5")
        assert (health.json["status"], health.json["detail"]) == (
            "loading", "loading: 1.0 of 4.0 GB",
        )  # fmt: skip
        card = service.client().models.list().data[0]
        assert card.id == MODEL and card.max_model_len is None
        for path in ("/v1/chat/completions", "/v1/completions"):
            answer = service.ask("POST", path, {"prompt": "x"})
            assert answer.status == 503 and answer.headers["retry-after"]
            assert answer.error["code"] == "loading" and "1.0 of 4.0" in answer.error["message"]
        service.finish_loading()
        assert service.ask("GET", "/health").status == 200
        assert chat(service.client()).choices[0].message.content == "hello"
    finally:
        service.end()


@pytest.mark.parametrize(("loading_s", "least", "most"), ((0, 1, 29), (20, 20, 30), (500, 30, 30)))
def test_who_comes_while_it_loads_is_told_to_wait_as_long_again(tmp_path, loading_s, least, most):
    """Agents try again a set number of times (codex 30, Claude Code 10): with 5 s each they had
    given up before a model of hundreds of gigabytes was there."""
    service = Service(tmp_path)
    try:
        start = service.status.start
        service.status.start = dataclasses.replace(start, since=time.monotonic() - loading_s)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
            answer = service.ask("POST", path, {})
            assert answer.status == 503
            assert least <= int(answer.headers["retry-after"]) <= most
    finally:
        service.end()


def test_while_draining_newcomers_are_503_and_the_others_finish(start):
    service = start()
    service.engine.go.clear()
    with service.open("/v1/completions", {"prompt": "hello"}) as early:
        service.wait_for(lambda: service.line.held() == 1)
        service.status.phases.drain()
        service.line.close(unavailable("The server is draining.", "draining"))
        assert service.ask("GET", "/health").json["status"] == "draining"
        with pytest.raises(openai.InternalServerError) as caught:
            chat(service.client())
        assert (caught.value.status_code, caught.value.code) == (503, "draining")
        assert caught.value.response.headers["retry-after"]
        service.engine.go.set()
        assert early.read().json["choices"][0]["text"] == "hello"


def test_what_is_held_at_the_end_is_told(start):
    service = start(MAX_BATCH="1", QUEUE_MAX="4")
    service.engine.script = lambda ticket: iter([Token(ord("a"), None)])  # then silence
    body = {"prompt": "hello"}
    with service.open("/v1/completions", body | {"stream": True}) as streaming:
        assert streaming.read_head().status == 200
        assert b'"text":"a"' in streaming.read_chunk()
        waiting = service.open("/v1/completions", body)
        service.wait_for(lambda: service.line.held() == 2)
        service.line.fail_all(unavailable("The server is restarting.", "shutting_down"))
        with waiting:
            answer = waiting.read()
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert answer.headers["retry-after"]
        assert b'{"error":{"message":"The server is restarting."' in streaming.read_chunk()
        assert streaming.read_chunk() == b""
        assert streaming.rest() == b""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_request_counts_as_answered_only_when_its_answer_is_sent(
    start, monkeypatch, stream, fails
):
    """The process ends when nothing is unanswered; an answer on its way was cut."""
    service = start()
    if fails:
        service.engine.script = lambda ticket: iter([Failed(engine_failed("Sampling failed"))])
    seen = []
    for name in ("send_json", "send_event", "end_stream"):
        send = getattr(Exchange, name)

        def spy(exchange, *args, send=send, **fields):
            send(exchange, *args, **fields)
            seen.append(service.line.unanswered())

        monkeypatch.setattr(Exchange, name, spy)
    answer = service.ask("POST", "/v1/completions", {"prompt": "hello", "stream": stream})
    assert answer.status == (500 if fails else 200)
    service.wait_for(lambda: service.line.unanswered() == 0)
    assert seen and set(seen) == {1}


def test_too_slow_is_504(start):
    service = start(REQ_TIMEOUT="0.3")
    service.engine.go.clear()
    with pytest.raises(openai.InternalServerError) as caught:
        chat(service.client(max_retries=2))
    assert (caught.value.status_code, caught.value.code) == (504, "request_timeout")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(service.engine.seen) == 1  # the client did as it was told
    service.wait_for(lambda: service.line.held() == 0)


def test_all_of_a_request_has_a_limit_where_one_is_set(start):
    """It goes on all the time, so that the other limit never strikes."""
    service = start(REQ_TOTAL_TIMEOUT="0.3")
    service.engine.script = lambda ticket: itertools.repeat(Prefilled(1, 10**6))
    with pytest.raises(openai.InternalServerError, match="REQ_TOTAL_TIMEOUT") as caught:
        chat(service.client())
    assert (caught.value.status_code, caught.value.code) == (504, "request_timeout")
    service.wait_for(lambda: service.line.held() == 0)


@pytest.mark.parametrize("failure", ["timeout", "engine"])
def test_a_stream_that_fails_ends_with_an_error_event(start, failure):
    service = start(REQ_TIMEOUT="0.3" if failure == "timeout" else "60")
    events = [Token(ord("a"), None)]
    if failure == "engine":
        events.append(Failed(engine_failed("Sampling failed: a bad row")))
    service.engine.script = lambda ticket: iter(events)
    stream = chat(service.client(), stream=True)
    got = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            got.append(chunk.choices[0].delta.content)
    assert "".join(got) == "a"
    assert caught.value.code == ("request_timeout" if failure == "timeout" else "engine_error")
    service.wait_for(lambda: service.line.held() == 0)
    with service.open("/v1/completions", {"prompt": "x", "stream": True}) as client:
        assert client.read_head().status == 200
        chunks = []
        while chunk := client.read_chunk():
            chunks.append(chunk)
        assert chunks[-1].startswith(b'data: {"error":') and b"[DONE]" not in b"".join(chunks)
        error = json.loads(chunks[-1].removeprefix(b"data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["param"]) == ("server_error", None)
        assert client.rest() == b""


def test_a_failure_of_the_engine_before_any_token_is_500_even_for_a_stream(start):
    service = start()
    service.engine.script = lambda ticket: iter([Failed(engine_failed("Sampling failed"))])
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            chat(service.client(), stream=stream)
        assert (caught.value.status_code, caught.value.code) == (500, "engine_error")
        assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_bug_before_the_queue_is_500_without_details(service, client):
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client, "bug")
    assert caught.value.status_code == 500 and "secret" not in str(caught.value)
    assert chat(client).choices[0].message.content == "hello"


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_in_the_detokenizer_fails_that_request_alone(service, client, stream):
    with pytest.raises(openai.APIError) as caught:
        list(chat(client, "ab\x18cd", stream=stream))
    assert caught.value.code == "engine_error"
    service.wait_for(lambda: service.line.held() == 0)
    assert chat(client).choices[0].message.content == "hello"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_slot(start, monkeypatch, phase, stream):
    monkeypatch.setattr(following, "POLL_S", 0.02)
    service = start(MAX_BATCH="1", QUEUE_MAX="3")
    if phase == "decode":
        service.engine.script = lambda ticket: iter(lambda: Token(ord("a"), None), None)
    else:
        service.engine.go.clear()
    with contextlib.ExitStack() as stack:
        if phase == "queued":
            stack.enter_context(service.open("/v1/completions", {"prompt": "first"}))
            service.wait_for(lambda: service.status.load.running == 1)
        leaving = service.open("/v1/completions", {"prompt": "hello", "stream": stream})
        before = 1 if phase == "queued" else 0
        service.wait_for(lambda: service.line.held() == before + 1)
        if phase == "decode" and stream:
            leaving.read_head()
            leaving.read_chunk()
        leaving.close()
        service.wait_for(lambda: service.line.held() == before)
        assert len(service.engine.dropped) == 1
    service.wait_for(lambda: service.line.held() == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behind", [b"\r\n", b"POST /v1/c", request("GET", "/health") * 3])
def test_clients_that_leave_after_one_byte_too_many_free_their_places(
    start, monkeypatch, behind, stream
):
    """Eight of them held all places to their last token."""
    monkeypatch.setattr(following, "POLL_S", 0.02)
    service = start()
    service.engine.script = lambda ticket: iter(lambda: Token(ord("a"), None), None)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            leaving = service.open("/v1/completions", {"prompt": "x", "stream": stream})
            stack.callback(leaving.close)
            leaving.send(behind)
        service.wait_for(lambda: service.line.held() == 8)
    service.wait_for(lambda: service.line.held() == 0)
    assert len(service.engine.dropped) == 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_half_closed_client_frees_its_place_and_is_told_why(start, monkeypatch, stream):
    monkeypatch.setattr(following, "POLL_S", 0.02)
    service = start()
    service.engine.script = lambda ticket: iter(lambda: Token(ord("a"), None), None)
    with service.open("/v1/completions", {"prompt": "x", "stream": stream}) as client:
        service.wait_for(lambda: service.status.load.running == 1)
        client.socket.shutdown(socket.SHUT_WR)
        answer = client.read()
        last = answer.chunks[-1] if stream else answer.body
        assert b"client_closed_request" in last
    service.wait_for(lambda: service.line.held() == 0)
    assert len(service.engine.dropped) == 1


@pytest.mark.parametrize("waits", ["for its turn", "for its own body"])
def test_a_half_closed_client_is_told_why_before_it_has_a_place_in_the_line(service, waits):
    """The connection was closed without a word."""
    lane = service.app._with_model._lanes._lanes[0][1]
    with contextlib.ExitStack() as stack:
        if waits == "for its turn":
            while lane._turns.acquire(blocking=False):
                stack.callback(lane._turns.release)
        with RawClient(service.server.port) as client:
            body = request("POST", "/v1/completions", {"prompt": "x"})
            client.send(body if waits == "for its turn" else body[:-1])
            client.socket.shutdown(socket.SHUT_WR)
            answer = client.read()
            assert (answer.status, answer.error["code"]) == (400, "client_closed_request")
    service.wait_for(lambda: lane.inside == 0)
    assert service.engine.seen == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["n", "prompts"])
def test_a_client_that_leaves_cancels_all_its_choices(start, monkeypatch, kind, stream):
    """Two run, two wait."""
    monkeypatch.setattr(following, "POLL_S", 0.02)
    service = start(MAX_BATCH="2", QUEUE_MAX="3")
    service.engine.script = lambda ticket: iter(lambda: Token(ord("a"), None), None)
    several = {"prompt": "x", "n": 4} if kind == "n" else {"prompt": ["x", "y", "z", "w"]}
    leaving = service.open("/v1/completions", several | {"stream": stream})
    service.wait_for(lambda: service.status.load.running == 2 and service.line.held() == 4)
    leaving.close()
    service.wait_for(lambda: service.line.held() == 0)
    assert len(service.engine.dropped) == 4
    service.wait_for(lambda: service.line.unanswered() == 0)


def test_an_answer_that_is_not_streamed_is_not_pinged(start, monkeypatch):
    monkeypatch.setattr(responder, "PING_S", 0.01)
    service = start()
    service.engine.go.clear()
    threading.Timer(0.3, service.engine.go.set).start()
    assert service.ask("POST", "/v1/completions", {"prompt": "hello"}).status == 200
