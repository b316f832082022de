"""What a request can cost before it has a place: every field of every route, as large as it goes.

The table in docs/operations.md says the same in words. Costs are counted where they can be; CPU
time is that of the request's own thread, with a bound far above what it takes.
"""

import json
import time

import pytest

from server.api.dialects.turns import Conversation
from server.api.fields import read, record
from server.api.json_limits import MAX_VALUES
from server.api.requests import (
    MAX_CHOICES,
    MAX_STOP_CHARS_IN_ALL,
    MAX_STOP_STRINGS,
    MAX_TOKEN_IDS,
    MAX_TOOLS,
    MAX_TURNS,
    STOP,
)
from server.protocol.errors import ApiError
from tests.api.test_openapi import MINIMAL, POSTS, fields_of
from tests.support.front_end import MODEL, FrontEnd
from tests.support.raw_http import RawClient, request

CPU_S = 6.0  # of a request's thread, in all; the worst takes a tenth
ANSWER_BYTES = 2000  # of a refusal, whatever was sent
FIELDS = [(path, name) for path, operation in POSTS for name in fields_of(operation)]
# Too large for any field, in the two ways that cost most: text, and things in a list.
TEXT = '"' + "a," * 2**20 + '"'
LIST = "[" + "{}," * 200_000 + "{}]"


class Watched(FrontEnd):
    """cpu: seconds of each request's thread."""

    def __init__(self, model_dir) -> None:
        super().__init__(model_dir)
        self.cpu: list[float] = []

        def timed(exchange) -> None:
            began = time.thread_time()
            try:
                self.app(exchange)
            finally:
                self.cpu.append(time.thread_time() - began)

        self.server.app = timed

    def send(self, path: str, body: str):
        """The answer, which must come, be short if it is a refusal, and have cost little."""
        self.cpu.clear()
        with RawClient(self.server.port) as client:
            answer = client.ask(request("POST", path, body))
        assert answer.status in (200, 400, 404, 413, 429), answer.body[:500]
        assert answer.status == 200 or len(answer.body) < ANSWER_BYTES
        assert sum(self.cpu) < CPU_S
        return answer


@pytest.fixture(scope="module")
def watched(demo_model_dir):
    one = Watched(demo_model_dir)
    yield one
    one.prompts.close()
    one.end()


def with_field(path: str, name: str, text: str) -> str:
    rest = json.dumps({k: v for k, v in MINIMAL[path].items() if k != name} | {"max_tokens": 1})
    return f"{{{rest[1:-1]}, {json.dumps(name)}: {text}}}"


@pytest.mark.parametrize(("path", "name"), FIELDS, ids=[f"{p}-{n}" for p, n in FIELDS])
def test_a_field_far_too_large_costs_little_and_does_not_come_back(watched, path, name):
    for text in (TEXT, LIST):
        watched.send(path, with_field(path, name, text))


def test_all_routes_with_a_body_were_tried():
    assert {path for path, _ in FIELDS} == set(MINIMAL)


METADATA = {f"k{i}": "v" * 512 for i in range(16)}
BLOCKS = {"role": "assistant", "content": [{"type": "text", "text": "a"}] * 100_000}
HI = [{"role": "user", "content": "hi"}]
PROPERTIES = {f"p{i}": {"type": "string"} for i in range(50)}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def functions(count: int) -> list[dict]:
    return [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object"}}}
        for i in range(count)
    ]


# The most of each that is taken, or as near to it as the context of 2,048 tokens lets it be. Not
# made before it is used, where that takes long: every process of a parallel run reads this.
LARGEST = {
    "n": ("/completions", {"prompt": "hi", "n": 16}, 200),
    "n x prompts": ("/completions", {"prompt": ["hi"] * 128, "n": MAX_CHOICES}, 400),
    "prompts": ("/completions", {"prompt": ["hi"] * 16}, 200),
    "ids": ("/completions", {"prompt": [[5] * 2000] * 16, "max_tokens": 1}, 200),
    "a long prompt": ("/completions", {"prompt": "#" * 80 * 2000, "max_tokens": 1}, None),
    "stop": (
        "/chat/completions",
        {"messages": HI, "n": 16, "stop": [f"{i:02}" + "a" * 62 for i in range(64)]},
        200,
    ),
    "stop_token_ids": (
        "/chat/completions",
        {"messages": HI, "stop_token_ids": list(range(100, 100 + MAX_TOKEN_IDS))},
        200,
    ),
    "logit_bias": (
        "/chat/completions",
        {"messages": HI, "n": 16, "logit_bias": {str(i): 1 for i in range(MAX_TOKEN_IDS)}},
        200,
    ),
    "messages": ("/chat/completions", {"messages": HI * MAX_TURNS}, 400),
    "calls": (
        "/chat/completions",
        {"messages": [*HI, {"role": "assistant", "tool_calls": [CALL] * 50_000}]},
        400,
    ),
    "parts": (
        "/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]},
        200,
    ),
    "tools": ("/chat/completions", {"messages": HI, "tools": functions(MAX_TOOLS)}, None),
    "too many tools": (
        "/chat/completions", lambda: {"messages": HI, "tools": functions(100_000)}, 400,
    ),
    "schema": (
        "/chat/completions",
        {
            "messages": HI,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "object", "properties": PROPERTIES}},
            },
        },
        200,
    ),
    "template variables": (
        "/chat/completions",
        lambda: {"messages": HI, "chat_template_kwargs": {f"k{i}": [1] * 10 for i in range(10**4)}},
        None,
    ),
    "items": ("/responses", {"input": HI * MAX_TURNS}, None),
    "items of one turn": ("/responses", {"input": HI[:1] * (MAX_TURNS + 1)}, 400),
    "metadata": ("/responses", {"input": "hi", "metadata": METADATA}, 200),
    "too much metadata": ("/responses", {"input": "hi", "metadata": {"k" * 10**6: "v"}}, 400),
    "allowed tools": (
        "/responses",
        {
            "input": "hi",
            "tools": [{"type": "function", "name": f"f{i}"} for i in range(MAX_TOOLS)],
            "tool_choice": {
                "type": "allowed_tools", "mode": "auto", "tools": [{"name": "x"}] * 100_000,
            },
        },
        400,
    ),
    "blocks": ("/messages", {"max_tokens": 1, "messages": [*HI, BLOCKS, *HI]}, 400),
    "text to tokenize": ("/tokenize", {"prompt": "#" * 80 * 2048, "return_token_strs": True}, 200),
    "ids to text": ("/detokenize", {"tokens": [5] * 2**16}, 200),
    "values": ("/completions", {"prompt": "hi", "x": [0] * (MAX_VALUES - 100)}, 200),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_that_is_taken_costs_little(watched, name):
    path, body, status = LARGEST[name]
    body = body() if callable(body) else body
    answer = watched.send(path, json.dumps({"model": MODEL} | body))
    assert status is None or answer.status == status, answer.body[:500]


def test_a_turn_of_many_items_is_copied_once():
    """Each text was appended to a growing one: gigabytes were copied for a body of megabytes."""
    talk = Conversation()
    for _ in range(1000):
        talk.say("user", "a")
        talk.think("b")
        talk.say("assistant", "c")
    first = talk.turns
    assert first[0] == {"role": "user", "content": "a"} and len(first) == 2000
    pieces = Conversation()
    for text in ("", "a", "", "b"):
        pieces.say("user", text)
    assert pieces.turns == [{"role": "user", "content": "a\n\n\n\nb"}]


def test_stop_strings_have_a_limit_in_all():
    most = ["a" * 1024] * 4
    body = record({"stop": STOP})
    assert read(body, {"stop": most}) == {"stop": ("a" * 1024,)}
    for value in ([*most, "a"], [f"{i:02}" + "a" * 63 for i in range(MAX_STOP_STRINGS)]):
        with pytest.raises(ApiError) as caught:
            read(body, {"stop": value})
        assert caught.value.param == "stop"
        assert f"{MAX_STOP_CHARS_IN_ALL} characters in all" in caught.value.message
