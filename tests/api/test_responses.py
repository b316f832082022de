"""POST /v1/responses: requests in, answers out, and both through the real openai client."""

from functools import cache

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from server.api.dialects import responses
from server.api.dialects.responses import ResponsesDialect, parse
from server.protocol.errors import ApiError, engine_failed, queue_full
from server.protocol.requests import Format, Served, ToolChoice
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

ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def request_of(**body):
    return parse({"input": "hi"} | body, SERVED)[0]


def dialect_of(**body) -> ResponsesDialect:
    return ResponsesDialect(parse({"input": "hi"} | body, SERVED)[1])


# The way in.


def test_text_is_a_user_message_after_the_instructions():
    assert request_of(instructions="Be brief.").messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


def test_items_become_turns_as_templates_expect_them():
    """codex's history: a developer message, context, a thought, a call, its result."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in ("one", "two")]},
        {"type": "message", "role": "user", "content": "three"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Add them."}],
            "encrypted_content": None,
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Adding."}],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{broken"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "no"}],
        },
    ]
    assert request_of(instructions="I", input=items).messages == [
        {"role": "system", "content": "I\n\nD"},
        {"role": "user", "content": "one\ntwo\n\nthree"},
        {
            "role": "assistant",
            "content": "Adding.",
            "reasoning_content": "Add them.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "add", "arguments": {"a": 1}},
                },
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "add", "arguments": "{broken"},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "no"},
    ]


def test_a_call_before_any_text_makes_an_assistant_turn_of_its_own():
    items = [
        {"role": "user", "content": "x"},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": ""},
        {"type": "function_call_output", "call_id": "c", "output": "noon"},
    ]
    turn = request_of(input=items).messages[1]
    assert turn["role"] == "assistant" and turn["content"] == ""
    assert turn["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_a_later_developer_message_stays_where_it_is():
    items = [{"role": "user", "content": "x"}, {"role": "developer", "content": "y"}]
    assert [m["role"] for m in request_of(input=items).messages] == ["user", "developer"]


def test_flat_tools_become_chats_and_unknown_ones_are_left_out():
    tools = [ADD, {"type": "web_search"}, {"type": ["what"]}]
    request = request_of(tools=tools)
    assert request.tools == [
        {"type": "function", "function": {k: ADD[k] for k in ADD if k != "type"}}
    ]


@pytest.mark.parametrize(
    "value, choice",
    [
        (None, ToolChoice()),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "add"}, ToolChoice("named", "add")),
    ],
)
def test_tool_choice(value, choice):
    assert request_of(tools=[ADD], tool_choice=value).tool_choice == choice


def test_allowed_tools_leave_the_others_out():
    other = ADD | {"name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "x", "name": "add"}]}
    request = request_of(tools=[ADD, other], tool_choice=choice)
    assert [tool["function"]["name"] for tool in request.tools] == ["add"]
    assert request.tool_choice == ToolChoice("required")


def test_text_format():
    schema = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    assert request_of(text={"format": schema}).format == Format(
        "json_schema", SCHEMA, True, "text.format"
    )
    assert request_of(text={"format": {"type": "json_object"}}).format == Format(
        "json_object", field="text.format"
    )
    for text in (None, {}, {"verbosity": "low"}, {"format": None}, {"format": {"type": "text"}}):
        assert request_of(text=text).format is None


def test_limits_sampling_and_effort():
    request = request_of(
        max_output_tokens=9, temperature=0, top_p=0.5, reasoning={"effort": "low"}, stream=True,
        stop=["a", "b", "a"],
    )  # fmt: skip
    assert request.common.stop == ("a", "b")
    assert request.common.max_tokens == 9 and request.common.stream
    assert (request.common.sampling.temperature, request.common.sampling.top_p) == (0, 0.5)
    assert request.template_kwargs == {"reasoning_effort": "low"}
    assert request_of(parallel_tool_calls=False).parallel_tool_calls is False
    assert request_of(parallel_tool_calls=None).parallel_tool_calls is True


def test_fields_of_other_services_are_ignored():
    request = request_of(
        include=["reasoning.encrypted_content"], service_tier="auto", n=3,
        prompt_cache_key="k", truncation="auto", user="u", max_tokens=4,
    )  # fmt: skip
    assert request == request_of()


def test_what_is_no_text_leaves_words_in_its_place():
    image = [{"type": "input_image", "image_url": "data:image/png;base64,eA=="}]
    output = {"type": "function_call_output", "call_id": "c", "output": image}
    turns = request_of(input=[{"role": "user", "content": image}, output]).messages
    assert [turn["content"] for turn in turns] == [
        "[image omitted: this model reads text only]"
    ] * 2


SHELL_OUTPUT = {"type": "shell_call_output", "call_id": "1"}
NO_TEXT = {"type": "function", "name": "\ud800"}


@pytest.mark.parametrize(
    "body, field",
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "\ud800"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "hologram"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
        ),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input"),
        ({"input": [{"type": ["x"]}]}, "input"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "x"}]}, "input[0].input"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"previous_response_id": 1}, "previous_response_id"),
        ({"store": "yes"}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{"type": "function", "name": "f", "strict": 1}]}, "tools[0].strict"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "none"}}, "tool_choice.mode"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": 1}},
            "tool_choice.tools",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
            "tool_choice.tools",
        ),
        (
            {
                "tools": [ADD],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"name": "x"}],
                },
            },
            "tool_choice.tools",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"text": []}, "text"),
        ({"text": {"format": "json"}}, "text.format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}, "strict": "y"}}},
            "text.format.strict",
        ),
        ({"reasoning": "low"}, "reasoning"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {"\ud800": "x"}}, "metadata"),
        (
            {"input": [SHELL_OUTPUT | {"output": [{"stdout": "\ud800"}]}]},
            "input[0].output[0].stdout",
        ),
        (
            {"input": [{"type": "tool_search_output", "call_id": "c", "tools": [NO_TEXT]}]},
            "input[0].tools[0].name",
        ),
        (
            {"input": [{"type": "shell_call", "call_id": "c", "action": {"commands": ["\ud800"]}}]},
            "input[0].action.commands[0]",
        ),
        (
            {
                "input": [
                    {
                        "type": "function_call",
                        "call_id": "c",
                        "name": "f",
                        "arguments": '{"a": [{"\\ud800": 1}]}',
                    }
                ]
            },
            "input[0].arguments",
        ),
        (
            {
                "input": [
                    {
                        "type": "function_call",
                        "call_id": "c",
                        "name": "f",
                        "arguments": '["\\ud800"]',
                    }
                ]
            },
            "input[0].arguments",
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {"\udfff": 1}}]},
            "tools[0].parameters",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [NO_TEXT]}},
            "tool_choice.tools[0].name",
        ),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_refusal_names_the_field(body, field):
    with pytest.raises(ApiError) as refused:
        request_of(**body)
    assert refused.value.status == 400 and refused.value.param == field


def test_an_unknown_model_is_not_found():
    with pytest.raises(ApiError) as refused:
        request_of(model="other")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


# The way out.


@cache
def adapter() -> TypeAdapter:
    """The SDK's type of an event; slow to make."""
    return TypeAdapter(ResponseStreamEvent)


def types_of(events) -> list[str]:
    return [data["type"].removeprefix("response.") for _, data in events]


MESSAGE = (
    ("output_item.added", "content_part.added"),
    (
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ),
)
REASONING = MESSAGE[0], ("reasoning_text.done", *MESSAGE[1][1:])
CALL = ("output_item.added",), ("function_call_arguments.done", "output_item.done")


def item(kind, delta: str, deltas: int) -> list[str]:
    return [*kind[0], *[f"{delta}.delta"] * deltas, *kind[1]]


@pytest.mark.parametrize(
    "script, items, last",
    [
        ("text", item(MESSAGE, "output_text", 2), "completed"),
        ("nothing", item(MESSAGE, "output_text", 0), "completed"),
        (
            "reasoning then text",
            item(REASONING, "reasoning_text", 2) + item(MESSAGE, "output_text", 1),
            "completed",
        ),
        ("one call", item(CALL, "function_call_arguments", 2), "completed"),
        ("two calls", item(CALL, "function_call_arguments", 1) * 2, "completed"),
        (
            "text then call",
            item(REASONING, "reasoning_text", 1)
            + item(MESSAGE, "output_text", 1)
            + item(CALL, "function_call_arguments", 1),
            "completed",
        ),
        ("cut in text", item(MESSAGE, "output_text", 1), "incomplete"),
        ("cut in reasoning", item(REASONING, "reasoning_text", 1), "incomplete"),
    ],
)
def test_order_of_events(script, items, last):
    events = stream_of(dialect_of(), SCRIPTS[script])
    assert types_of(events) == ["created", "in_progress", *items, last]


@pytest.mark.parametrize("script", SCRIPTS)
def test_events_are_numbered_named_and_typed(script):
    events = stream_of(dialect_of(tools=[ADD]), SCRIPTS[script])
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    for _, data in events:
        event = adapter().validate_python(data)
        assert event.type == data["type"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_stream_folds_to_the_whole(script):
    dialect = dialect_of(metadata={"k": "v"})
    events = [data for _, data in stream_of(dialect, SCRIPTS[script])]
    assert events[-1]["response"] == dialect.whole(USAGE)
    output = [data["item"] for data in events if data["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == output
    for i, told in enumerate(output):
        grown = "".join(d["delta"] for d in events if d.get("output_index") == i and "delta" in d)
        assert grown == (told["arguments"] if "arguments" in told else told["content"][0]["text"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_whole_does_not_depend_on_streaming(script):
    streamed, plain = dialect_of(), dialect_of()
    stream_of(streamed, SCRIPTS[script])
    a, b = streamed.whole(USAGE), whole_of(plain, SCRIPTS[script])
    for response in (a, b):
        Response.model_validate(response)
        for item_ in [response, *response["output"]]:
            item_["id"] = item_["id"].split("_")[0]
        response["created_at"] = response["completed_at"] = 0
    assert a == b


def test_the_response_says_what_was_asked_for():
    text = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": None}}
    body = {
        "model": "nickname", "instructions": "I", "tools": [ADD, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "add"}, "text": text, "metadata": {"k": "v"},
        "max_output_tokens": 5, "reasoning": {"effort": "low"}, "parallel_tool_calls": False,
    }  # fmt: skip
    served = Served("served-model", ("nickname",))
    response = whole_of(ResponsesDialect(parse(body | {"input": "x"}, served)[1]), SCRIPTS["text"])
    assert {name: response[name] for name in (*body, "temperature", "top_p")} == body | {
        "tools": [ADD],
        "text": {"format": text["format"] | {"strict": False}},
        "reasoning": {"effort": "low", "summary": None},
        "temperature": 1.0,
        "top_p": 1.0,
    }
    Response.model_validate(response)


def test_usage_counts_cached_and_reasoning_tokens():
    assert whole_of(dialect_of(), SCRIPTS["text"])["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {
            "reasoning_tokens": 3,
            "accepted_prediction_tokens": 2,
            "rejected_prediction_tokens": 1,
        },
        "total_tokens": 18,
    }


def test_a_cut_answer_is_incomplete_with_the_reason():
    response = whole_of(dialect_of(), SCRIPTS["cut in text"])
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    "error, code",
    [
        (engine_failed("boom"), "server_error"),
        (queue_full(1, 2, 3), "rate_limit_exceeded"),
        (ApiError(400, "bad"), "invalid_prompt"),
    ],
)
def test_failure_in_the_middle_ends_with_response_failed(error, code):
    dialect = dialect_of()
    events = [*dialect.opening(), *dialect.piece(said("Hel")), *dialect.failed(error)]
    assert types_of(events)[-2:] == ["output_text.delta", "failed"]
    response = Response.model_validate(events[-1][1]["response"])
    assert (response.status, response.error.code) == ("failed", code)
    assert response.error.message == error.message and response.output_text == "Hel"


def test_failure_before_the_first_token_still_opens_the_stream():
    """SDKs take no event before response.created; pings may have begun the stream without it."""
    events = dialect_of().failed(engine_failed("boom"))
    assert types_of(events) == ["created", "in_progress", "failed"]
    assert [data["sequence_number"] for _, data in events] == [0, 1, 2]


# Through the real client.


@pytest.fixture
def client():
    """The client, and a function that sets what it will be answered."""
    script = []

    def reply(path, body):
        assert path == "/v1/responses"
        try:
            request, echo = parse(body, SERVED)
        except ApiError as error:
            raise Refused(error, responses.error_body(error)) from None
        dialect = ResponsesDialect(echo)
        if not request.common.stream:
            return whole_of(dialect, script)
        events = list(dialect.opening())
        for step in script:
            if isinstance(step, ApiError):
                return events + dialect.failed(step)
            events += dialect.piece(step)
        return events + dialect.closing(USAGE)

    with playing(reply) as url:
        made = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield made, lambda pieces: script.__setitem__(slice(None), pieces)
        made.close()


def test_client_reads_a_whole_answer(client):
    api, play = client
    play(SCRIPTS["text"])
    response = api.responses.create(model="served-model", input="hi", metadata={"k": "v"})
    assert response.output_text == "Hello" and response.metadata == {"k": "v"}
    assert response.usage.input_tokens_details.cached_tokens == 4


@pytest.mark.parametrize("script", [s for s in SCRIPTS if not s.startswith("cut")])
def test_client_gathers_the_stream(client, script):
    api, play = client
    play(SCRIPTS[script])
    with api.responses.stream(model="served-model", input="hi", tools=[ADD]) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed" and "".join(deltas) == final.output_text
    calls = [item for item in final.output if item.type == "function_call"]
    told = [c for piece in SCRIPTS[script] for c in piece.parts.calls if c.id]
    assert [(c.call_id, c.name) for c in calls] == [(c.id, c.name) for c in told]


def test_client_reads_raw_events_of_a_cut_answer(client):
    api, play = client
    play(SCRIPTS["cut in text"])
    events = list(api.responses.create(model="served-model", input="hi", stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-1].response.output_text == "Hel"


def test_client_parses_a_call_of_a_strict_tool(client):
    class Add(BaseModel):
        a: int

    api, play = client
    play([called(0, '{"a": 1}', name="Add"), ended("tool_calls")])
    tools = [openai.pydantic_function_tool(Add)]  # the SDK itself makes it flat
    response = api.responses.parse(model="served-model", input="hi", tools=tools)
    assert response.output[0].parsed_arguments == Add(a=1)


@pytest.mark.parametrize("streamed", [False, True])
def test_client_parses_a_model(client, streamed):
    class Sum(BaseModel):
        a: int

    api, play = client
    play([said('{"a":'), said(" 2}"), ended()])
    ask = {"model": "served-model", "input": "hi", "text_format": Sum}
    if streamed:
        with api.responses.stream(**ask) as stream:
            response = stream.get_final_response()
    else:
        response = api.responses.parse(**ask)
    assert response.output_parsed == Sum(a=2)


def test_client_sends_its_output_back_as_input(client):
    api, play = client
    play(SCRIPTS["text then call"])
    first = api.responses.create(model="served-model", input="hi", tools=[ADD])
    result = {"type": "function_call_output", "call_id": "call_0", "output": "2"}
    play(SCRIPTS["text"])
    history = [{"role": "user", "content": "hi"}, *first.output, result]
    assert api.responses.create(model="served-model", input=history).output_text == "Hello"


def test_client_sees_the_failure_of_a_stream(client):
    api, play = client
    play([said("Hel"), engine_failed("boom")])
    events = list(api.responses.create(model="served-model", input="hi", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "boom"


def test_client_raises_what_was_refused(client):
    api, _ = client
    with pytest.raises(openai.BadRequestError) as refused:
        api.responses.create(model="served-model", input="hi", background=True)
    assert refused.value.param == "background"
    with pytest.raises(openai.NotFoundError) as missing:
        api.responses.create(model="other", input="hi")
    assert missing.value.code == "model_not_found"
