"""How far a prompt is, for those who ask: place in the queue, tokens, seconds to go."""

import json
import threading
from collections.abc import Iterator

import anthropic
import openai
import pytest

from server.api import responder
from server.protocol.events import Event, Prefilled
from server.protocol.requests import Common
from server.scheduler.queue import Line, Ticket
from server.text import following
from tests.support.front_end import FrontEnd
from tests.support.raw_http import RawClient, request

ASKED = {"messages": [{"role": "user", "content": "Where?"}], "stream": True}
PROMPT = {"prompt": "Where is it that the road ends?", "stream": True}


class Held(FrontEnd):
    """Its engine computes one token of the prompt at a time, each when the test says so."""

    def __init__(self, model_dir) -> None:
        super().__init__(model_dir)
        self.steps = threading.Semaphore(0)
        self.engine.script = self._held

    def _held(self, ticket: Ticket) -> Iterator[Event]:
        ticket.started, ticket.cached = ticket.accepted + 0.001, 2
        total = len(ticket.prompt)
        for done in range(3, total + 1):
            while not self.steps.acquire(timeout=0.01):
                yield Prefilled(done - 1, total)  # a turn of the engine that brought nothing new
            yield Prefilled(done, total)
        yield from self.speaker(ticket)


@pytest.fixture
def front_end(demo_model_dir, monkeypatch):
    monkeypatch.setattr(responder, "PROGRESS_S", 0.0)
    monkeypatch.setattr(following, "POLL_S", 0.01)
    one = Held(demo_model_dir)
    yield one
    one.end()


def chunks(client) -> Iterator[dict]:
    assert client.read_head().status == 200
    while event := client.read_chunk().decode():
        data = event.partition("data: ")[2].strip()
        if data in ("", "[DONE]"):
            return
        yield json.loads(data)


def test_a_stream_tells_how_far_its_prompt_is(front_end):
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", "/v1/chat/completions", ASKED | {"return_progress": True}))
        told, text = [], ""
        for chunk in chunks(client):
            if "prompt_progress" in chunk:
                assert not text, "only before the first token"
                assert chunk["choices"][0]["delta"] == {}
                told.append(chunk["prompt_progress"])
                front_end.steps.release()
            elif chunk["choices"] and chunk["choices"][0]["delta"].get("role"):
                assert not told, "the role comes first"
            elif chunk["choices"]:
                text += chunk["choices"][0]["delta"].get("content", "")
    assert text
    begun = [one for one in told if one["place"] == 0]
    assert {one["cache"] for one in begun} == {2}
    done = [one["processed"] for one in begun]
    assert done == sorted(set(done)), "each is told once"
    assert done[-1] <= begun[-1]["total"]
    assert any(one["remaining_ms"] is not None for one in begun)
    assert all(one["time_ms"] >= 0 for one in told)


def test_a_completion_s_stream_tells_it_too_and_without_a_choice(front_end):
    """A choice would be taken for a first token."""
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", "/v1/completions", PROMPT | {"return_progress": True}))
        told, text = [], ""
        for chunk in chunks(client):
            if "prompt_progress" in chunk:
                assert not text and chunk["choices"] == []
                told.append(chunk["prompt_progress"])
                front_end.steps.release()
            else:
                text += chunk["choices"][0]["text"]
    assert text and told[-1]["place"] == 0
    done = [one["processed"] for one in told if one["place"] == 0]
    assert done == sorted(set(done)) and len(done) > 1


OWN_EVENTS = {
    "/v1/responses": {"input": "Where?", "stream": True},
    "/v1/messages": ASKED | {"max_tokens": 5},
}


@pytest.mark.parametrize("path", OWN_EVENTS)
def test_responses_and_messages_have_an_event_of_their_own_for_it(front_end, path):
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", path, OWN_EVENTS[path] | {"return_progress": True}))
        told, types, numbers = [], [], []
        for event in chunks(client):
            types.append(event["type"])
            numbers.append(event.get("sequence_number"))
            if event["type"] == "prompt_progress":
                told.append(event["prompt_progress"])
                front_end.steps.release()
    assert types[0] in ("response.created", "message_start"), "SDKs take no other first event"
    assert types[-1] in ("response.completed", "response.incomplete", "message_stop")
    last = len(types) - 1 - types[::-1].index("prompt_progress")
    assert not [type for type in types[:last] if "delta" in type], "only before the first token"
    assert numbers in (list(range(len(numbers))), [None] * len(numbers))
    done = [one["processed"] for one in told if one["place"] == 0]
    assert done == sorted(set(done)) and len(done) > 1


def test_openai_s_sdk_passes_the_event_on_and_gathers_the_answer(front_end):
    sdk = openai.OpenAI(base_url=front_end.url, api_key="x", max_retries=0)
    told = 0
    with (
        sdk,
        sdk.responses.stream(
            model="demo", input="Where?", extra_body={"return_progress": True}
        ) as events,
    ):
        for event in events:
            told += event.type == "prompt_progress"
            front_end.steps.release()
        assert events.get_final_response().output_text
    assert told


def test_anthropic_s_sdk_passes_the_event_on_and_gathers_the_answer(front_end):
    sdk = anthropic.Anthropic(base_url=front_end.root, api_key="x", max_retries=0)
    with sdk, sdk.messages.stream(
        model="demo", max_tokens=5, messages=ASKED["messages"],
        extra_body={"return_progress": True},
    ) as events:  # fmt: skip
        heard = []
        for event in events:
            heard.append(event.type)
            front_end.steps.release(100)
        assert events.get_final_message().content[0].text
    assert heard[0] == "message_start" and "prompt_progress" in heard


@pytest.mark.parametrize("asked", [{}, {"return_progress": False}, {"return_progress": None}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", *OWN_EVENTS])
def test_nobody_who_did_not_ask_is_told(front_end, path, asked):
    front_end.steps.release(100)
    with RawClient(front_end.server.port) as client:
        client.send(request("POST", path, OWN_EVENTS.get(path, ASKED) | asked))
        assert not [event for event in chunks(client) if "prompt_progress" in event]


def test_a_whole_answer_has_no_progress(front_end):
    for _ in range(100):
        front_end.steps.release()
    with RawClient(front_end.server.port) as client:
        body = ASKED | {"stream": False, "return_progress": True}
        answer = client.ask(request("POST", "/v1/chat/completions", body))
    assert answer.status == 200 and b"prompt_progress" not in answer.body


def test_a_value_that_is_no_flag_is_refused(front_end):
    with RawClient(front_end.server.port) as client:
        answer = client.ask(
            request("POST", "/v1/chat/completions", ASKED | {"return_progress": "yes"})
        )
    assert answer.status == 400 and b"return_progress" in answer.body


def test_a_place_counts_those_that_wait_before():
    line = Line(1, 4)
    tickets = [Ticket([1], 1, Common()) for _ in range(3)]
    line.admit(tickets)
    assert [line.place(ticket) for ticket in tickets] == [1, 2, 3]
    tickets[0].started = 1.0
    assert [line.place(ticket) for ticket in tickets] == [0, 1, 2]
    line.release(tickets[1])
    assert line.place(tickets[2]) == 1
