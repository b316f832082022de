"""The whole front end on port 0, driven by the real openai client; only the model is a stub."""

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import threading
import time

import openai
import pytest

from server.api import responder
from server.api.model_routes import Model
from server.api.routes import App
from server.observe.status import Status
from server.observe.views import Capacity
from server.protocol.client import SERVER
from server.protocol.errors import engine_failed, unavailable
from server.protocol.events import Failed, Prefilled, Token
from server.protocol.requests import Sampling
from server.protocol.settings import read_settings
from server.scheduler.queue import Line
from server.text import generation
from server.text.stop_strings import stop_words
from server.transport.http_server import Exchange, Server
from tests.support.raw_http import DEADLINE_S, RawAnswer, RawClient, request
from tests.support.stub_engine import CONTEXT, StubEngine, StubPrompts

MODEL = "org/demo"


class Service:
    """App, server and stub engine, wired as rank 0 wires them."""

    def __init__(self, model_dir, **env: str) -> None:
        self.settings = read_settings({"MODEL_DIR": str(model_dir), "MODEL_ID": MODEL} | env)
        self.status = Status(MODEL, "run-1")
        self.line = Line(
            self.settings.max_batch,
            self.settings.queue_max,
            lambda: self.status.load.slot_free_s,
        )
        self.app = App(self.settings, self.status, self.line)
        self.engine = StubEngine(self.line, self.status)
        self.server = Server("127.0.0.1", 0, self.app)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = self.server.port

    def finish_loading(self) -> "Service":
        self.prompts = StubPrompts()
        self.app.model_loaded(Model(self.prompts, CONTEXT, Sampling(), "fp_stub"))
        self.status.publish(Capacity(CONTEXT))
        self.status.phases.serve()
        return self

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.engine.end()

    # Asking.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, key: str = "none", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, **{"max_retries": 0} | options)

    def ask(self, method: str, path: str, body=None, *headers: str) -> RawAnswer:
        with RawClient(self.port) as client:
            return client.ask(request(method, path, body, *headers), head=method == "HEAD")

    def open(self, path: str, body: dict) -> RawClient:
        """A connection that has asked, and has not read."""
        client = RawClient(self.port)
        client.send(request("POST", path, body))
        return client

    def wait_for(self, condition) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, "not reached"
            time.sleep(0.005)

    @contextlib.contextmanager
    def filled(self, count: int):
        """count requests that stay; the engine stands still meanwhile."""
        self.engine.go.clear()
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self.open("/v1/completions", {"prompt": "hold"}))
            self.wait_for(lambda: self.line.held() == count)
            yield
        self.wait_for(lambda: self.line.held() == 0)
        self.engine.go.set()


@pytest.fixture
def start(tmp_path):
    """start(**env) -> a service that has loaded."""
    with contextlib.ExitStack() as stack:

        def make(**env: str) -> Service:
            service = Service(tmp_path, **env)
            stack.callback(service.end)
            return service.finish_loading()

        yield make


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("model")).finish_loading()
    yield service
    service.end()


@pytest.fixture
def service(shared) -> Service:
    """The shared one, with nothing in it."""
    shared.wait_for(lambda: shared.line.held() == 0)
    shared.engine.dropped.clear()
    shared.engine.seen.clear()
    return shared


@pytest.fixture
def client(service) -> openai.OpenAI:
    return service.client()


def test_a_model_has_the_names_that_its_operator_gives_it(start):
    """Agents ask for names that they know."""
    service = start(MODEL_ALIASES="gpt-5, claude-haiku-4-5")
    cards = service.client().models.list().data
    assert [card.id for card in cards] == [MODEL, "gpt-5", "claude-haiku-4-5"]
    assert {card.root for card in cards} == {MODEL}
    assert service.client().models.retrieve("gpt-5").root == MODEL
    assert chat(service.client(), "hello", model="gpt-5").model == MODEL
    for ask in (lambda api: chat(api, model="gpt-6"), lambda api: api.models.retrieve("gpt-6")):
        with pytest.raises(openai.NotFoundError):
            ask(service.client())


def test_a_model_may_have_any_name(start):
    service = start(MODEL_ALIASES="* known")
    assert [card.id for card in service.client().models.list().data] == [MODEL, "known"]
    assert service.client().models.retrieve("what/ever").root == MODEL
    body = {"model": "what/ever", "max_tokens": 5, "messages": user("hello")}
    assert service.ask("POST", "/v1/messages", body).json["model"] == "what/ever"
    for path in ("messages/count_tokens", "tokenize"):
        assert service.ask("POST", f"/v1/{path}", body).status == 200


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def chat(client, text: str = "hello", **fields):
    return client.chat.completions.create(
        **{"model": MODEL, "messages": user(text)} | fields,
    )


# Models and state.


def test_models_are_listed_and_retrieved_with_their_slash(service, client):
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == (MODEL, "model", "mlx-cluster")
    assert card.max_model_len == CONTEXT
    assert client.models.retrieve(MODEL) == card
    for path in ("/v1/models/org%2Fdemo", "/v1/models/org/demo", "/models/org%2fdemo/?a=b"):
        assert service.ask("GET", path).json["id"] == MODEL


def test_another_model_is_404(service, client):
    for ask in (lambda: client.models.retrieve("gpt-4"), lambda: chat(client, model="gpt-4")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert service.ask("GET", "/v1/models/" + "%ff" * 300).error["code"] == "model_not_found"


def test_health_and_queue_tell_what_runs(service):
    health = service.ask("GET", "/health")
    assert health.status == 200
    assert health.json["status"] == "ok" and health.json["run_id"] == "run-1"
    with service.filled(10):
        service.wait_for(lambda: service.ask("GET", "/queue").json["size"] == 2)
        assert service.ask("GET", "/queue").json == {
            "size": 2, "max": 8, "running": 8, "max_running": 8,
        }  # fmt: skip


# Answers.


def test_a_chat_is_answered_with_text_and_usage(client):
    answer = chat(client, "hello")
    assert answer.id.startswith("chatcmpl-") and answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("hello", "stop")
    assert choice.message.role == "assistant" and choice.logprobs is None
    assert answer.system_fingerprint == "fp_stub"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 5, 10)


def test_the_model_may_be_absent_and_v1_too(service):
    body = {"messages": user("hello")}
    for path in ("/v1/chat/completions", "/chat/completions", "/v1/chat/completions/?beta=true"):
        answer = service.ask("POST", path, body)
        assert answer.json["choices"][0]["message"]["content"] == "hello"
        assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("prompt", ["hello", ["hello"], [104, 101, 108, 108, 111]])
def test_a_completion_takes_text_or_tokens(client, prompt):
    answer = client.completions.create(model=MODEL, prompt=prompt)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "stop")


def test_a_chat_streams_role_first_reason_last(client):
    chunks = list(chat(client, "héllo🙂", stream=True))
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    deltas = [c.choices[0].delta for c in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(d.content or "" for d in deltas) == "héllo🙂"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(c.usage is None for c in chunks)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_include_usage_adds_one_chunk_and_null_before_it(service, kind):
    body = {"stream": True, "stream_options": {"include_usage": True}}
    body |= {"messages": user("hello")} if kind == "chat" else {"prompt": "hello"}
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    answer = service.ask("POST", path, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [chunk.decode().removeprefix("data: ").strip() for chunk in answer.chunks]
    assert events.pop() == "[DONE]"
    *chunks, last = [json.loads(event) for event in events]
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 10


def test_a_completion_streams(client):
    chunks = list(client.completions.create(model=MODEL, prompt="hello", stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "hello"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_async_clients_share_a_server(service):
    async def ask(client: openai.AsyncOpenAI, n: int) -> str:
        if n % 2:
            return (await chat(client, f"answer {n}")).choices[0].message.content
        stream = await chat(client, f"answer {n}", stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=service.url, api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, n) for n in range(12)))

    assert asyncio.run(ask_all()) == [f"answer {n}" for n in range(12)]


def test_max_tokens_cuts_and_says_length(client):
    answer = chat(client, "hello", max_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("hel", "length")
    assert chat(client, "hello", max_completion_tokens=2).usage.completion_tokens == 2


def test_a_limit_beyond_the_context_is_clamped(service, client):
    chat(client, "x" * 90, max_tokens=32_000)
    assert service.engine.seen[-1].max_tokens == CONTEXT - 90


@pytest.mark.parametrize(
    "path, body",
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        (
            "messages",
            {
                "max_tokens": 60,
                "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}],
            },
        ),
    ],
)
def test_an_image_leaves_words_in_the_prompt_and_one_line_in_the_log(service, caplog, path, body):
    with caplog.at_level(logging.WARNING):
        answer = service.ask("POST", f"/v1/{path}", body)
    told = "[image omitted: this model reads text only]"
    assert answer.status == 200 and service.prompts.texts[-1] == told
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert line.endswith(f" /v1/{path}: left out of the prompt: 1 x image")


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_without_a_limit_an_answer_may_have_what_the_context_leaves(service, path):
    """Agents send none, and were cut at 2,048 tokens, their thinking included."""
    of = {"chat/completions": {"messages": user("hello")}, "completions": {"prompt": "hello"}}
    assert service.ask("POST", f"/v1/{path}", of.get(path, {"input": "hello"})).status == 200
    assert service.engine.seen[-1].max_tokens == CONTEXT - 5


def test_the_default_limit_is_the_operators(start):
    service = start(DEFAULT_MAX_TOKENS="4")
    assert chat(service.client(), "hello").choices[0].message.content == "hell"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_frees_its_slot(service, client, stream):
    answer = chat(client, "hello", stop="l", stream=stream)
    if stream:
        chunks = list(answer)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "he"
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert answer.choices[0].message.content == "he"
        assert answer.usage.completion_tokens == 3
    service.wait_for(lambda: service.line.held() == 0)


def test_sampling_reaches_the_engine(service, client):
    chat(client, temperature=0.5, top_p=0.9, seed=-7, presence_penalty=1, extra_body={"top_k": 5})
    assert service.engine.seen[-1].common.sampling == Sampling(
        temperature=0.5, top_p=0.9, top_k=5, seed=-7, presence_penalty=1
    )


def test_what_the_engine_must_know_reaches_it(service, client):
    extras = {"min_tokens": 2, "stop_token_ids": [7, 8], "ignore_eos": True}
    chat(client, n=2, logit_bias={"5": -100}, logprobs=True, top_logprobs=2, extra_body=extras)
    first, second = service.engine.seen
    assert first.common == second.common
    common = first.common
    assert (common.min_tokens, common.stop_token_ids, common.ignore_eos) == (2, (7, 8), True)
    assert common.logit_bias == ((5, -100.0),) and common.logprobs == 2
    assert first.followers == [second] and first.prompt is second.prompt
    assert not first.score_prompt, "a chat has no echo"


# Several choices.


def by_prompt(*texts: str):
    """A script: choice n says the nth of the texts, cut after its first X."""

    def script(ticket):
        text = texts[ticket.choice]
        for n, letter in enumerate(text, 1):
            yield Token(ord(letter), "stop" if n == len(text) else None)

    return script


def test_n_choices_come_whole_and_in_order(service, client):
    answer = chat(client, "hello", n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == ["hello"] * 3
    assert [c.finish_reason for c in answer.choices] == ["stop"] * 3
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 15, 20)
    assert len(service.engine.seen) == 3


def test_n_choices_stream_side_by_side_each_with_one_end(client):
    options = {"include_usage": True}
    *chunks, last = chat(client, "hello", n=3, stream=True, stream_options=options)
    assert len({(c.id, c.created) for c in [*chunks, last]}) == 1
    assert all(c.usage is None and len(c.choices) == 1 for c in chunks)
    assert last.choices == [] and last.usage.prompt_tokens == 5
    assert last.usage.completion_tokens == 15
    for index in range(3):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert [c.delta.role for c in own[1:]] == [None] * (len(own) - 1)
        assert "".join(c.delta.content or "" for c in own) == "hello"
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + ["stop"]
    order = [c.choices[0].index for c in chunks]
    assert order[3:9] == [0, 1, 2, 0, 1, 2], "side by side, not one after the other"


def test_a_stop_string_ends_its_own_choice_while_the_others_go_on(start):
    service = start()
    service.engine.script = by_prompt("abXcdefgh", "abcdeX", "abcdefgh")
    answer = chat(service.client(), n=3, stop=["X"])
    assert [c.message.content for c in answer.choices] == ["ab", "abcde", "abcdefgh"]
    assert [c.finish_reason for c in answer.choices] == ["stop"] * 3
    service.wait_for(lambda: service.line.held() == 0)
    chunks = list(chat(service.client(), n=3, stop=["X"], stream=True))
    texts = ["", "", ""]
    ends = []
    for choice in (c.choices[0] for c in chunks):
        assert choice.index not in ends, "nothing follows a choice's end"
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.index)
    assert texts == ["ab", "abcde", "abcdefgh"] and ends == [0, 1, 2]


def test_choices_end_for_reasons_of_their_own(start):
    service = start()
    service.engine.script = lambda ticket: iter(
        [Token(ord("a"), None), Token(ord("b"), ("length", "stop")[ticket.choice])]
    )
    answer = chat(service.client(), n=2)
    assert [c.finish_reason for c in answer.choices] == ["length", "stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_one_choice_that_fails_fails_the_request_and_frees_the_others(start, stream):
    service = start()

    def script(ticket):
        yield Token(ord("a"), None)
        if ticket.choice == 1:
            yield Failed(engine_failed("Sampling failed: a bad row"))
        while True:
            yield Token(ord("b"), None)

    service.engine.script = script
    with pytest.raises(openai.APIError) as caught:
        list(chat(service.client(), n=3, stream=stream))
    assert caught.value.code == "engine_error"
    service.wait_for(lambda: service.line.held() == 0 and service.line.unanswered() == 0)


def test_a_list_of_prompts_gives_the_choices_of_each_in_turn(service, client):
    for prompts in (["one", "three"], [[ord(c) for c in text] for text in ("one", "three")]):
        answer = client.completions.create(model=MODEL, prompt=prompts, n=2)
        assert [(c.index, c.text) for c in answer.choices] == [
            (0, "one"), (1, "one"), (2, "three"), (3, "three"),
        ]  # fmt: skip
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 16)
    same = client.completions.create(model=MODEL, prompt=["hi", "hi"])
    assert same.usage.prompt_tokens == 4, "two prompts, though they are equal"


def test_a_list_of_prompts_streams_with_the_same_indices(client):
    chunks = list(client.completions.create(model=MODEL, prompt=["one", "three"], n=2, stream=True))
    texts, ends = [""] * 4, [0] * 4
    for choice in (c.choices[0] for c in chunks):
        texts[choice.index] += choice.text
        ends[choice.index] += choice.finish_reason is not None
    assert texts == ["one", "one", "three", "three"] and ends == [1] * 4


def test_each_prompt_of_a_list_has_the_limit_that_its_length_leaves(service, client):
    client.completions.create(model=MODEL, prompt=["x" * 90, "y"], max_tokens=50)
    assert [ticket.max_tokens for ticket in service.engine.seen] == [CONTEXT - 90, 50]


def test_one_bad_prompt_of_a_list_refuses_all(service, client):
    for prompts, code in (
        (["ok", "x" * 5000], "context_length_exceeded"),
        ([[1], [0x110000]], None),
        (["ok", ""], None),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt=prompts)
        assert (caught.value.param, caught.value.code) == ("prompt", code)
    assert not service.engine.seen


def test_best_of_is_taken_where_it_asks_for_nothing_more(client):
    answer = client.completions.create(model=MODEL, prompt="hi", n=2, best_of=2)
    assert len(answer.choices) == 2
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="hi", n=2, best_of=3)
    assert caught.value.param == "best_of"


def test_more_choices_than_the_server_holds_are_400_not_429(start):
    service = start(MAX_BATCH="2", QUEUE_MAX="1")
    client = service.client(max_retries=3)
    for ask in (
        lambda: chat(client, n=4),
        lambda: chat(client, n=4, stream=True),
        lambda: client.completions.create(model=MODEL, prompt=["a", "b"], n=2),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert "4 choices" in caught.value.message and "3 at most" in caught.value.message
    assert len(chat(client, n=3).choices) == 3


def test_choices_take_places_one_by_one(start):
    service = start(MAX_BATCH="2", QUEUE_MAX="2")
    with service.filled(2):
        with pytest.raises(openai.RateLimitError) as caught:
            chat(service.client(), n=3)
        assert "2 requests running and 0 waiting" in caught.value.message
        assert caught.value.response.headers["retry-after"]
        service.open("/v1/completions", {"prompt": "hi", "n": 2}).close()
    assert len(chat(service.client(), n=4).choices) == 4


# Echo and log-probabilities.


def test_an_echo_begins_with_the_prompt(client):
    for prompt in ("hello", [ord(letter) for letter in "hello"]):
        answer = client.completions.create(model=MODEL, prompt=prompt, echo=True, n=2, max_tokens=2)
        assert [c.text for c in answer.choices] == ["hellohe"] * 2
        assert answer.usage.completion_tokens == 4
    chunks = list(client.completions.create(model=MODEL, prompt="hi", echo=True, stream=True))
    assert [c.choices[0].text for c in chunks] == ["hi", "h", "i"]


def test_a_stop_string_in_the_prompt_does_not_stop_its_echo(client):
    answer = client.completions.create(model=MODEL, prompt="hello", echo=True, stop="l")
    assert answer.choices[0].text == "hellohe"


@pytest.mark.parametrize("stream", [False, True])
def test_completion_log_probabilities_are_four_lists(client, stream):
    answer = client.completions.create(
        model=MODEL, prompt="abc", logprobs=2, echo=True, max_tokens=2, n=2, stream=stream
    )
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    told = [{name: [] for name in names} for _ in range(2)]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            for name, values in told[choice.index].items():
                values += getattr(choice.logprobs, name)
    for one in told:
        assert one["tokens"] == list("abcab") and one["text_offset"] == [0, 1, 2, 3, 4]
        assert one["token_logprobs"] == [None, -1, -2, -1, -2]
        assert one["top_logprobs"] == [
            None, {"c": -1.5, "d": -9999.0}, {"d": -2.5, "e": -9999.0},
            {"b": -1.5, "c": -9999.0}, {"c": -2.5, "d": -9999.0},
        ]  # fmt: skip


def test_the_prompt_is_scored_once_and_only_where_it_is_asked_for(service, client):
    for fields, scored in (
        ({"echo": True, "logprobs": 0, "n": 2}, [True, False]),
        ({"echo": True}, [False]),
        ({"logprobs": 3}, [False]),
        ({"prompt": ["a", "b"], "echo": True, "logprobs": 1}, [True, True]),
    ):
        service.engine.seen.clear()
        client.completions.create(**{"model": MODEL, "prompt": "hello"} | fields)
        assert [ticket.score_prompt for ticket in service.engine.seen] == scored


def test_log_probabilities_of_none_asked_for_are_null(client):
    answer = client.completions.create(model=MODEL, prompt="hi!", logprobs=0)
    # The token that ended the answer is no part of what is told.
    assert answer.choices[0].logprobs.tokens == ["h", "i"]
    assert answer.choices[0].logprobs.top_logprobs == [{}, {}]
    assert client.completions.create(model=MODEL, prompt="hi").choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_chat_log_probabilities_have_bytes_and_join_to_the_text(client, stream):
    answer = chat(client, "hé🙂", logprobs=True, top_logprobs=2, n=2, stream=stream)
    told = [[], []]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            told[choice.index] += choice.logprobs.content if choice.logprobs else []
    for tokens in told:
        assert "".join(t.token for t in tokens) == "hé"
        assert bytes(b for t in tokens for b in t.bytes).decode() == "hé"
        assert [t.logprob for t in tokens] == [-1, -2]
        assert [[a.logprob for a in t.top_logprobs] for t in tokens] == [
            [-1.5, -9999],
            [-2.5, -9999],
        ]
    assert chat(client, "hi").choices[0].logprobs is None


# Refusals.


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 5}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": 5}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(0x110000): 1}}, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [0x110000]}}, "stop_token_ids"),
        ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids"),
        ({"extra_body": {"min_tokens": -1}}, "min_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": user("refuse")}, "messages"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ],
)
def test_a_bad_parameter_is_400_and_named(service, client, fields, param):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, **fields, stream=stream)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert not service.engine.seen


@pytest.mark.parametrize("prompt", [[-1], [0x110000], [10**30]])
def test_a_token_id_outside_the_vocabulary_is_400(service, client, prompt):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=prompt)
    assert caught.value.param == "prompt"
    assert not service.engine.seen


# What is costly comes after what is cheap.


def tokenized(service) -> list[str]:
    return service.prompts.texts


COSTLY = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "costly"}]}),
    ("/v1/completions", {"prompt": ["costly", "costly"]}),
    ("/v1/responses", {"input": "costly"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "costly"}], "max_tokens": 5}),
]


@pytest.mark.parametrize(("path", "body"), COSTLY)
def test_a_full_queue_refuses_before_it_tokenizes(start, path, body):
    service = start(MAX_BATCH="1", QUEUE_MAX="1")
    with service.filled(2):
        before = len(tokenized(service))
        answer = service.ask("POST", path, body)
        assert answer.status == 429 and "retry-after" in answer.headers
        assert len(tokenized(service)) == before


def test_too_many_choices_are_refused_before_a_prompt_is_tokenized(start):
    """128 prompts of 25 MB were tokenized for 42 s first."""
    service = start(MAX_BATCH="8", QUEUE_MAX="8")
    for body in ({"prompt": ["a"] * 17}, {"prompt": ["a"] * 6, "n": 3}):
        answer = service.ask("POST", "/v1/completions", body)
        assert answer.status == 400 and answer.error["param"] == "n"
    assert tokenized(service) == []


def test_one_prompt_that_is_too_long_is_refused_before_the_others_are_tokenized(start):
    service = start()
    too_long = "x" * (4 * CONTEXT + 1)
    for prompts in (["a", "b", too_long], [[5], [6], [5] * CONTEXT]):
        answer = service.ask("POST", "/v1/completions", {"prompt": prompts})
        assert answer.error["code"] == "context_length_exceeded"
    assert tokenized(service) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "x" * (4 * CONTEXT + 1)}),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * (4 * CONTEXT + 1)}]}),
        (
            "/v1/messages/count_tokens",
            {"messages": [{"role": "user", "content": "x" * (4 * CONTEXT + 1)}]},
        ),
    ],
)
def test_routes_that_only_count_refuse_what_no_context_holds(start, path, body):
    service = start()
    answer = service.ask("POST", path, body)
    error = answer.json["error"]
    assert answer.status == 400 and "at least" in error["message"]
    assert tokenized(service) == []


def test_text_beyond_the_context_that_tokens_could_stand_for_is_counted(service):
    answer = service.ask("POST", "/tokenize", {"prompt": "x" * 4 * CONTEXT})
    assert answer.status == 200 and answer.json["count"] == 4 * CONTEXT


def test_a_client_that_leaves_while_it_waits_for_its_lane_is_not_worked_for(start):
    service = start()
    lane = service.app._with_model._lanes._lanes[1][1]
    body = {"prompt": "x", "user": "y" * 20_000}
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(lane.enter(SERVER))
        with service.open("/tokenize", body):
            service.wait_for(lambda: lane.inside == 3)
        service.wait_for(lambda: lane.inside == 2)
    assert tokenized(service) == []
    assert service.ask("POST", "/tokenize", body).status == 200


def test_what_reads_an_answer_is_made_after_admission_and_its_stop_words_once(start, monkeypatch):
    """64 strings of 1,024 characters and n = 16 made a trie a choice, before a 429 as well."""
    service = start(MAX_BATCH="4", QUEUE_MAX="4")
    made = []
    prompts = service.prompts
    plain_out = prompts.plain_out
    monkeypatch.setattr(
        prompts,
        "plain_out",
        lambda common: made.append(stop_words(common.stop)) or plain_out(common),
    )
    with service.filled(6):
        made.clear()  # those of who fills it
        ask = {"prompt": "hi", "n": 3, "stop": ["a" * 1000]}
        assert service.ask("POST", "/v1/completions", ask).status == 429
        assert made == []
    made.clear()
    assert service.ask("POST", "/v1/completions", ask).status == 200
    assert len(made) == 3 and len({id(words) for words in made}) == 1


def test_a_failure_between_admission_and_answer_leaves_no_place_taken(start, monkeypatch):
    service = start()

    def fail(common):
        raise RuntimeError("a bug")

    monkeypatch.setattr(service.prompts, "plain_out", fail)
    assert service.ask("POST", "/v1/completions", {"prompt": "hi", "n": 2}).status == 500
    service.wait_for(lambda: service.line.held() == 0 and service.line.unanswered() == 0)


def test_as_many_tokens_as_fit(service):
    for limit in (-1, None, -1.0):
        body = {"prompt": "x" * 30, "max_tokens": limit}
        assert service.ask("POST", "/v1/completions", body).status == 200
        assert service.engine.seen[-1].max_tokens == CONTEXT - 30


@pytest.mark.parametrize("length", [CONTEXT, 3 * CONTEXT])
def test_a_prompt_over_the_context_is_400_in_words_that_clients_know(service, client, length):
    asks = {
        "messages": lambda: chat(client, "x" * length),
        "prompt": lambda: client.completions.create(model=MODEL, prompt="x" * length),
    }
    for param, ask in asks.items():
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        error = caught.value
        assert (error.code, error.param) == ("context_length_exceeded", param)
        assert f"This model's maximum context length is {CONTEXT} tokens" in error.message
        assert "(context_length_exceeded; prompt is too long: " in error.message
        assert f"{length} tokens > {CONTEXT - 1} maximum)" in error.message
    assert not service.engine.seen


def test_a_prompt_that_leaves_room_for_one_token_is_answered(client):
    assert chat(client, "x" * (CONTEXT - 1)).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/index.html", 404),
        ("POST", "/", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1x/models", 404),
        ("GET", "http://[", 400),
        ("GET", "*", 404),
        ("GET", "/v1/chat/completions", 405),
        ("HEAD", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/v1/models/org%2Fdemo", 405),
        ("TRACE", "/health", 405),
        ("POST", "/health", 405),
    ],
)
def test_unknown_urls_and_methods_are_errors_in_json(service, method, path, status):
    answer = service.ask(method, path)
    assert answer.status == status
    if method != "HEAD":
        assert answer.error["type"] == "invalid_request_error"
    if status == 405:
        assert "OPTIONS" in answer.headers["allow"]


def test_options_and_head_are_answered(service):
    answer = service.ask("OPTIONS", "/v1/chat/completions")
    assert (answer.status, answer.headers["allow"]) == (200, "OPTIONS, POST")
    assert service.ask("HEAD", "/v1/models").status == 200
    assert service.ask("HEAD", "/health").status == 200


@pytest.mark.parametrize("body", ["", "{", "[]", '"x"', b"\xff", '{"messages": NaN}', "[" * 9999])
def test_a_body_that_is_no_json_object_is_400(service, body):
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert service.ask("POST", path, body).error["type"] == "invalid_request_error"


# A full house.


def test_a_full_queue_answers_429_with_retry_after(start):
    service = start(MAX_BATCH="2", QUEUE_MAX="1")
    with service.filled(3):
        with pytest.raises(openai.RateLimitError) as caught:
            chat(service.client(), stream=True)
        error = caught.value
        assert (error.type, error.code) == ("rate_limit_exceeded", "rate_limit_exceeded")
        assert error.response.headers["retry-after"] == "5"
        assert "x-should-retry" not in error.response.headers
        assert "2 requests running and 1 waiting" in error.message
    assert chat(service.client()).choices[0].message.content == "hello"


def test_the_openai_client_gets_through_a_full_queue_by_itself(start):
    service = start(MAX_BATCH="1", QUEUE_MAX="0")
    service.engine.slot_free_s = 0.1
    with service.filled(1):
        threading.Timer(0.3, service.engine.go.set).start()
        answer = chat(service.client(max_retries=5))
        assert answer.choices[0].message.content == "hello"


# Not serving.


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


# Failures on the way.


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


# Clients that leave.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_slot(start, monkeypatch, phase, stream):
    monkeypatch.setattr(generation, "POLL_S", 0.02)
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
    monkeypatch.setattr(generation, "POLL_S", 0.02)
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
    monkeypatch.setattr(generation, "POLL_S", 0.02)
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
    monkeypatch.setattr(generation, "POLL_S", 0.02)
    service = start(MAX_BATCH="2", QUEUE_MAX="3")
    service.engine.script = lambda ticket: iter(lambda: Token(ord("a"), None), None)
    several = {"prompt": "x", "n": 4} if kind == "n" else {"prompt": ["x", "y", "z", "w"]}
    leaving = service.open("/v1/completions", several | {"stream": stream})
    service.wait_for(lambda: service.status.load.running == 2 and service.line.held() == 4)
    leaving.close()
    service.wait_for(lambda: service.line.held() == 0)
    assert len(service.engine.dropped) == 4
    service.wait_for(lambda: service.line.unanswered() == 0)


# Pings.


def test_an_answer_that_is_not_streamed_is_not_pinged(start, monkeypatch):
    monkeypatch.setattr(responder, "PING_S", 0.01)
    service = start()
    service.engine.go.clear()
    threading.Timer(0.3, service.engine.go.set).start()
    assert service.ask("POST", "/v1/completions", {"prompt": "hello"}).status == 200


# Keys.


def test_a_key_is_asked_for_everywhere_but_in_health(start):
    service = start(API_KEY="first-key, second-kéy")
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/queue"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/nowhere"),
    ):
        answer = service.ask(method, path, "{}" if method == "POST" else None)
        assert answer.status == 401
        assert answer.error["type"] == "authentication_error"
        assert answer.error["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert service.ask("GET", "/health").status == 200
    assert service.ask("OPTIONS", "/v1/models").status == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Authorization: Bearer first-key", 200),
        ("Authorization: bearer   first-key ", 200),
        ("Authorization: Bearer second-key", 200),
        ("x-api-key: first-key", 200),
        ("X-API-Key: second-key", 200),
        ("Authorization: Bearer first-key,second-key", 401),
        ("Authorization: Bearer FIRST-KEY", 401),
        ("Authorization: Bearer first-ke", 401),
        ("Authorization: Bearer ", 401),
        ("Authorization: Bearer", 401),
        ("Authorization: first-key", 401),
        ("Authorization: Basic first-key", 401),
        ("x-api-key:", 401),
        ("x-api-key: \xff\xfe", 401),
        ("Api-Key: first-key", 401),
    ],
)
def test_each_key_opens_in_either_header(start, header, status):
    service = start(API_KEY="first-key,second-key")
    assert service.ask("GET", "/v1/models", None, header).status == status


def test_a_key_beyond_ascii_opens_as_utf_8(start):
    service = start(API_KEY="schlüssel")
    assert service.ask("GET", "/v1/models", None, "x-api-key: schlüssel").status == 200


def test_the_openai_client_signs_in(start):
    service = start(API_KEY="right")
    assert chat(service.client("right")).choices[0].message.content == "hello"
    with pytest.raises(openai.AuthenticationError) as caught:
        chat(service.client("wrong"))
    assert caught.value.code == "invalid_api_key"


def test_a_large_body_with_a_wrong_key_still_gets_its_401(start):
    """The body is not read; the answer used to be lost in the connection's reset."""
    service = start(API_KEY="right")
    with pytest.raises(openai.AuthenticationError):
        chat(service.client("wrong"), "x" * 10_000_000)


# Other origins.


def test_no_origin_is_allowed_unless_configured(service):
    for method in ("GET", "OPTIONS"):
        answer = service.ask(method, "/v1/models", None, "Origin: http://page")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_origin_may_read_answers_errors_and_streams(start):
    service = start(ALLOWED_ORIGINS="http://page, http://other")
    asks = [
        ("GET", "/v1/models", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/completions", {"prompt": "x", "stream": True}),
    ]
    for method, path, body in asks:
        answer = service.ask(method, path, body, "Origin: http://page")
        assert answer.headers["access-control-allow-origin"] == "http://page"
        assert answer.headers["vary"] == "Origin"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        for origin in ("Origin: http://evil", "Origin: http://page.evil", "X-None: 1"):
            answer = service.ask(method, path, body, origin)
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin"


def test_a_preflight_needs_no_key_and_allows_what_sdks_send(start):
    service = start(ALLOWED_ORIGINS="http://page", API_KEY="right")
    asked = "authorization,content-type,x-stainless-lang,bad\x01name, folded: 1"
    answer = service.ask(
        "OPTIONS", "/v1/chat/completions", None, "Origin: http://page",
        "Access-Control-Request-Method: POST", f"Access-Control-Request-Headers: {asked}",
    )  # fmt: skip
    assert answer.status == 200
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "x-api-key", "x-stainless-lang"} <= set(allowed)
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "folded" not in answer.headers
    answer = service.ask("GET", "/v1/models", None, "Origin: http://page")
    assert answer.status == 401 and answer.headers["access-control-allow-origin"] == "http://page"


def test_any_origin_can_be_allowed(start):
    service = start(ALLOWED_ORIGINS="*")
    answer = service.ask("GET", "/v1/models", None, "Origin: http://anything")
    assert answer.headers["access-control-allow-origin"] == "*"


# Logs.


def test_prompts_answers_and_keys_stay_out_of_the_log(start, caplog):
    caplog.set_level(logging.DEBUG)
    service = start(API_KEY="topsecretkey")
    client = service.client("topsecretkey")
    chat(client, "privatewords")
    with pytest.raises(openai.BadRequestError):
        chat(client, "privatewords" * 20)
    with pytest.raises(openai.AuthenticationError):
        chat(service.client("othersecretkey"), "privatewords")
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("server"))
    assert "12 prompt tokens, 12 generated, done" in ours
    assert "privatewords" not in ours and "secretkey" not in ours
