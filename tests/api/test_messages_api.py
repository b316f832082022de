"""Anthropic's Messages API: what a request becomes."""

import pytest

from server.api.dialects.messages import (
    parse,
    parse_count,
)
from server.api.requests import AS_MANY_AS_FIT
from server.protocol.errors import (
    ApiError,
)
from server.protocol.requests import Format, Sampling, Served, ToolChoice
from tests.support.messages_bodies import ADD, CACHE, HI, SCHEMA, SEARCH, request_of, user
from tests.support.played import (
    SERVED,
)


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


@pytest.mark.parametrize("content", [{}, {"content": []}, {"content": ""}, {"content": None}])
def test_an_effort_that_changes_on_the_way_is_no_turn_of_its_own(content):
    """Claude Code says so in a system turn without a text, which stood in the prompt."""
    quick = {"role": "system", "output_config": {"effort": "low"}, **content}
    turns = [*HI, quick, {"role": "user", "content": "go on"}]
    body = {"messages": turns, "output_config": {"effort": "high"}}
    request = request_of(**body)
    assert request.template_kwargs == {"reasoning_effort": "low"}
    assert [turn["role"] for turn in request.messages] == ["user"]
    slow = quick | {"output_config": {"effort": "max"}, "content": "Think."}
    request = request_of(messages=[*turns, slow])
    assert request.template_kwargs == {"reasoning_effort": "max"}
    assert request.messages[-1] == {"role": "system", "content": "Think."}
    # All that there is: still a turn.
    assert len(request_of(messages=[quick]).messages) == 1


def test_a_choice_that_nothing_fits_is_told_in_the_words_of_the_client():
    with pytest.raises(ApiError) as refused:
        request_of(tool_choice={"type": "any"})
    assert "'tool_choice': {'type': 'any'}" in refused.value.message
    assert "required" not in refused.value.message and "function" not in refused.value.message


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


def test_two_formats_are_refused():
    """One of them was used without a word."""
    asked = {"type": "json_schema", "schema": SCHEMA}
    with pytest.raises(ApiError) as refused:
        request_of(output_config={"format": asked}, output_format=asked)
    assert (refused.value.status, refused.value.param) == (400, "output_format.schema")
    assert "Only one of 'output_config.format.schema' and" in refused.value.message
    for alone in ({"effort": "low"}, {"format": None}):
        assert request_of(output_config=alone, output_format=asked).format is not None


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
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        (
            {"messages": [*HI, {"role": "assistant", "content": [USE | {"input": {"\ud800": 1}}]}]},
            "messages[1].content[0].input",
        ),
        (
            {
                "messages": [
                    *HI,
                    {"role": "assistant", "content": [USE | {"input": {"a": ["\ud800"]}}]},
                ]
            },
            "messages[1].content[0].input.a[0]",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": [USE]}]}, "messages"),
        ({"messages": BEGUN, "tools": [ADD], "tool_choice": {"type": "any"}}, "tool_choice"),
        (user({"type": "hologram"}), "messages[0].content[0].type"),
        (
            user({"type": "document", "source": {"type": "text"}}),
            "messages[0].content[0].source.data",
        ),
        (user("x"), "messages[0].content[0]"),
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
        ({"system": ["x"]}, "system[0]"),
        ({"system": [{"type": "hologram"}]}, "system[0].type"),
        ({"system": [{"type": "text", "text": 5}]}, "system[0].text"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tools": [ADD, {"type": "bash_20250124", "name": "add"}]}, "tools[1].name"),
        ({"tools": [ADD | {"input_schema": {"type": "zz"}}]}, "tools[0].input_schema.type"),
        ({"tools": [ADD | {"input_schema": {"type": ["object"]}}]}, "tools[0].input_schema.type"),
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
