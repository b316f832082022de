"""What clients were seen to send: the server takes it, and docs/api.md says what becomes of it."""

import json
from http.client import HTTPMessage

import pytest

from server.protocol.errors import ApiError
from server.transport.exchange import Exchange
from tests.support.field_fates import (
    PARSERS,
    clients,
    fate_table,
    fates_in,
    header_lines,
    parsed,
    recordings,
)
from tests.support.fields_seen import Recording, check_kept, kept_of, paths_of, shape_of
from tests.support.front_end import FrontEnd
from tests.support.paths import ROOT

API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
HOW = "python -m tests.support.field_fates prints what should stand in docs/api.md"
RECORDED = {one.client: one for one in recordings()}
USER = [{"role": "user", "content": "x"}]


# It sends all that was said instead when it is told so.
REFUSED = {"anthropic (Python)": {"thread.type", "thread.previous_message_id"}}


@pytest.mark.parametrize("client", RECORDED)
def test_what_a_client_sends_is_taken(client):
    refused = {
        field
        for route, bodies in RECORDED[client].bodies.items()
        for body in bodies
        for field, told in fates_in(route, body).items()
        if told == "refused"
    }
    assert refused == REFUSED.get(client, set())


@pytest.mark.parametrize("route", PARSERS)
def test_api_md_says_what_becomes_of_each_field(route):
    assert fate_table(route) + "\n\n" in API, HOW


def test_api_md_says_who_was_recorded():
    assert f"\n{clients()}.\n" in API, HOW


def test_api_md_says_which_headers_are_read(demo_model_dir, monkeypatch):
    """With all that clients send: the server reads a name if it looks it up."""
    read: set[str] = set()

    class Headers(HTTPMessage):
        def __getitem__(self, name):
            read.add(name.lower())
            return super().__getitem__(name)

        def __contains__(self, name):
            read.add(name.lower())
            return super().__contains__(name)

        def get(self, name, *default):
            read.add(name.lower())
            return super().get(name, *default)

        def get_all(self, name, *default):
            read.add(name.lower())
            return super().get_all(name, *default)

    monkeypatch.setattr(Exchange, "MessageClass", Headers)
    front = FrontEnd(demo_model_dir, API_KEY="right")
    theirs = {"authorization", "x-api-key", "host", "content-length", "connection"}
    others = {name for one in RECORDED.values() for name in one.headers} - theirs
    try:
        for key in ("Authorization: Bearer right", "x-api-key: right"):
            lines = [f"{name}: application/json" for name in sorted(others)]
            answer = front.ask("POST", "/v1/chat/completions", {"messages": USER}, key, *lines)
            assert answer.status == 200
    finally:
        front.end()
    assert f"\n{header_lines(read)}\n" in API, HOW + f"\n{header_lines(read)}"


# That the recordings and the tables tell the truth.


def test_a_field_is_honoured_if_it_changes_what_is_asked_for():
    body = {
        "messages": USER,
        "temperature": 0.5,
        "user": "x",
        "metadata": {"a": "b"},
        "add_generation_prompt": True,
        "functions": [{"name": "x"}],
        "tools": [{"type": "function", "function": {"name": "x", "parameters": {}}}],
    }
    found = fates_in("/v1/chat/completions", body)
    assert found["functions[].name"] == "refused"
    ignored = {field for field, told in found.items() if told == "ignored"}
    assert ignored == {"user", "metadata", "add_generation_prompt"}
    assert found["tools[function].function.parameters"] == "honoured"


def test_a_shape_has_the_words_of_the_api_and_none_of_the_clients():
    call = {"name": "bash", "arguments": '{"cmd": "rm"}'}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"properties": {"cmd": {}}}}}
        for name in ("bash", "read")
    ]
    strict = {"type": "function", "function": {"name": "edit", "strict": True}}
    shape = shape_of(
        {
            "model": "secret",
            "reasoning_effort": "high",
            "messages": [
                {"role": "user", "content": "secret"},
                {"role": "user", "content": "another"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
            ],
            "tools": [*tools, strict],
            "stop": ["secret"],
        }
    )
    assert not any(word in json.dumps(shape) for word in ("secret", "another", "bash", "rm", "cmd"))
    assert [turn["role"] for turn in shape["messages"]] == ["user", "assistant"]
    assert [tool["function"]["name"] for tool in shape["tools"]] == ["x", "x1"]
    assert not isinstance(parsed("/v1/chat/completions", shape), ApiError)
    assert {path for path, _ in paths_of(shape)} == {
        "model",
        "reasoning_effort",
        "messages[user].role",
        "messages[user].content",
        "messages[assistant].role",
        "messages[assistant].content",
        "messages[assistant].tool_calls[].function.name",
        "messages[assistant].tool_calls[].function.arguments",
        "tools[function].type",
        "tools[function].function.name",
        "tools[function].function.parameters",
        "tools[function].function.strict",
        "stop",
    }


def test_what_is_not_kept_of_a_client_is_told_and_can_be_added(tmp_path, monkeypatch):
    recording = Recording()
    recording.headers = {"accept"}
    recording.bodies["/v1/responses"] = [{"input": "x", "model": "y"}, {"input": "z"}]
    with pytest.raises(AssertionError, match=r"'/v1/responses input'.*'accept'"):
        check_kept("a client", [recording], folder=tmp_path)
    monkeypatch.setenv("FIELDS_SEEN", "write")
    check_kept("a client", [recording], "1.0", folder=tmp_path)
    monkeypatch.delenv("FIELDS_SEEN")
    check_kept("a client", [recording], folder=tmp_path)
    kept = kept_of("a client", tmp_path)
    assert kept["bodies"] == {"/v1/responses": [{"input": "x", "model": "x"}]}
    assert kept["version"] == "1.0"
