"""Anthropic's Messages API: what its answers look like, also to its real client."""

from functools import cache

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter

from server.api.dialects.messages import (
    MessagesDialect,
    count,
    error_body,
    parse,
    parse_count,
)
from server.protocol.errors import (
    ApiError,
    bad_request,
    engine_failed,
    model_not_found,
    queue_full,
    timed_out,
    unavailable,
)
from tests.support.messages_bodies import ADD, ASK, HI, SEARCH, dialect_of, user
from tests.support.played import (
    SCRIPTS,
    SERVED,
    USAGE,
    Refused,
    called,
    ended,
    playing,
    said,
    stream_of,
    whole_of,
)


@cache
def adapter() -> TypeAdapter:
    """The SDK's type of an event; slow to make."""
    return TypeAdapter(RawMessageStreamEvent)


def short(events) -> list[str]:
    """Each event's type, for a block's also the kind of block or delta and its place."""
    names = []
    for _, data in events:
        inner = data.get("content_block") or data.get("delta") or {}
        kind = inner.get("type")
        words = [data["type"].removeprefix("content_block_"), kind, data.get("index")]
        names.append(" ".join(str(word) for word in words if word is not None))
    return names


@pytest.mark.parametrize(
    "script, blocks",
    [
        ("text", ["start text 0", "delta text_delta 0", "delta text_delta 0", "stop 0"]),
        ("nothing", ["start text 0", "stop 0"]),
        (
            "reasoning then text",
            ["start thinking 0", "delta thinking_delta 0", "delta thinking_delta 0"]
            + ["delta signature_delta 0", "stop 0"]
            + ["start text 1", "delta text_delta 1", "stop 1"],
        ),
        (
            "one call",
            ["start tool_use 0", "delta input_json_delta 0", "delta input_json_delta 0", "stop 0"],
        ),
        (
            "two calls",
            ["start tool_use 0", "delta input_json_delta 0", "stop 0"]
            + ["start tool_use 1", "delta input_json_delta 1", "stop 1"],
        ),
        (
            "text then call",
            ["start thinking 0", "delta thinking_delta 0", "delta signature_delta 0", "stop 0"]
            + ["start text 1", "delta text_delta 1", "stop 1"]
            + ["start tool_use 2", "delta input_json_delta 2", "stop 2"],
        ),
        ("cut in text", ["start text 0", "delta text_delta 0", "stop 0"]),
    ],
)
def test_order_of_events(script, blocks):
    events = stream_of(dialect_of(), SCRIPTS[script])
    assert short(events) == ["message_start", "ping", *blocks, "message_delta", "message_stop"]


@pytest.mark.parametrize(
    "script, reason, sequence",
    [
        ("text", "end_turn", None),
        ("cut in text", "max_tokens", None),
        ("two calls", "tool_use", None),
        ("stop string", "stop_sequence", "three"),
    ],
)
def test_stop_reasons(script, reason, sequence):
    told = {"stop_reason": reason, "stop_sequence": sequence}
    assert stream_of(dialect_of(), SCRIPTS[script])[-2][1]["delta"] == told
    message = whole_of(dialect_of(), SCRIPTS[script])
    assert {name: message[name] for name in told} == told


def test_usage_tells_cached_tokens_apart_and_adds_up_to_the_prompt():
    dialect = dialect_of()
    events = [data for _, data in stream_of(dialect, SCRIPTS["text"])]
    assert events[0]["message"]["usage"] == {
        "input_tokens": 11,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    assert events[-2]["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 7,
        "accepted_prediction_tokens": 2,
        "rejected_prediction_tokens": 1,
    }
    assert dialect.whole(USAGE)["usage"] == events[-2]["usage"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_events_are_named_and_typed(script):
    for name, data in stream_of(dialect_of(), SCRIPTS[script]):
        assert name == data["type"]
        if name != "ping":
            adapter().validate_python(data)
    Message.model_validate(whole_of(dialect_of(), SCRIPTS[script]))


def test_a_call_that_was_cut_has_an_empty_input():
    pieces = [called(0, '{"a": 1, "b', name="add"), ended("length")]
    message = whole_of(dialect_of(), pieces)
    assert message["content"][0]["input"] == {} and message["stop_reason"] == "max_tokens"


def test_failure_in_the_middle_is_an_error_event_and_no_end():
    dialect = dialect_of()
    events = [*dialect.opening(), *dialect.piece(said("Hel")), *dialect.failed(engine_failed("x"))]
    told = {"type": "error", "error": {"type": "api_error", "message": "x"}}
    assert events[-1] == ("error", told)
    assert "message_stop" not in short(events)


@pytest.mark.parametrize(
    "error, type",
    [
        (bad_request("x"), "invalid_request_error"),
        (ApiError(401, "x"), "authentication_error"),
        (ApiError(403, "x"), "permission_error"),
        (model_not_found("a", "b"), "not_found_error"),
        (ApiError(405, "x"), "invalid_request_error"),
        (queue_full(1, 2, 3), "rate_limit_error"),
        (engine_failed("x"), "api_error"),
        (unavailable("x", "loading"), "overloaded_error"),
        (timed_out(3), "timeout_error"),
    ],
)
def test_error_types_by_status(error, type):
    body = dialect_of().error_body(error)
    assert body == {"type": "error", "error": {"type": type, "message": error.message}}
    assert ErrorResponse.model_validate(body).error.type == type
    assert error_body(error) == body


@pytest.fixture
def client():
    """The client, and a function that sets what it will be answered."""
    script = []

    def reply(path, body):
        try:
            if path == "/v1/messages/count_tokens":
                return count(len(parse_count(body, SERVED).messages))
            assert path == "/v1/messages"
            request, echo = parse(body, SERVED)
        except ApiError as error:
            raise Refused(error, error_body(error)) from None
        dialect = MessagesDialect(echo, USAGE.prompt)
        if not request.common.stream:
            return whole_of(dialect, script)
        events = list(dialect.opening())
        for step in script:
            if isinstance(step, ApiError):
                return events + dialect.failed(step)
            events += dialect.piece(step)
        return events + dialect.closing(USAGE)

    with playing(reply) as url:
        made = Anthropic(base_url=url, api_key="none", max_retries=0)
        yield made, lambda pieces: script.__setitem__(slice(None), pieces)
        made.close()


def test_client_reads_a_whole_answer(client):
    api, play = client
    play(SCRIPTS["text"])
    message = api.messages.create(**ASK)
    assert message.content[0].text == "Hello" and message.model == "served-model"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (7, 4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_client_gathers_the_same_message_from_the_stream(client, script):
    api, play = client
    play(SCRIPTS[script])
    whole = api.messages.create(**ASK).to_dict()
    with api.messages.stream(**ASK) as stream:
        gathered = stream.get_final_message().to_dict()
    whole.pop("id"), gathered.pop("id")
    for block in gathered["content"]:
        block.pop("parsed_output", None)  # the SDK's own
    gathered.pop("stop_details", None), whole.pop("stop_details", None)
    # Of a usage it gathers what it knows.
    drafts = [whole["usage"].pop(f"{kind}_prediction_tokens") for kind in ("accepted", "rejected")]
    assert gathered == whole and drafts == [2, 1]


def test_client_streams_text(client):
    api, play = client
    play(SCRIPTS["reasoning then text"])
    with api.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == "\n\nSo"


def test_client_uses_a_tool_and_sends_the_result_back(client):
    api, play = client
    play(SCRIPTS["text then call"])
    first = api.messages.create(**ASK, tools=[ADD], tool_choice={"type": "any"})
    use = first.content[-1]
    assert (use.type, use.name, use.input) == ("tool_use", "add", {"a": 1})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "2"}
    play(SCRIPTS["text"])
    turns = [
        *HI,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    message = api.messages.create(**ASK | {"messages": turns}, tools=[ADD])
    assert message.content[0].text == "Hello"


def test_client_counts_tokens(client):
    api, _ = client
    counted = api.messages.count_tokens(model="served-model", messages=HI, system="S")
    assert counted.input_tokens == 2


def test_client_raises_the_failure_of_a_stream(client):
    api, play = client
    play([said("Hel"), engine_failed("boom")])
    with pytest.raises(anthropic.APIStatusError) as failed, api.messages.stream(**ASK) as stream:
        stream.get_final_message()
    assert failed.value.type == "api_error" and "boom" in str(failed.value)


def test_client_raises_what_was_refused(client):
    api, _ = client
    with pytest.raises(anthropic.BadRequestError) as refused:
        api.messages.create(**ASK | {"messages": user({"type": "hologram"})["messages"]})
    assert refused.value.type == "invalid_request_error"
    assert "messages[0].content[0].type" in str(refused.value)
    with pytest.raises(anthropic.NotFoundError) as missing:
        api.messages.create(**ASK | {"model": "other"})
    assert missing.value.type == "not_found_error"


def test_a_tool_that_nobody_can_run_is_told_to_model_and_client(client):
    """The client showed what the model had invented as what was found."""
    api, play = client
    asked = ASK | {"tools": [SEARCH, ADD]}
    for stream in (False, True):
        play(SCRIPTS["text then call"])
        if stream:
            with api.messages.stream(**asked) as events:
                answer = events.get_final_message()
        else:
            answer = api.messages.create(**asked)
        use, result, *rest = answer.content
        assert (use.type, use.name, result.tool_use_id) == ("server_tool_use", "web_search", use.id)
        assert result.type == "web_search_tool_result"
        assert result.content.error_code == "unavailable"
        assert [block.type for block in rest] == ["thinking", "text", "tool_use"]
        assert rest[-1].input == {"a": 1}
    request, echo = parse({**asked, "system": "S"}, SERVED)
    system = request.messages[0]["content"]
    assert system.startswith("S\n\nThis server cannot run web_search.")
    assert [tool["function"]["name"] for tool in request.tools] == ["add"]
    assert echo.unavailable == ("web_search",)
    # Once a conversation, but to the model the same each time: its prompt must not change.
    later = [*HI, {"role": "assistant", "content": [b.to_dict() for b in answer.content]}, *HI]
    request, echo = parse({**asked, "system": "S", "messages": later}, SERVED)
    assert echo.unavailable == () and request.messages[0]["content"] == system
