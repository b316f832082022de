"""From JSON bodies to requests: chat and completions."""

import pytest

from server.api.dialects.chat_request import NOT_TEMPLATE_VARIABLES
from server.api.dialects.completions import MAX_PROMPTS
from server.protocol.requests import (
    Format,
    ToolChoice,
)
from tests.support.request_bodies import MESSAGES, NAMED, TOOL, chat, completion, refusal


def test_messages_become_turns_for_the_template():
    turns = chat(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "name": "ann", "content": [
                {"type": "text", "text": "b"}, {"type": "text", "text": "c"},
            ]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "extra": 1,
             "tool_calls": [{"id": "1", "type": "function",
                             "function": {"name": "f", "arguments": '{"x": 1}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": ""},
        ]
    ).messages  # fmt: skip
    assert [t["content"] for t in turns] == ["be brief", "a", "bc", "", ""]
    assert turns[2]["name"] == "ann"
    assert turns[3]["reasoning_content"] == "hm" and "extra" not in turns[3]
    assert turns[3]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert turns[4]["tool_call_id"] == "1"


def test_arguments_that_are_no_json_stay_as_they_are():
    for text in ["", "{", "[" * 5000, "not json"]:
        call = {"function": {"name": "f", "arguments": text}}
        turn = chat(messages=[{"role": "assistant", "tool_calls": [call]}]).messages[0]
        assert turn["tool_calls"][0]["function"]["arguments"] == text


CALLED = "messages[0].tool_calls[0]"


def calling(function, **fields) -> list[dict]:
    return [{"role": "assistant", "tool_calls": [{"function": function, **fields}]}]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ({}, "messages"),
        ("hi", "messages"),
        (5, "messages"),
        (["hi"], "messages[0]"),
        ([None], "messages[0]"),
        ([MESSAGES], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "robot", "content": ""}], "messages[0].role"),
        ([{"role": ["user"], "content": ""}], "messages[0].role"),
        ([{"role": {"a": 1}, "content": ""}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": True}], "messages[0].content"),
        ([{"role": "user", "content": {}}], "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}],
            "messages[0].content[0].text",
        ),
        (
            [{"role": "user", "content": [{"type": "hologram"}]}],
            "messages[0].content[0].type",
        ),
        ([*MESSAGES, {"role": "user", "name": 5}], "messages[1].name"),
        ([{"role": "tool", "tool_call_id": {}}], "messages[0].tool_call_id"),
        ([{"role": "assistant", "reasoning": []}], "messages[0].reasoning"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [5]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"function": 5}]}], f"{CALLED}.function"),
        ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], f"{CALLED}.function"),
        (calling({}), f"{CALLED}.function.name"),
        (calling({"name": 5}), f"{CALLED}.function.name"),
        (calling({"name": "f", "arguments": 5}), f"{CALLED}.function.arguments"),
        (calling({"name": "f"}, id=5), f"{CALLED}.id"),
        (calling({"name": "f"}, type=[]), f"{CALLED}.type"),
        (
            [{"role": "assistant", "function_call": {"name": "f", "arguments": 5}}],
            "messages[0].function_call.arguments",
        ),
        (calling({"name": "f", "arguments": '{"\\ud800": 1}'}), f"{CALLED}.function.arguments"),
        (calling({"name": "f", "arguments": '[{"a": "\\udfff"}]'}), f"{CALLED}.function.arguments"),
    ],
)
def test_malformed_messages_are_400_and_say_where(messages, param):
    assert refusal(chat, messages=messages).param == param


@pytest.mark.parametrize(
    "part, what",
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "image"),
        ({"type": "image_url"}, "image"),
        ({"type": "input_audio", "input_audio": {}}, "audio"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video"),
        ({"type": "file", "file": {"file_id": "f"}}, "file"),
    ],
)
@pytest.mark.parametrize("role", ["user", "tool", "assistant", "system"])
def test_what_is_no_text_leaves_words_in_its_place(part, what, role):
    content = [{"type": "text", "text": "See "}, part]
    (told,) = chat(messages=[{"role": role, "content": content}]).messages
    assert told["content"] == f"See [{what} omitted: this model reads text only]"


def test_functions_of_older_clients_are_tools_to_the_template():
    call = {"name": "f", "arguments": '{"x": 1}'}
    turns = chat(
        messages=[
            *MESSAGES,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "f", "content": "2"},
        ]
    ).messages
    (used,) = turns[1]["tool_calls"]
    assert used["function"] == {"name": "f", "arguments": {"x": 1}}
    assert "function_call" not in turns[1]
    assert turns[2] == {"role": "tool", "name": "f", "content": "2", "tool_call_id": used["id"]}
    assert len(used["id"]) == 9 and used["id"].isalnum()


def test_a_whole_number_may_have_a_point():
    assert chat(top_k=40.0).common.sampling.top_k == 40


def test_a_refusal_of_an_earlier_answer_is_its_text():
    parts = [{"type": "refusal", "refusal": "No."}]
    for turn in ({"content": parts}, {"content": None, "refusal": "No."}, {"refusal": "No."}):
        (told,) = chat(messages=[{"role": "assistant", **turn}]).messages
        assert told == {"role": "assistant", "content": "No."}
    (told,) = chat(messages=[{"role": "assistant", "content": "Yes.", "refusal": None}]).messages
    assert told == {"role": "assistant", "content": "Yes."}


def test_odd_but_valid_text_is_taken():
    for text in ["", "\x00", "\u202e", "🙂" * 1000, "\uffff", "<|im_end|>"]:
        assert chat(messages=[{"role": "user", "content": text}]).messages[0]["content"] == text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": True}, "top_logprobs"),
        ({"top_logprobs": False}, "top_logprobs"),
        ({"top_logprobs": []}, "top_logprobs"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": []}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": NAMED | {"function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": {}}, "tools"),
        ({"tools": "f"}, "tools"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        ({"reasoning_effort": "\ud800"}, "reasoning_effort"),
    ],
)
def test_chat_fields_that_cannot_be_honoured_are_400(fields, param):
    assert refusal(chat, **fields).param == param


def test_chat_fields_that_ask_for_nothing_special_are_taken():
    same = {
        "logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}, "tools": [],
        "tool_choice": "auto", "chat_template_kwargs": {},
    }  # fmt: skip
    assert chat(**same) == chat(response_format=None, tool_choice="none") == chat()


def test_chat_log_probabilities_count_their_alternatives():
    assert chat().common.logprobs is None
    assert (
        chat(logprobs=True).common.logprobs == chat(logprobs=True, top_logprobs=0).common.logprobs
    )
    assert chat(logprobs=True).common.logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).common.logprobs == 20


def test_formats_and_tools_are_kept_for_the_grammar():
    assert chat(response_format={"type": "json_object"}).format == Format("json_object")
    request = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert request.tools == [TOOL] and request.tool_choice == ToolChoice("required")
    assert not request.parallel_tool_calls and chat(tools=[TOOL]).parallel_tool_calls
    assert chat(tools=[TOOL], tool_choice=NAMED).tool_choice == ToolChoice("named", "f")
    assert chat(tools=[TOOL]).tool_choice == ToolChoice("auto")


def test_template_kwargs_and_reasoning_effort_reach_the_template():
    request = chat(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    assert request.template_kwargs == {"enable_thinking": False, "reasoning_effort": "low"}
    assert request.thinking_budget is None
    given = chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"})
    assert given.template_kwargs == {"reasoning_effort": "high"}
    none = chat(reasoning_effort="none")
    assert (none.template_kwargs["enable_thinking"], none.thinking_budget) == (False, 0)
    assert chat(thinking_token_budget=7).thinking_budget == 7
    assert chat(thinking={"type": "auto"}).template_kwargs == {}
    assert chat(thinking={"type": "disabled"}).template_kwargs == {"enable_thinking": False}
    own = chat(chat_template_kwargs={"reasoning_effort": "high"}, reasoning_effort="low")
    assert own.template_kwargs == {"reasoning_effort": "high"}


@pytest.mark.parametrize("name", sorted(NOT_TEMPLATE_VARIABLES))
def test_template_kwargs_cannot_change_how_the_template_is_called(name):
    """`"tokenize": false` returned text in place of token ids, which ended every rank;
    `"chat_template"` ran the client's own template."""
    error = refusal(chat, chat_template_kwargs={name: False})
    assert error.param == "chat_template_kwargs" and name in error.message


def test_prompts_of_every_form_are_taken():
    assert completion(prompt="hi").prompts == completion(prompt=["hi"]).prompts == ["hi"]
    assert completion(prompt=[1, 2]).prompts == completion(prompt=[[1, 2]]).prompts == [[1, 2]]
    assert completion(prompt=[5]).prompts == [[5]]
    assert completion(prompt="\x00").prompts == ["\x00"]
    assert completion(prompt=["a", "b", "a"]).prompts == ["a", "b", "a"]
    assert completion(prompt=[[1], [2, 3]]).prompts == [[1], [2, 3]]
    assert len(completion(prompt=["a"] * MAX_PROMPTS).prompts) == MAX_PROMPTS


@pytest.mark.parametrize(
    "prompt",
    [
        None, "", [], [""], [[]], 5, True, {}, [True], [1, True], [1.5], [None], [1, "a"], [{}],
        ["\ud800"], "\ud800", [["a"]], [[[1]]], ["", ""], ["a", ""], [[1], []], [[1], [True]],
        [[1], [1.5]], ["a"] * (MAX_PROMPTS + 1), [[1]] * 5000, [[1], 2], ["a", None],
    ],
)  # fmt: skip
def test_prompts_that_are_empty_mixed_or_too_many_are_400(prompt):
    assert refusal(completion, prompt=prompt).param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": False}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": 1.5}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": "end", "echo": True}, "echo"),
        ({"suffix": 5}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": True}, "best_of"),
    ],
)
def test_completion_fields_that_cannot_be_honoured_are_400(fields, param):
    assert refusal(completion, **fields).param == param


def test_completion_fields_that_ask_for_nothing_special_are_taken():
    assert completion(echo=False, suffix="", best_of=1) == completion()
    assert completion(prompt="", suffix="end").suffix == "end"
    assert completion(n=3, best_of=3) == completion(n=3)


def test_echo_and_log_probabilities_are_taken():
    assert completion(echo=True).echo and not completion().echo
    assert completion().common.logprobs is None
    assert [completion(logprobs=n).common.logprobs for n in (0, 5, 20)] == [0, 5, 20]
