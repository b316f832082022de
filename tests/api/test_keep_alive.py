"""Streams that have nothing to say: what they say instead, and that real clients take it."""

import json
import threading
from collections.abc import Iterator

import anthropic
import openai
import pytest

from server.api import responder
from server.protocol.errors import engine_failed
from server.protocol.events import Event, Prefilled
from server.scheduler.queue import Ticket
from server.text import following
from tests.support.front_end import MODEL, TEXT, FrontEnd
from tests.support.raw_http import RawClient, request

USER = [{"role": "user", "content": "Where?"}]
# Path, body, the types of the events that open the stream, and that of one which adds nothing.
APIS = {
    "chat": ("/v1/chat/completions", {"messages": USER}, ["role"], "empty"),
    "responses": (
        "/v1/responses",
        {"input": "Where?"},
        ["response.created", "response.in_progress"],
        "response.in_progress",
    ),
    "messages": (
        "/v1/messages",
        {"messages": USER, "max_tokens": 99},
        ["message_start", "ping"],
        "message_delta",
    ),
    "completions": ("/v1/completions", {"prompt": "Where?"}, [], "comment"),
}


class Held(FrontEnd):
    """Its engine says a token, then nothing until `go_on`."""

    def __init__(self, model_dir) -> None:
        super().__init__(model_dir)
        self.go_on = threading.Event()
        self.engine.script = self._held

    def _held(self, ticket: Ticket) -> Iterator[Event]:
        said = self.speaker(ticket)
        yield next(said)
        while not self.go_on.is_set():
            yield Prefilled(1, 1)
        yield from said


@pytest.fixture
def front_end(demo_model_dir, monkeypatch):
    monkeypatch.setattr(responder, "PING_S", 0.05)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    one = Held(demo_model_dir)
    one.engine.go.clear()
    yield one
    one.end()


def kind_of(chunk: str) -> str:
    """The type of an event; for those of chat, what it holds."""
    if chunk.startswith(":"):
        return "comment"
    data = chunk.partition("data: ")[2].strip()
    if data == "[DONE]":
        return "done"
    told = json.loads(data)
    if "type" in told:
        return told["type"]
    choice = told["choices"][0]
    if choice["finish_reason"] is not None:
        return "finish"
    delta = choice.get("delta", choice)
    return (
        "role"
        if "role" in delta
        else "text"
        if delta.get("content", delta.get("text"))
        else "empty"
    )


def is_text(kind: str) -> bool:
    return kind in ("text", "content_block_delta", "response.output_text.delta")


@pytest.mark.parametrize("api", APIS)
def test_a_stream_has_events_while_it_waits_and_in_the_midst_of_an_answer(front_end, api):
    path, body, opening, sign = APIS[api]
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", path, body | {"stream": True}))
        assert client.read_head().status == 200
        told = [kind_of(client.read_chunk().decode()) for _ in range(len(opening) + 3)]
        assert told == [*opening, sign, sign, sign]
        front_end.engine.go.set()
        while not is_text(kind_of(client.read_chunk().decode())):
            pass
        assert [kind_of(client.read_chunk().decode()) for _ in range(3)] == [sign] * 3
        front_end.go_on.set()
        rest = []
        while chunk := client.read_chunk():
            rest.append(kind_of(chunk.decode()))
        assert sum(map(is_text, rest)) > 1 and rest[-1] in (
            "done", "response.completed", "message_stop",
        )  # fmt: skip
        assert not set(opening) - {sign} & set(rest)  # it opens once


def test_events_of_a_stream_that_waited_are_numbered_and_do_not_repeat_the_answer(front_end):
    path, body, _, _ = APIS["responses"]
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", path, body | {"stream": True}))
        client.read_head()
        front_end.engine.go.set()
        events, waits = [], 0
        while chunk := client.read_chunk():
            events.append(json.loads(chunk.decode().partition("data: ")[2]))
            seen = any(event["type"] == "response.output_text.delta" for event in events)
            waits += seen and events[-1]["type"] == "response.in_progress"
            if waits == 2:
                front_end.go_on.set()
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    said = [e["response"] for e in events if e["type"] == "response.in_progress"]
    assert all(one["status"] == "in_progress" and one["output"] == [] for one in said)
    assert len({one["id"] for one in (*said, events[-1]["response"])}) == 1


def heard(front_end, stream, is_wait) -> int:
    """Reads the stream; how many of its events add nothing. The engine goes on after three."""
    waits = 0
    for event in stream:
        waits += is_wait(event)
        if waits == 3:
            front_end.go_on.set()
            front_end.engine.go.set()
    return waits


def test_openai_takes_a_chat_that_waits(front_end):
    client = openai.OpenAI(base_url=front_end.url, api_key="x", max_retries=0)
    with client.chat.completions.stream(model=MODEL, messages=USER) as stream:
        empty = lambda e: e.type == "chunk" and not e.chunk.choices[0].delta.to_dict()  # noqa: E731
        assert heard(front_end, stream, empty) >= 3
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_openai_takes_a_response_that_waits(front_end):
    client = openai.OpenAI(base_url=front_end.url, api_key="x", max_retries=0)
    with client.responses.stream(model=MODEL, input=USER) as stream:
        assert heard(front_end, stream, lambda e: e.type == "response.in_progress") >= 3
        assert stream.get_final_response().output_text == TEXT


def test_anthropic_takes_a_message_that_waits(front_end):
    client = anthropic.Anthropic(base_url=front_end.root, api_key="x", max_retries=0)
    with client.messages.stream(model=MODEL, messages=USER, max_tokens=99) as stream:
        unended = lambda e: e.type == "message_delta" and e.delta.stop_reason is None  # noqa: E731
        assert heard(front_end, stream, unended) >= 3
        answer = stream.get_final_message()
    assert answer.stop_reason == "end_turn" and answer.content[0].text == TEXT
    assert answer.usage.output_tokens > 1


def test_langchain_takes_a_chat_that_waits(front_end):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=front_end.url, api_key="x", model=MODEL, max_retries=0)
    said = []

    def is_empty(chunk) -> bool:
        said.append(chunk.text)
        return not chunk.text

    assert heard(front_end, model.stream("Where?"), is_empty) >= 3
    assert "".join(said) == TEXT


def test_a_failure_after_waiting_is_the_streams_last_event(front_end):
    path, body, opening, sign = APIS["responses"]
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", path, body | {"stream": True}))
        client.read_head()
        told = [kind_of(client.read_chunk().decode()) for _ in range(3)]
        assert told == [*opening, sign]
        front_end.line.fail_all(engine_failed("it is over"))
        while chunk := client.read_chunk():
            told.append(kind_of(chunk.decode()))
    assert told[-1] == "response.failed" and told.count("response.created") == 1
