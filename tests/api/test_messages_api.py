"""POST /v1/messages and count_tokens: requests in, answers out, through the real anthropic client
too."""

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
from server.api.requests import AS_MANY_AS_FIT
from server.protocol.errors import (
    ApiError,
    bad_request,
    engine_failed,
    model_not_found,
    queue_full,
    timed_out,
    unavailable,
)
from server.protocol.requests import Format, Sampling, Served, ToolChoice
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

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD = {"name": "add", "description": "Adds.", "input_schema": SCHEMA}
HI = [{"role": "user", "content": "hi"}]
CACHE = {"type": "ephemeral"}


def request_of(**body):
    return parse({"max_tokens": 5, "messages": HI} | body, SERVED)[0]


def dialect_of() -> MessagesDialect:
    return MessagesDialect(parse({"max_tokens": 5, "messages": HI}, SERVED)[1], USAGE.prompt)


# The way in.


@pytest.mark.parametrize(
    "system, text",
    [
        ("Be brief.", "Be brief."),
        ([{"type": "text", "text": "A", "cache_control": CACHE}], "A"),
        ([{"type": "text", "text": "A"}, {"type": "text", "text": "B"}], "A\n\nB"),
        (
            [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=1a2b3;"},
                {"type": "text", "text": "You are C."},
            ],
            "You are C.",
        ),
    ],
)
def test_system_is_the_first_message(system, text):
    assert request_of(system=system).messages == [{"role": "system", "content": text}, *HI]


@pytest.mark.parametrize(
    "system",
    [None, "", [], [{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}]],
)
def test_system_of_nothing_is_no_message(system):
    assert request_of(system=system).messages == HI


def test_system_may_be_a_role():
    """Claude Code sends it so, at the start and in the middle."""
    first = {"role": "system", "content": [{"type": "text", "text": "B"}]}
    later = {"role": "system", "content": "C"}
    request = request_of(system="A", messages=[first, *HI, later])
    assert request.messages == [{"role": "system", "content": "A\n\nB"}, *HI, later]


def test_blocks_become_turns_as_templates_expect_them():
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "one"},
                {"type": "text", "text": "two", "cache_control": CACHE},
            ],
        },
        {"role": "user", "content": "three"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Adding."},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "add", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Go on."},
                {"type": "tool_result", "tool_use_id": "c1", "content": "2"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "a"}],
                },
                {"type": "tool_result", "tool_use_id": "c3"},
            ],
        },
    ]
    assert request_of(messages=messages).messages == [
        {"role": "user", "content": "one\ntwo\n\nthree"},
        {
            "role": "assistant",
            "content": "Adding.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "add", "arguments": {"a": 1}},
                },
                {"id": "c2", "type": "function", "function": {"name": "add", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "no\na"},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "user", "content": "Go on."},
    ]


def test_tools_become_chats_and_those_of_the_service_are_dropped():
    tools = [
        ADD | {"cache_control": CACHE},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "custom", "name": "f", "input_schema": {}},
    ]
    assert request_of(tools=tools).tools == [
        {
            "type": "function",
            "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA},
        },
        {"type": "function", "function": {"name": "f", "parameters": {}}},
    ]


@pytest.mark.parametrize(
    "value, choice, parallel",
    [
        (None, ToolChoice(), True),
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(), False),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice("required"), True),
        ({"type": "tool", "name": "add"}, ToolChoice("named", "add"), True),
        ({"type": "none"}, ToolChoice("none"), True),
    ],
)
def test_tool_choice(value, choice, parallel):
    request = request_of(tools=[ADD], tool_choice=value)
    assert (request.tool_choice, request.parallel_tool_calls) == (choice, parallel)


def test_limits_and_sampling():
    body = {
        "max_tokens": 9, "temperature": 0, "top_p": 0.5, "top_k": 7, "stream": True,
        "stop_sequences": ["a", "b", "a", ""],
    }  # fmt: skip
    common = request_of(**body).common
    assert common.sampling == Sampling(temperature=0, top_p=0.5, top_k=7)
    assert (common.max_tokens, common.stop, common.stream) == (9, ("a", "b"), True)


def test_the_models_own_sampling_is_the_default():
    own = Sampling(temperature=0.6, top_p=0.9, top_k=20)
    body = {"max_tokens": 5, "messages": HI}
    assert parse(body, Served("m", sampling=own))[0].common.sampling == own


def test_fields_of_the_service_are_ignored():
    request = request_of(
        context_management={"edits": []}, output_config={"task_budget": {}}, n=3, stop="x",
        metadata={"user_id": "u"}, cache_control=CACHE,
    )  # fmt: skip
    assert request == request_of()


@pytest.mark.parametrize(
    "body, variables, budget",
    [
        ({}, {}, None),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}, 0),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}, None),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"enable_thinking": True},
            1024,
        ),
        ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "xhigh"}, None),
        (
            {"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}},
            {"reasoning_effort": "low", "enable_thinking": False},
            0,
        ),
    ],
)
def test_thinking_reaches_the_template_and_has_its_budget(body, variables, budget):
    request = request_of(**body)
    assert (request.template_kwargs, request.thinking_budget) == (variables, budget)
    assert parse_count({"messages": HI} | body, SERVED).template_kwargs == variables


SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


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


@pytest.mark.parametrize(
    "tools, choice, told, mode",
    [
        ([SEARCH], {"type": "tool", "name": "web_search"}, ("web_search",), "auto"),
        ([SEARCH], {"type": "any"}, ("web_search",), "auto"),
        ([SEARCH, ADD], {"type": "any"}, ("web_search",), "required"),
        ([SEARCH, ADD], {"type": "none"}, (), "none"),
        ([{"type": "web_fetch_20250910", "name": "web_fetch"}], None, ("web_fetch",), "auto"),
        ([{"type": "bash_20250124", "name": "bash"}, ADD], None, (), "auto"),
    ],
)
def test_a_choice_of_what_nobody_can_run_forces_nothing(tools, choice, told, mode):
    body = {"max_tokens": 5, "messages": HI, "tools": tools, "tool_choice": choice}
    request, echo = parse(body, SERVED)
    assert (echo.unavailable, request.tool_choice.mode) == (told, mode)


def test_the_schema_of_an_answer_is_kept():
    asked = {"type": "json_schema", "schema": SCHEMA}
    assert request_of().format is None
    for name, body in (
        ("output_config.format.schema", {"output_config": {"format": asked}}),
        ("output_format.schema", {"output_format": asked}),
    ):
        assert request_of(**body).format == Format("json_schema", SCHEMA, field=name)


def user(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks):
    return {"messages": [*HI, {"role": "assistant", "content": list(blocks)}, *HI]}


IMAGE = {"type": "image", "source": {}}
USE = {"type": "tool_use", "id": "c", "name": "add", "input": {}}
BEGUN = [*HI, {"role": "assistant", "content": "{"}]
NO_IMAGE = "[image omitted: this model reads text only]"
NO_DOCUMENT = "[document omitted: this model reads text only]"


def document(source, **more):
    return {"type": "document", "source": source, **more}


@pytest.mark.parametrize(
    "block, text",
    [
        (IMAGE, NO_IMAGE),
        ({"type": "image"}, NO_IMAGE),
        (
            document({"type": "base64", "media_type": "application/pdf", "data": "eA=="}),
            NO_DOCUMENT,
        ),
        (document({"type": "url", "url": "http://127.0.0.1:1/x.pdf"}), NO_DOCUMENT),
        (document({"type": "file", "file_id": "file_1"}, title="T"), NO_DOCUMENT),
        (document({"type": "text", "media_type": "text/plain", "data": "It says."}), "It says."),
        (
            document({"type": "text", "data": "It says."}, title="T", context="C", citations=None),
            "T\nC\nIt says.",
        ),
        (
            document({"type": "content", "content": [{"type": "text", "text": "It"}, IMAGE]}),
            f"It\n{NO_IMAGE}",
        ),
        (document({"type": "content", "content": "It"}), "It"),
        (
            {
                "type": "search_result",
                "source": "http://x",
                "title": "T",
                "content": [{"type": "text", "text": "found"}],
            },
            "T\nhttp://x\nfound",
        ),
        ({"type": "tool_reference", "tool_name": "grep"}, "grep"),
        (
            {"type": "container_upload", "file_id": "f"},
            "[file omitted: this model reads text only]",
        ),
    ],
)
def test_what_is_no_text_leaves_words_in_its_place(block, text):
    """A 400 came again with each later turn, as an agent's history kept its screenshot."""
    before = {"type": "text", "text": "see"}
    (told,) = request_of(**user(before, block)).messages
    assert told == {"role": "user", "content": f"see\n{text}"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [before, block]}
    (told,) = request_of(**user(result)).messages
    assert told == {"role": "tool", "tool_call_id": "c", "content": f"see\n{text}"}


def test_what_others_servers_did_is_left_out_of_an_earlier_answer():
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}}
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    said_ = {"type": "text", "text": "So."}
    request = request_of(**assistant(use, result, said_, IMAGE))
    assert request.messages[1] == {"role": "assistant", "content": f"So.{NO_IMAGE}"}


@pytest.mark.parametrize(
    "body, field",
    [
        ({"max_tokens": -2}, "max_tokens"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [*HI, {"role": "assistant", "content": [USE]}]}, "messages"),
        ({"messages": BEGUN, "tools": [ADD], "tool_choice": {"type": "any"}}, "tool_choice"),
        (user({"type": "hologram"}), "messages[0].content[0].type"),
        (
            user({"type": "document", "source": {"type": "text"}}),
            "messages[0].content[0].source.data",
        ),
        (user("x"), "messages[0].content[0].type"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        (
            user({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "hologram"}]}),
            "messages[0].content[0].content[0].type",
        ),
        (assistant({"type": "hologram"}), "messages[1].content[0].type"),
        (assistant({"type": "thinking"}), "messages[1].content[0].thinking"),
        (
            assistant({"type": "tool_use", "id": "c", "name": "f", "input": "{}"}),
            "messages[1].content[0].input",
        ),
        (
            assistant({"type": "tool_use", "name": "f", "input": {}}),
            "messages[1].content[0].id",
        ),
        ({"system": 5}, "system"),
        ({"system": ["x"]}, "system[0].type"),
        ({"system": [{"type": "hologram"}]}, "system[0].type"),
        ({"system": [{"type": "text", "text": 5}]}, "system[0].text"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"tool_choice": {"type": []}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}, "tools": [ADD]}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": [ADD]}, "tool_choice.name"),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [5]}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"stream": 1}, "stream"),
    ],
)
def test_a_refusal_names_the_field(body, field):
    with pytest.raises(ApiError) as refused:
        request_of(**body)
    assert refused.value.status == 400 and refused.value.param == field


def test_an_answer_that_has_begun_is_continued():
    request = request_of(messages=BEGUN)
    assert request.continues and request.messages == BEGUN
    assert not request_of().continues


def test_a_limit_on_tokens_is_required_and_may_be_as_many_as_fit():
    for value in (-1, None):
        assert request_of(max_tokens=value).common.max_tokens == AS_MANY_AS_FIT
    with pytest.raises(ApiError) as refused:
        parse({"messages": HI}, SERVED)
    assert refused.value.param == "max_tokens" and "is required" in refused.value.message


def test_counting_needs_no_limit_and_takes_a_begun_answer():
    request = parse_count({"messages": BEGUN, "system": "S", "tools": [ADD]}, SERVED)
    assert request.continues
    called_ = [*HI, {"role": "assistant", "content": [USE]}]
    assert not parse_count({"messages": called_}, SERVED).continues
    assert [m["role"] for m in request.messages] == ["system", "user", "assistant"]
    assert request.tools[0]["function"]["name"] == "add"
    with pytest.raises(ApiError) as refused:
        parse_count({"model": "other", "messages": HI}, SERVED)
    assert refused.value.status == 404


# The way out.


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


# Through the real client.


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


ASK = {"model": "served-model", "max_tokens": 50, "messages": HI}


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
    assert gathered == whole


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
