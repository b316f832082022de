"""Tools that the Messages API knows by a type and the client runs: told to the model in full."""

import anthropic
import pytest
from jsonschema import Draft202012Validator, ValidationError

from server.api.dialects.messages_request import parse, parse_count
from server.api.notes import noting
from server.protocol.errors import ApiError
from server.protocol.requests import Served
from tests.support.front_end import MODEL, FrontEnd

SERVED = Served("demo")
SCREEN = {"display_width_px": 1024, "display_height_px": 768}
EDITOR = "str_replace_based_edit_tool"


def tool(kind: str, name: str = "one", **more) -> dict:
    return {"type": kind, "name": name, **more}


def read(*tools: dict, **more):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "tools": list(tools)}
    return parse(body | more, SERVED)[0]


@pytest.mark.parametrize(
    ("given", "right", "wrong"),
    [
        (tool("bash_20250124"), {"command": "ls"}, {"command": 1}),
        (tool("bash_20241022"), {"restart": True}, {"restart": "yes"}),
        (
            tool("text_editor_20250728", max_characters=100),
            {"command": "insert", "path": "/a", "insert_line": 0, "insert_text": "x"},
            {"command": "undo_edit", "path": "/a"},
        ),
        (
            tool("text_editor_20250124"),
            {"command": "undo_edit", "path": "/a"},
            {"command": "view", "path": "/a", "view_range": [1]},
        ),
        (
            tool("text_editor_20250429"),
            {"command": "str_replace", "path": "/a", "old_str": "x", "new_str": "y"},
            {"command": "undo_edit", "path": "/a"},
        ),
        (
            tool("memory_20250818"),
            {"command": "rename", "old_path": "/memories/a", "new_path": "/memories/b"},
            {"command": "undo_edit"},
        ),
        (
            tool("computer_20250124", **SCREEN),
            {"action": "scroll", "coordinate": [1, 2], "scroll_direction": "up"},
            {"action": "zoom"},
        ),
        (
            tool("computer_20251124", enable_zoom=True, **SCREEN),
            {"action": "zoom", "region": [0, 0, 5, 5]},
            {"action": "left_click", "coordinate": [1]},
        ),
        (tool("computer_20241022", **SCREEN), {"action": "screenshot"}, {"action": "scroll"}),
        (tool("bash_20270101"), {"command": "ls"}, {"command": None}),
    ],
    ids=lambda value: value.get("type", "") if isinstance(value, dict) else "",
)
def test_a_tool_known_by_its_type_has_its_schema(given, right, wrong):
    (told,) = read(given).tools
    function = told["function"]
    assert function["name"] == "one" and function["description"]
    Draft202012Validator.check_schema(function["parameters"])
    schema = Draft202012Validator(function["parameters"])
    schema.validate(right)
    with pytest.raises(ValidationError):
        schema.validate(wrong)
    assert set(right) <= set(function["parameters"]["properties"])


@pytest.mark.parametrize(
    "given, useless",
    [
        (tool("bash_20250124"), [{}, {"command": "ls", "other": 1}]),
        (
            tool("text_editor_20250728"),
            [{"command": "create", "path": "/a"}, {"command": "insert", "path": "/a"}],
        ),
        (tool("memory_20250818"), [{"command": "view"}, {"command": "rename", "path": "/a"}]),
        (
            tool("computer_20251124", **SCREEN),
            [{"action": "type"}, {"action": "zoom"}, {"action": "wait"}, {"action": "scroll"}],
        ),
        (tool("computer_20241022", **SCREEN), [{"action": "key"}, {"action": "mouse_move"}]),
    ],
)
def test_no_call_can_lack_what_it_needs_to_do_anything(given, useless):
    (told,) = read(given).tools
    schema = Draft202012Validator(told["function"]["parameters"])
    assert not any(schema.is_valid(one) for one in useless)


def test_the_screen_is_described_with_its_size():
    (told,) = read(tool("computer_20250124", **SCREEN)).tools
    assert "1024 x 768" in told["function"]["description"]


def test_a_choice_may_name_one_of_them():
    choice = {"type": "tool", "name": "bash"}
    request = read(tool("bash_20250124", "bash"), tool_choice=choice)
    assert request.tool_choice.name == "bash"


def test_one_may_wait_until_it_is_searched_for():
    later = tool("bash_20250124", "bash", defer_loading=True)
    request = read(later, {"name": "search", "input_schema": {"type": "object"}})
    assert request.deferred == {"bash"}


def test_they_are_counted():
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool("bash_20250124")]}
    assert parse_count(body, SERVED).tools


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"type": "bash_20250124"}, "tools[0].name"),
        ({"type": "text_editor_20250728", "name": 5}, "tools[0].name"),
        (tool("computer_20250124"), "tools[0].display_width_px"),
        (tool("computer_20250124", **SCREEN | {"display_height_px": "7"}), "tools[0].display_hei"),
    ],
)
def test_what_is_missing_is_named(given, field):
    with pytest.raises(ApiError) as refused:
        read(given)
    assert refused.value.status == 400 and field in refused.value.message


def test_what_nobody_knows_is_left_out_with_a_line_in_the_log(caplog):
    with noting("req_1"):
        request = read({"type": "bash"}, {"type": "mcp_toolset"}, tool("web_search_20250305"))
    assert request.tools == []
    assert "2 x tool of a type that is not known" in caplog.text


def test_the_sdk_gets_a_call_and_gives_its_result(demo_model_dir):
    front = FrontEnd(demo_model_dir)
    try:
        client = anthropic.Anthropic(base_url=front.root, api_key="any", max_retries=0)
        fields = {
            "model": MODEL,
            "max_tokens": 300,
            "tools": [
                {"type": "bash_20250124", "name": "bash"},
                {"type": "text_editor_20250728", "name": EDITOR},
            ],
        }
        user = {"role": "user", "content": "What is here?"}
        choice = {"type": "tool", "name": EDITOR}
        answer = client.messages.create(messages=[user], tool_choice=choice, **fields)
        (use,) = answer.content
        assert (use.type, use.name, answer.stop_reason) == ("tool_use", EDITOR, "tool_use")
        assert use.input["command"] in ("view", "create", "str_replace", "insert")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "add.py"}
        turns = [user, {"role": "assistant", "content": answer.content}]
        turns.append({"role": "user", "content": [result]})
        assert client.messages.create(messages=turns, **fields).stop_reason == "end_turn"
    finally:
        front.end()
