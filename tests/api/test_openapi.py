"""The routes against their own description: whatever is sent, no 5xx, and answers as told."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.api.openapi.document import describe
from tests.support.front_end import CONTEXT, MODEL, FrontEnd
from tests.support.paths import ROOT

DESCRIPTION = describe(MODEL)
SCHEMAS = DESCRIPTION["components"]["schemas"]
POSTS = [(path, item["post"]) for path, item in DESCRIPTION["paths"].items() if "post" in item]
MINIMAL = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "hi"},
    "/responses": {"input": "hi"},
    "/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
# What no schema of single fields can say, so that a body which matches may still be refused.
BEYOND_SCHEMAS = re.compile(
    "cannot be used|refused by|token ids from 0|valid Unicode|holds no tokens|Two tools are named"
    "|in 'tools'|requires itself|maximum context length|asks for [0-9]+ choices|at least one"
    "|not the assistant's|none to be called|an array with one of|a non-empty array|nested deeper"
    r"|must not hold|JSON text|characters in all|of at most|from 1 to 4\."
)


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir)
    yield one
    one.end()


def fields_of(operation: dict) -> dict:
    schema = resolve(operation["requestBody"]["content"]["application/json"]["schema"])
    return schema.get("properties") or schema["anyOf"][0]["properties"]


def resolve(schema: dict) -> dict:
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def check(schema: dict, value: Any) -> None:
    Draft202012Validator({**schema, "components": {"schemas": SCHEMAS}}).validate(value)


# The description itself.


def test_every_route_is_described_and_nothing_else(front_end):
    described = {
        (path, method.upper())
        for path, item in DESCRIPTION["paths"].items()
        for method in item
        if method != "parameters"
    }
    routes = front_end.app._routes.items()
    known = {(path, method) for path, methods in routes for method in methods}
    by_name = {
        ("/models/{model}", "GET"),
        ("/page/{name}", "GET"),
        ("/responses/{id}", "GET"),
        ("/responses/{id}", "DELETE"),
        ("/requests/{id}", "DELETE"),
    }
    assert described == known | by_name


def test_the_server_shows_its_description(front_end):
    for prefix in ("", "/v1"):
        assert front_end.ask("GET", prefix + "/openapi.json").json == DESCRIPTION


def test_every_schema_is_one():
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DESCRIPTION)))
    assert names == set(SCHEMAS)


# Against the parsers.


@pytest.mark.parametrize(("path", "operation"), POSTS, ids=[path for path, _ in POSTS])
def test_null_is_absent_for_whatever_is_not_required(front_end, path, operation):
    fields = fields_of(operation)
    answer = front_end.ask("POST", path, dict.fromkeys(fields) | MINIMAL[path])
    assert answer.status == 200, answer.body.decode()


def numbers() -> list[tuple[str, str, dict]]:
    found = []
    for path, operation in POSTS:
        for name, schema in fields_of(operation).items():
            kind = schema.get("type")
            if {"integer", "number"} & set(kind if isinstance(kind, list) else [kind]):
                found.append((path, name, schema))
    return found


@pytest.mark.parametrize(
    ("path", "name", "schema"), numbers(), ids=[f"{path}-{name}" for path, name, _ in numbers()]
)
def test_ranges_are_those_of_the_parsers(front_end, path, name, schema):
    """Each limit is allowed, and what is just beyond is refused by name."""
    step = 1 if "integer" in schema["type"] else 0.001
    least, most = schema.get("minimum"), schema["maximum"]
    inside, outside = [most], [most + step, True, "1", [1]]
    if least is None:
        least = schema["exclusiveMinimum"]
        inside.append(least + step)
        outside.append(least)
    else:
        inside.append(least)
        outside.append(least - step)
    if step == 1:
        outside.append(0.5)
    for value in outside:
        answer = front_end.ask("POST", path, MINIMAL[path] | {name: value})
        assert answer.status == 400, (value, answer.body.decode())
        message = answer.json["error"]["message"]
        assert repr(name) in message and answer.json["error"].get("param", name) == name
    for value in inside:
        extra = {"logprobs": True} if name == "top_logprobs" else {}
        if name == "best_of":
            extra = {"n": value}
        answer = front_end.ask("POST", path, MINIMAL[path] | extra | {name: value})
        if answer.status != 200:
            assert BEYOND_SCHEMAS.search(answer.body.decode()), (value, answer.body)


# Fuzzing.


def test_whatever_is_sent_the_answer_is_as_described(pytestconfig):
    """openapi_fuzz.py, in a process of its own: its thousands of cases are made when it is
    collected, and every process of a parallel run collects everything."""
    options = ["--all", "-q", "-p", "schemathesis.pytest.plugin"]
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "tests" / "pytest.ini", *options]
    every_case = {"FUZZ_EVERY_CASE": "1"} if pytestconfig.getoption("--all") else {}
    done = subprocess.run(
        [*command, ROOT / "tests" / "api" / "openapi_fuzz.py"],
        env=os.environ | every_case, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def check_events(text: str, content: dict) -> None:
    """Every event is as described, and the stream ends as its dialect has it."""
    schema = content["text/event-stream"]["schema"]["properties"]["data"]["anyOf"][0]
    *events, rest = text.split("\n\n")
    assert rest == ""
    names, data = [], []
    for event in events:
        fields = dict(line.split(": ", 1) for line in event.split("\n"))
        names.append(fields.get("event"))
        data.append(fields["data"])
    if data[-1] == "[DONE]":
        names, data = names[:-1], data[:-1]
    else:
        assert names[-1] in (
            "response.completed", "response.incomplete", "message_stop",
        ), data[-1]  # fmt: skip
    for name, one in zip(names, map(json.loads, data), strict=True):
        assert name is None or name == one["type"]
        check(schema["contentSchema"], one)


def test_answers_to_plain_requests_are_as_described(front_end):
    """The fuzzer may go without a single one that streams, or that has log-probabilities."""
    chat = MINIMAL["/chat/completions"]
    for path, operation in POSTS:
        content = operation["responses"]["200"]["content"]
        answer = front_end.ask("POST", path, MINIMAL[path])
        assert answer.status == 200, answer.body.decode()
        check(content["application/json"]["schema"], answer.json)
        if "text/event-stream" in content:
            answer = front_end.ask("POST", path, MINIMAL[path] | {"stream": True})
            assert answer.status == 200
            check_events(answer.body.decode(), content)
    scored = [
        ("/chat/completions", chat | {"logprobs": True, "top_logprobs": 2}),
        ("/completions", {"prompt": "hi there", "logprobs": 2, "echo": True}),
    ]
    for path, body in scored:
        operation = dict(POSTS)[path]
        content = operation["responses"]["200"]["content"]
        answer = front_end.ask("POST", path, body)
        check(content["application/json"]["schema"], answer.json)
        assert answer.json["choices"][0]["logprobs"]
        answer = front_end.ask("POST", path, body | {"stream": True})
        check_events(answer.body.decode(), content)


def test_tokens_of_text_and_of_conversations_as_vllm_tells_them(front_end):
    text = "Hällo <b>world</b>"
    told = front_end.ask("POST", "/tokenize", {"prompt": text, "return_token_strs": True}).json
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == CONTEXT
    back = front_end.ask("POST", "/detokenize", {"tokens": told["tokens"]}).json
    assert back == {"prompt": text}
    # What a conversation counts is what its answer's usage says.
    chat = MINIMAL["/chat/completions"]
    whole = front_end.ask("POST", "/tokenize", chat).json
    usage = front_end.ask("POST", "/chat/completions", chat).json["usage"]
    assert whole["count"] == usage["prompt_tokens"] and whole["token_strs"] is None
    closed = front_end.ask("POST", "/tokenize", chat | {"add_generation_prompt": False}).json
    assert closed["tokens"] == whole["tokens"][: closed["count"]]
    assert closed["count"] < whole["count"]
    assert front_end.ask("POST", "/tokenize", {"prompt": ""}).json["count"] == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a"} | MINIMAL["/chat/completions"], "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", MINIMAL["/chat/completions"] | {"add_special_tokens": True},
         "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "1"}, "tokens"),
        ("/detokenize", {"tokens": [1, True]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**9]}, "tokens[0]"),
    ],
)  # fmt: skip
def test_what_cannot_be_tokens_or_text_is_refused(front_end, path, body, param):
    answer = front_end.ask("POST", path, body)
    assert answer.status == 400 and answer.json["error"]["param"] == param


@pytest.mark.parametrize("token", [-1, -(10**30), "vocab", 2**31, 10**30, 1.5, "a", True])
def test_whatever_is_no_token_is_told_the_same_range(front_end, token):
    vocab = front_end.prompts.vocab
    body = {"tokens": [0, vocab if token == "vocab" else token]}
    error = front_end.ask("POST", "/detokenize", body).json["error"]
    assert error["param"] == "tokens[1]"
    assert f"one of the token ids from 0 to {vocab - 1}" in error["message"]
    assert front_end.ask("POST", "/detokenize", {"tokens": [vocab - 1]}).status == 200
