"""What the whole front end refuses, and that what is costly comes after what is cheap."""

import contextlib
import json

import openai
import pytest

from server.protocol.client import SERVER
from server.protocol.errors import show
from server.text.stop_strings import stop_words
from tests.support.api_service import MODEL, chat, user
from tests.support.raw_http import RawClient
from tests.support.stub_engine import CONTEXT


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


@pytest.mark.parametrize("size", [CONTEXT, 4 * CONTEXT + 1])
@pytest.mark.parametrize(
    "path, field", [("/v1/responses", "input"), ("/v1/chat/completions", "messages")]
)
def test_what_is_too_long_is_named_as_its_client_names_it(service, path, field, size):
    """Before it is rendered, and after its tokens are counted."""
    text = "x" * size
    body = {field: text if field == "input" else [{"role": "user", "content": text}]}
    answer = service.ask("POST", path, body)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["param"] == field


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


def test_what_a_response_does_not_have_is_an_unknown_url(service):
    answer = service.ask("GET", "/v1/responses/resp_1/input_items")
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")
    assert "/responses/resp_1/input_items" in answer.error["message"]
    assert service.ask("GET", "/v1/responses/resp_1").error["code"] is None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/index.html", 404),
        ("POST", "/", 405),
        ("POST", "/v1/rerank", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1x/models", 404),
        ("GET", "/v1/responses/resp_1/input_items", 404),
        ("POST", "/v1/responses/resp_1/cancel", 404),
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


UNREAD = [  # heads that are refused before anything is routed, with a blank for the path
    ("POST {} HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ("POST {} HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    ("POST {} HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    ("POST {} HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    ("POST {} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ("POST {} HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    ("POST {} HTTP/1.1\r\nX: " + "a" * 70_000 + "\r\n\r\n", 431),
    ("POST {} HTTP/1.1\r\n" + "X: 1\r\n" * 200 + "\r\n", 431),
    ("POST {} HTTP/2.0\r\n\r\n", 505),
    ("POST {} HTTP/x\r\n\r\n", 400),
    ("POST {} HTTP/1.1 x\r\n\r\n", 400),
    ("BREW {} HTTP/1.1\r\n\r\n", 405),
    ("POST {} HTTP/1.1\r\nContent-Length: 1\r\nContent-Encoding: br\r\n\r\nx", 415),
    ("POST {} HTTP/1.1\r\nContent-Type: application/json\r\n\r\n", 411),
    ("GET {} HTTP/1.1\r\n\r\n", 405),
]


@pytest.mark.parametrize(("head", "status"), UNREAD)
def test_a_refusal_has_the_shape_of_its_path_however_early_it_is(service, head, status):
    for path in (
        "/v1/messages",
        "/messages/",
        "/v1/messages/count_tokens?a=b",
        "http://localhost/messages",
    ):
        answer = ask_raw(service, head.format(path))
        assert answer.status == status
        assert set(answer.json) == {"type", "error"} and answer.json["type"] == "error"
        assert set(answer.json["error"]) == {"type", "message"}
    for path in ("/v1/chat/completions", "/v1/responses", "/tokenize"):
        assert ask_raw(service, head.format(path)).error["message"]


def ask_raw(service, head: str):
    with RawClient(service.port) as client:
        return client.ask(head)


def test_an_early_refusal_says_nothing_in_the_shape_of_the_request_before_it(service):
    with RawClient(service.port) as client:
        assert client.ask("GET /v1/messages HTTP/1.1\r\nHost: localhost\r\n\r\n").json["type"]
        assert client.ask("\0\r\n\r\n").error["message"]


NO_OBJECTS = [  # bodies with a blank for an element that is no object, and its place
    ("/v1/chat/completions", {"messages": ["?"]}, "messages[0]"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": ["?"]}]}, "content[0]"),
    ("/v1/chat/completions", {"messages": user("x"), "tools": ["?"]}, "tools[0]"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "assistant", "tool_calls": ["?"]}]},
        "messages[0].tool_calls[0]",
    ),
    ("/v1/responses", {"input": ["?"]}, "input[0]"),
    ("/v1/responses", {"input": [{"role": "user", "content": ["?"]}]}, "input[0].content[0]"),
    ("/v1/responses", {"input": [{"type": "reasoning", "summary": ["?"]}]}, "input[0].summary[0]"),
    ("/v1/responses", {"input": "x", "tools": ["?"]}, "tools[0]"),
    (
        "/v1/responses",
        {"input": "x", "tools": [{"type": "namespace", "name": "n", "tools": ["?"]}]},
        "tools[0].tools[0]",
    ),
    ("/v1/messages", {"max_tokens": 5, "messages": ["?"]}, "messages[0]"),
    (
        "/v1/messages",
        {"max_tokens": 5, "messages": [{"role": "user", "content": ["?"]}]},
        "messages[0].content[0]",
    ),
    (
        "/v1/messages",
        {"max_tokens": 5, "messages": [*user("x"), {"role": "assistant", "content": ["?"]}]},
        "messages[1].content[0]",
    ),
    ("/v1/messages", {"max_tokens": 5, "messages": user("x"), "system": ["?"]}, "system[0]"),
    ("/v1/messages", {"max_tokens": 5, "messages": user("x"), "tools": ["?"]}, "tools[0]"),
]


@pytest.mark.parametrize(("path", "body", "place"), NO_OBJECTS)
def test_an_element_that_is_no_object_is_quoted_and_told_to_be_one(service, path, body, place):
    for given, quoted in (("5", "5"), ("null", "None"), ("[1]", "[1]"), ("true", "True")):
        answer = service.ask("POST", path, json.dumps(body).replace('"?"', given))
        assert answer.status == 400
        message = answer.json["error"]["message"]
        assert f"{place}': {quoted}. It must be an object" in message


@pytest.mark.parametrize(
    ("items", "left_out"),
    [
        ([{"type": "zzz"}], "items of type 'zzz' are left out"),
        ([{"type": "zzz"}, {"type": "y", "a": 1}], "items of type 'zzz', items of type 'y' are"),
        ([{"type": "reasoning", "summary": []}], ""),
        ([], ""),
    ],
)
@pytest.mark.parametrize("instructions", [None, "be brief"])
def test_input_without_a_message_is_quoted_as_it_came(service, items, left_out, instructions):
    body = {"input": items, "instructions": instructions}
    error = service.ask("POST", "/v1/responses", body).error
    assert error["param"] == "input" and left_out in error["message"]
    assert error["message"].startswith(f"Invalid value for 'input': {show(items)}. ")
    assert "at least one message" in error["message"]
