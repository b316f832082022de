"""POST /v1/embeddings with the real openai client and langchain's; only the model is a stub, which
gives of each input its length, its first token, 3, and its place."""

import base64
import json

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from server.api.dialects.embeddings import (
    MAX_INPUTS,
    MAX_TOKENS_IN_ALL,
    EmbeddingsRequest,
    parse,
    token_ids,
    write,
)
from server.protocol.client import SERVER
from server.protocol.embedding_kind import EmbeddingKind
from server.protocol.errors import ApiError
from server.protocol.requests import Served
from tests.support.api_service import MODEL
from tests.support.stub_engine import CONTEXT, StubPrompts


def unit(*values: float) -> list[float]:
    return (np.array(values) / np.linalg.norm(values)).tolist()


def ask(service, **body):
    return service.ask("POST", "/v1/embeddings", body)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_openais_client_gets_a_vector_of_length_1_for_each_input_in_order(client, encoding):
    """Without a word of it the client asks for base64 and reads that itself."""
    how = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model=MODEL, input=["ab", "c", "def"], **how)
    assert (answer.object, answer.model) == ("list", MODEL)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)
    assert [(one.index, one.object) for one in answer.data] == [(i, "embedding") for i in range(3)]
    for place, (one, text) in enumerate(zip(answer.data, ("ab", "c", "def"), strict=True)):
        got = one.embedding
        if encoding == "base64":
            got = np.frombuffer(base64.b64decode(got), dtype="<f4")
        np.testing.assert_allclose(got, unit(len(text), ord(text[0]), 3, place), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("ab", [[97, 98]]),
        (["ab"], [[97, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97, 98], [1]], [[97, 98], [1]]),
        (["ab", [1]], [[97, 98], [1]]),
    ],
)
def test_the_shapes_of_input(service, given, inputs):
    answer = ask(service, input=given, user="me")
    assert answer.status == 200 and len(answer.json["data"]) == len(inputs)
    assert [ticket.inputs for ticket in service.engine.seen] == [inputs]


def test_both_encodings_say_the_same_number(service):
    text = ask(service, input="xyz").json["data"][0]["embedding"]
    data = ask(service, input="xyz", encoding_format="base64").json["data"][0]["embedding"]
    assert np.array(text, dtype="<f4").tobytes() == base64.b64decode(data)


def test_fewer_dimensions_are_the_first_ones_at_length_1(client):
    answer = client.embeddings.create(model=MODEL, input="ab", dimensions=2)
    np.testing.assert_allclose(answer.data[0].embedding, unit(2, 97), rtol=1e-6)


def test_langchain_is_served(service):
    one = OpenAIEmbeddings(
        model=MODEL, base_url=service.url, api_key="x", check_embedding_ctx_length=False
    )
    vectors = one.embed_documents(["ab", "c"])
    np.testing.assert_allclose(vectors, [unit(2, 97, 3, 0), unit(1, 99, 3, 1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "allowed"),
    [
        ({}, "input", "text, token ids"),
        ({"input": []}, "input", f"1 to {MAX_INPUTS}"),
        ({"input": ""}, "input", "at least|1 to|non-empty"),
        ({"input": ["a", ""]}, "input[1]", "non-empty"),
        ({"input": ["a", []]}, "input", "non-empty array of token ids"),
        ({"input": ["a", None]}, "input", "non-empty array of token ids"),
        ({"input": {"text": "a"}}, "input", "text, token ids"),
        ({"input": "\ud800"}, "input", "valid Unicode"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", f"1 to {MAX_INPUTS}"),
        ({"input": [[1], [2, -1]]}, "input[1]", "token ids from 0 to"),
        ({"input": [True]}, "input", "token ids"),
        ({"input": "a" * (CONTEXT + 1)}, "input", f"at most {CONTEXT} tokens"),
        ({"input": ["a", [5] * (CONTEXT + 1)]}, "input[1]", f"at most {CONTEXT} tokens"),
        ({"input": "a", "dimensions": 5}, "dimensions", "1 to 4"),
        ({"input": "a", "dimensions": 0}, "dimensions", "from 1"),
        ({"input": "a", "dimensions": True}, "dimensions", "whole number"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "float, base64"),
        ({"input": "a", "model": "gpt-4"}, "model", "serves"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(service, body, param, allowed):
    answer = ask(service, **body)
    assert answer.status == (404 if param == "model" else 400)
    assert answer.error["param"] == param
    assert any(words in answer.error["message"] for words in allowed.split("|")), answer.error
    assert service.line.held() == 0 and not service.engine.seen


def test_an_input_as_long_as_the_context_is_taken(service):
    assert ask(service, input=["a" * CONTEXT, [5] * CONTEXT]).status == 200


def test_the_tokens_of_all_inputs_have_a_limit():
    prompts, kind = StubPrompts(), EmbeddingKind(4)
    for one in ("a" * 200, [5] * 200):
        request = parse({"input": [one] * MAX_INPUTS}, Served(MODEL), kind)
        with pytest.raises(ApiError, match=f"at most {MAX_TOKENS_IN_ALL} tokens") as caught:
            token_ids(request.inputs, prompts, 300, SERVER)
        assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")


@pytest.mark.parametrize("values", [[0, 0, 0], [1, np.nan, 1], [np.inf, 1, 1]])
def test_a_vector_without_a_direction_is_an_error(values):
    with pytest.raises(ApiError) as caught:
        write(np.array(values, dtype=np.float32), EmbeddingsRequest(["a"], 3))
    assert caught.value.status == 500


def test_a_model_that_gives_none_says_why():
    kind = EmbeddingKind(4, True, "it pools by mean, and not by its last token")
    with pytest.raises(ApiError, match="pools by mean") as caught:
        parse({"input": "a"}, Served(MODEL), kind)
    assert (caught.value.status, caught.value.param) == (400, "model")


def test_the_models_card_says_what_there_is(service, client):
    card = service.ask("GET", "/v1/models").json["data"][0]
    assert card["embeddings"] == {"dimensions": 4, "pooling": "last_token", "trained": False}


def test_a_full_line_is_429_and_one_request_takes_one_place(service):
    with service.filled(15), service.open("/v1/embeddings", {"input": ["a"] * 500}):
        service.wait_for(lambda: service.line.held() == 16)
        refused = ask(service, input="a")
        assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1


def test_a_client_that_leaves_is_noticed(service):
    service.engine.go.clear()
    try:
        connection = service.open("/v1/embeddings", {"input": ["a"] * 100})
        service.wait_for(lambda: service.engine.seen)
        connection.close()
        service.wait_for(lambda: service.engine.dropped == [service.engine.seen[0].uid])
    finally:
        service.engine.go.set()


def test_silence_is_504(start):
    service = start(REQ_TIMEOUT="1")
    service.engine.go.clear()
    answer = ask(service, input="a")
    assert (answer.status, answer.error["code"]) == (504, "request_timeout")
    service.wait_for(lambda: service.line.held() == 0)


def test_it_is_counted_and_needs_a_key(start):
    service = start(API_KEY="secret")
    assert ask(service, input="a").status == 401
    body = {"input": ["ab", "c"]}
    assert service.ask("POST", "/v1/embeddings", body, "Authorization: Bearer secret").status == 200
    metrics = service.ask("GET", "/metrics", None, "Authorization: Bearer secret").body.decode()
    counted = [line for line in metrics.splitlines() if "/v1/embeddings" in line]
    assert any("answered" in line and line.endswith(" 1.0") for line in counted), counted
    assert service.status.record.tokens().prompt == 3


def test_a_server_that_drains_is_503(start):
    service = start()
    service.line.close(ApiError(503, "The server is draining.", code="draining"))
    assert ask(service, input="a").status == 503


def test_vectors_are_written_as_they_come():
    """Each is JSON of as many digits as it has, and not of a double's."""
    text = write(np.array([1, 2, 2], dtype=np.float32), EmbeddingsRequest(["a"], 3))
    assert json.loads(text) == pytest.approx([1 / 3, 2 / 3, 2 / 3], rel=1e-7)
    assert len(text) < 3 * 13


def test_openais_client_says_what_is_wrong(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="a", dimensions=99)
    assert caught.value.param == "dimensions"
