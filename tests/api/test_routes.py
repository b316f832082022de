"""The whole front end on port 0, driven by the real openai client; only the model is a stub."""

import asyncio
import json
import logging
import threading

import openai
import pytest

from server.protocol.requests import Sampling
from tests.support.api_service import (
    MODEL,
    chat,
    user,
)
from tests.support.stub_engine import CONTEXT


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
