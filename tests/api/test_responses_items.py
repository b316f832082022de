"""POST /v1/responses: items that agents send back, and the tools that they bring."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.api.dialects.call_input import CallInput, input_of
from server.api.dialects.responses import ResponsesDialect, parse
from server.api.dialects.responses_tools import Tools
from server.protocol.errors import ApiError
from server.protocol.requests import Format, ToolChoice
from tests.support.played import (
    SCRIPTS,
    SERVED,
    called,
    ended,
    said,
    stream_of,
    thought,
    whole_of,
)

USER = {"role": "user", "content": "hi"}
PATCH = '*** Begin Patch\n*** Add File: a.txt\n+h"i\\\n+\u00e4\U0001f600\n*** End Patch\n'
LARK = 'start: "*** Begin Patch" /(.|\\n)*/'
SEARCH = {"type": "function", "name": "search", "parameters": {"type": "object"}, "strict": False}
APPLY = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": LARK},
}
DOCS = {"type": "namespace", "name": "mcp__docs", "description": "Docs.", "tools": [SEARCH]}


def parsed(*items, **body):
    return parse({"input": [USER, *items]} | body, SERVED)


def turns(*items, **body) -> list[dict]:
    return parsed(*items, **body)[0].messages[1:]


def call(id: str, name: str, arguments) -> dict:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


# Items.


def test_a_call_with_a_text_and_its_output_become_a_call_and_a_result():
    items = [
        {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": PATCH},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "Done."},
    ]
    assert turns(*items, tools=[APPLY]) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("c", "apply_patch", {"input": PATCH})],
        },
        {"role": "tool", "tool_call_id": "c", "content": "Done."},
    ]


@pytest.mark.parametrize(
    "item, output, function, result",
    [
        (
            {"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "output": "a.txt"},
            ("local_shell", {"type": "exec", "command": ["ls"]}),
            "a.txt",
        ),
        (
            {"type": "shell_call", "action": {"commands": ["ls"]}},
            {"type": "shell_call_output", "output": [{"stdout": "a.txt", "stderr": ""}]},
            ("shell", {"commands": ["ls"]}),
            '[{"stdout": "a.txt", "stderr": ""}]',
        ),
        (
            {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}},
            {"type": "apply_patch_call_output", "status": "completed"},
            ("apply_patch", {"type": "delete_file", "path": "a"}),
            "",
        ),
        (
            {"type": "tool_search_call", "arguments": "files", "execution": "client"},
            {"type": "tool_search_output", "tools": []},
            ("tool_search", {"arguments": "files"}),
            "[]",
        ),
    ],
)
@pytest.mark.parametrize("key", ["call_id", "id"])
def test_calls_of_tools_with_kinds_of_their_own_are_calls(item, output, function, result, key):
    told = turns(item | {key: "c"}, output | {key: "c"})
    assert told[0]["tool_calls"] == [call("c", *function)]
    assert told[1] == {"role": "tool", "tool_call_id": "c", "content": result}


LS = {"type": "local_shell_call", "call_id": "c"}
SHELL = {"type": "shell_call", "call_id": "c"}
PATCHING = {"type": "apply_patch_call", "call_id": "c"}
SEARCHING = {"type": "tool_search_call", "call_id": "c"}
FOUND = {"type": "tool_search_output", "call_id": "c"}
RAN = {"type": "shell_call_output", "call_id": "c"}


@pytest.mark.parametrize(
    "item, field",
    [
        ({"type": "tool_search_call", "arguments": {}}, "call_id"),
        ({"type": "shell_call_output", "output": []}, "call_id"),
        (SEARCHING, "arguments"),
        (SEARCHING | {"arguments": 5}, "arguments"),
        (FOUND, "tools"),
        (FOUND | {"tools": 5}, "tools"),
        (FOUND | {"tools": [5]}, "tools[0]"),
        (FOUND | {"tools": [SEARCH, {"type": "function"}]}, "tools[1].name"),
        (LS, "action"),
        (LS | {"action": 5}, "action"),
        (LS | {"action": {}}, "action.command"),
        (LS | {"action": {"command": "ls"}}, "action.command"),
        (LS | {"action": {"command": ["ls"], "env": 5}}, "action.env"),
        (SHELL | {"action": {"commands": [5]}}, "action.commands[0]"),
        (SHELL | {"action": {"commands": [], "timeout_ms": "x"}}, "action.timeout_ms"),
        (RAN, "output"),
        (RAN | {"output": 5}, "output"),
        (RAN | {"output": [5]}, "output[0]"),
        (RAN | {"output": [{"stdout": 5}]}, "output[0].stdout"),
        (RAN | {"output": [{"outcome": {"type": "zz"}}]}, "output[0].outcome.type"),
        (PATCHING, "operation"),
        (PATCHING | {"operation": []}, "operation"),
        (PATCHING | {"operation": {"type": "zz"}}, "operation.type"),
        (PATCHING | {"operation": {"type": "delete_file"}}, "operation.path"),
        (PATCHING | {"operation": {"type": "update_file", "path": "a"}}, "operation.diff"),
        ({"type": "apply_patch_call_output", "call_id": "c", "output": 5}, "output"),
        ({"type": "local_shell_call_output", "call_id": "c", "output": 5}, "output"),
        ({"type": "reasoning", "summary": "x"}, "summary"),
        ({"type": "mcp_call", "id": "m", "name": "f", "output": 5}, "output"),
    ],
)
def test_what_is_wrong_in_an_item_is_named(item, field):
    with pytest.raises(ApiError) as refused:
        parsed(item)
    assert refused.value.status == 400 and refused.value.param == f"input[1].{field}"


def test_an_id_that_a_client_tells_as_null_is_there():
    """A search that OpenAI's servers ran has none, and codex leaves out the item's own."""
    (turn,) = turns(SEARCHING | {"call_id": None, "execution": "server", "arguments": {}})
    assert turn["tool_calls"] == [call("", "tool_search", {})]


def test_a_call_that_a_server_ran_holds_its_result():
    item = {"type": "mcp_call", "id": "m", "name": "f", "arguments": '{"a": 1}', "output": "two"}
    assert turns(item)[0]["tool_calls"] == [call("m", "f", {"a": 1})]
    assert turns(item)[1]["content"] == "two"
    failed = {key: value for key, value in item.items() if key != "output"}
    assert turns(failed | {"error": {"type": "x"}})[1]["content"] == '{"type": "x"}'


@pytest.mark.parametrize(
    "thought, told",
    [
        ({"content": [{"type": "reasoning_text", "text": "Why?"}]}, "Why?"),
        ({"content": [{"text": "a"}, {"text": "b"}], "summary": [{"text": "s"}]}, "a\nb"),
        (
            {"content": None, "summary": [{"type": "summary_text", "text": "In short."}]},
            "In short.",
        ),
        ({"content": "As one."}, "As one."),
    ],
)
def test_a_thought_reaches_the_turn_that_follows_it(thought, told):
    said = {"type": "message", "role": "assistant", "content": "So."}
    assert turns({"type": "reasoning", **thought}, said) == [
        {"role": "assistant", "content": "So.", "reasoning_content": told}
    ]


def test_a_thought_that_only_its_maker_can_read_adds_nothing():
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    assert turns(sealed, USER) == turns(USER)


NEW = [
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
    {"type": "file_search_call", "id": "fs_1", "queries": [], "results": None},
    {"type": "computer_call", "id": "cu_1"},
    {"type": "image_generation_call", "id": "ig_1", "result": "AAAA"},
    {"type": "code_interpreter_call", "id": "ci_1"},
    {"type": "mcp_list_tools", "id": "ml_1", "tools": []},
    {"type": "mcp_approval_request", "id": "ma_1"},
    {"type": "compaction", "encrypted_content": "gAAA"},
    {"type": "context_compaction", "encrypted_content": "gAAA"},
    {"type": "ghost_snapshot", "ghost_commit": {}},
    {"type": "of_next_year", "anything": [1, {"a": None}]},
    {"type": {"not": "a word"}},
]


@pytest.mark.parametrize("item", NEW, ids=lambda item: str(item["type"]))
def test_an_item_of_another_kind_is_left_out_and_named(item):
    request, echo = parsed(item, {"role": "user", "content": "go on"})
    assert request.messages == [{"role": "user", "content": "hi\n\ngo on"}]
    (named,) = echo.left_out
    assert named.startswith("items of type ") and str(item["type"])[:8] in named


def test_few_kinds_are_named_however_many_there_are():
    _, echo = parsed(
        *({"type": f"x{i}" * 1000} for i in range(100)), tools=[{"type": "web_search"}]
    )
    assert len(echo.left_out) == 10 and sum(map(len, echo.left_out)) < 1000


# Tools.


def test_a_tool_of_a_namespace_has_it_in_its_name():
    request, echo = parsed(tools=[SEARCH, DOCS])
    assert [tool["function"]["name"] for tool in request.tools] == ["search", "mcp__docs__search"]
    assert echo.fields["tools"] == [
        SEARCH | {"description": None},
        DOCS | {"tools": [SEARCH | {"description": None}]},
    ]


def test_history_names_tools_as_the_request_does():
    items = [
        {
            "type": "function_call",
            "call_id": "c",
            "name": "search",
            "namespace": "mcp__docs",
            "arguments": "{}",
        }
    ]
    for tools in ([DOCS], []):
        assert turns(*items, tools=tools)[0]["tool_calls"] == [call("c", "mcp__docs__search", {})]


@pytest.mark.parametrize(
    "tools, name, field",
    [
        ([SEARCH, SEARCH], "search", "tools[1].name"),
        ([SEARCH, APPLY | {"name": "search"}], "search", "tools[1].name"),
        ([DOCS, DOCS], "mcp__docs__search", "tools[1].tools[0].name"),
        ([DOCS | {"tools": [SEARCH, SEARCH]}], "mcp__docs__search", "tools[0].tools[1].name"),
        (
            [SEARCH | {"name": "mcp__docs__search"}, DOCS],
            "mcp__docs__search",
            "tools[1].tools[0].name",
        ),
        ([DOCS, SEARCH | {"name": "mcp__docs__search"}], "mcp__docs__search", "tools[1].name"),
        ([{"type": "shell"}, {"type": "shell"}], "shell", "tools[1].type"),
    ],
)
def test_no_two_tools_have_one_name(tools, name, field):
    with pytest.raises(ApiError, match=f"named '{name}'") as refused:
        parsed(tools=tools)
    assert refused.value.status == 400 and refused.value.param == field


def test_a_namespace_may_come_in_parts():
    request, _ = parsed(tools=[DOCS, DOCS | {"tools": [SEARCH | {"name": "read"}]}])
    assert len(request.tools) == 2


def test_tools_are_counted_before_their_names_are_compared(monkeypatch):
    """Names that meet are numbered, one after another: of too many that would take for ever."""
    monkeypatch.setattr(Tools, "_add", lambda *tool: pytest.fail("compared"))
    alike = [DOCS | {"name": "a" + "_" * number} for number in range(513)]
    with pytest.raises(ApiError) as refused:
        parsed(tools=alike)
    assert refused.value.param == "tools"


def test_a_tool_with_a_text_is_a_function_of_one_argument_that_tells_the_grammar():
    request, _ = parsed(tools=[APPLY])
    function = request.tools[0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert function["parameters"]["properties"] == {"input": {"type": "string"}}
    assert function["description"].startswith("Edits files.") and LARK in function["description"]
    wanted = Format("lark", LARK, field="tools[0].format.definition")
    assert request.text_formats == {"apply_patch": wanted}


def test_a_regex_stands_in_the_schema_too():
    given = {"type": "grammar", "syntax": "regex", "definition": "a|b"}
    inner = {**DOCS, "tools": [{"type": "custom", "name": "pick", "format": given}]}
    request, _ = parsed(tools=[inner])
    (tool,) = request.tools
    assert tool["function"]["parameters"]["properties"]["input"]["pattern"] == "^(?:a|b)$"
    wanted = request.text_formats["mcp__docs__pick"]
    assert wanted == Format("regex", "a|b", field="tools[0].tools[0].format.definition")


@pytest.mark.parametrize(
    "format", [None, {"type": "text"}, {"type": "grammar", "syntax": "peg", "definition": "x"}]
)
def test_a_text_without_a_grammar_that_is_known_is_free(format):
    assert parsed(tools=[APPLY | {"format": format}])[0].text_formats == {}


def test_tools_that_nobody_here_can_run_are_left_out_and_named():
    inner = {**DOCS, "tools": [SEARCH, {"type": "mcp", "server_label": "x"}]}
    tools = [{"type": "web_search", "external_web_access": True}, {"type": "new"}, inner]
    request, echo = parsed(tools=tools)
    assert [tool["function"]["name"] for tool in request.tools] == ["mcp__docs__search"]
    assert echo.left_out == (
        "tools of type 'web_search'", "tools of type 'new'", "tools of type 'mcp'",
    )  # fmt: skip


@pytest.mark.parametrize(
    "choice, name",
    [
        ({"type": "custom", "name": "apply_patch"}, "apply_patch"),
        ({"type": "function", "name": "search", "namespace": "mcp__docs"}, "mcp__docs__search"),
        ({"type": "function", "name": "mcp__docs__search"}, "mcp__docs__search"),
    ],
)
def test_each_kind_of_tool_can_be_forced(choice, name):
    request, echo = parsed(tools=[APPLY, DOCS], tool_choice=choice)
    assert request.tool_choice == ToolChoice("named", name)
    assert echo.fields["tool_choice"] == choice


@pytest.mark.parametrize(
    "listed, names",
    [
        ([{"type": "custom", "name": "apply_patch"}], ["apply_patch"]),
        ([{"type": "namespace", "name": "mcp__docs"}], ["mcp__docs__search"]),
        ([{"type": "function", "name": "search", "namespace": "mcp__docs"}], ["mcp__docs__search"]),
        ([{"type": "web_search"}, "x"], []),
    ],
)
def test_allowed_tools_may_be_of_each_kind(listed, names):
    choice = {"type": "allowed_tools", "mode": "auto", "tools": listed}
    request, _ = parsed(tools=[APPLY, DOCS], tool_choice=choice)
    assert [tool["function"]["name"] for tool in request.tools] == names


def test_the_only_tool_is_forced_by_name_if_it_has_a_grammar():
    assert parsed(tools=[APPLY], tool_choice="required")[0].tool_choice.mode == "named"
    assert parsed(tools=[APPLY, DOCS], tool_choice="required")[0].tool_choice.mode == "required"


@pytest.mark.parametrize(
    "tools, param",
    [
        ([{"type": "namespace", "name": "n"}], "tools[0].tools"),
        ([{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}],
         "tools[0].tools[0].name"),
        ([{"type": "custom"}], "tools[0].name"),
        ([DOCS | {"tools": [DOCS]}], "tools[0].tools[0].type"),
        ([SEARCH | {"parameters": {"type": "zz"}}], "tools[0].parameters.type"),
        ([DOCS | {"tools": [SEARCH | {"parameters": {"type": "array"}}]}],
         "tools[0].tools[0].parameters.type"),
        ([{"type": "tool_search", "execution": "client", "parameters": {"type": "array"}}],
         "tools[0].parameters.type"),
        ([{"type": "namespace", "name": "n", "tools": [SEARCH] * 513}], "tools"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_tool_is_named(tools, param):
    with pytest.raises(ApiError) as refused:
        parsed(tools=tools)
    assert refused.value.status == 400 and refused.value.param == param


# Calls, on their way out.


def dialect() -> ResponsesDialect:
    return ResponsesDialect(parsed(tools=[SEARCH, DOCS, APPLY])[1])


def patching(size: int) -> list:
    text = json.dumps({"input": PATCH})
    pieces = [called(0, text[at : at + size]) for at in range(0, len(text), size)]
    return [called(0, name="apply_patch"), *pieces, ended("tool_calls")]


def test_a_call_goes_back_with_its_namespace():
    script = [called(0, '{"q": 1}', name="mcp__docs__search"), ended("tool_calls")]
    (item,) = whole_of(dialect(), script)["output"]
    told = {"type": "function_call", "name": "search", "namespace": "mcp__docs"}
    assert item | told | {"arguments": '{"q": 1}'} == item
    (plain,) = whole_of(dialect(), [called(0, "{}", name="search"), ended()])["output"]
    assert plain["name"] == "search" and "namespace" not in plain


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_call_with_a_text_streams_the_text(size):
    one = dialect()
    events = [data for _, data in stream_of(one, patching(size))]
    kinds = [data["type"].removeprefix("response.") for data in events]
    deltas = [e["delta"] for e in events if e["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == PATCH and (len(deltas) > 1) == (size < 1000) and all(deltas)
    assert kinds[2] == "output_item.added" and events[2]["item"]["input"] == ""
    assert kinds[-3:] == ["custom_tool_call_input.done", "output_item.done", "completed"]
    assert events[-3]["input"] == events[-2]["item"]["input"] == PATCH
    (item,) = Response.model_validate(events[-1]["response"]).output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", PATCH)
    assert {e["item_id"] for e in events if "item_id" in e} == {item.id}
    adapter = TypeAdapter(ResponseStreamEvent)
    assert all(adapter.validate_python(data).type == data["type"] for data in events)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_numbers_of_a_stream_have_no_gap(size):
    thinks = [thought("Hm."), said("So: "), *patching(size)]
    for script in (patching(size), thinks, *SCRIPTS.values()):
        numbers = [data["sequence_number"] for _, data in stream_of(dialect(), script)]
        assert numbers == list(range(len(numbers)))


def test_what_goes_back_as_history_is_the_call_again():
    (item,) = whole_of(dialect(), patching(9))["output"]
    assert turns(item, tools=[APPLY])[0]["tool_calls"] == [
        call("call_0", "apply_patch", {"input": PATCH})
    ]


@given(st.text(), st.integers(1, 9), st.booleans())
def test_the_text_of_a_call_is_read_at_every_split(text, size, escaped):
    arguments = json.dumps({"input": text}, ensure_ascii=escaped)
    one = CallInput()
    for at in range(0, len(arguments), size):
        one.add(arguments[at : at + size])
    assert one.told == text == input_of(arguments)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ('{"input": "cut \\u00', "cut "),
        ('{"input": "bad \\q', "bad "),
        ('{"inp', ""),
        ('{"other": 1}', '{"other": 1}'),
        ('{"a": 1, "input": "late"}', "late"),
        ("[1]", "[1]"),
    ],
)
def test_the_text_of_a_broken_call_is_what_can_be_read(arguments, text):
    assert input_of(arguments) == text
