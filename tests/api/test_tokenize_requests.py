"""What /tokenize makes of a conversation: the prompt that chat would make of it, read once."""

from collections import Counter

import pytest

from server.api.dialects import chat_request
from server.api.dialects.tokenize import parse_tokenize
from server.protocol.errors import ApiError
from server.protocol.requests import Served

SERVED = Served("demo")
TOOL = {"type": "function", "function": {"name": "x", "parameters": {"type": "object"}}}


class Counted(dict):
    """An object of a body that counts how often each of its fields is looked up."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.looked_up = Counter()

    def get(self, key, *default):
        self.looked_up[key] += 1
        return super().get(key, *default)


def test_a_conversation_is_read_once():
    def turn() -> Counted:
        return Counted({"role": "user", "content": "x"})

    chat, tokenize = turn(), turn()
    chat_request.parse({"messages": [chat]}, SERVED)
    parse_tokenize({"messages": [tokenize]}, SERVED)
    assert tokenize.looked_up == chat.looked_up and chat.looked_up["role"] >= 1


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"reasoning_effort": "low"},
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "x", "arguments": '{"a": 1}'}}]}]},
    ],
)  # fmt: skip
def test_the_prompt_is_the_one_of_chat(more):
    body = {"messages": [{"role": "user", "content": "x"}]} | more
    assert parse_tokenize(body, SERVED).source == chat_request.parse(body, SERVED)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_wrong_is_named(more, field):
    with pytest.raises(ApiError) as refused:
        parse_tokenize({"messages": [{"role": "user", "content": "x"}]} | more, SERVED)
    assert refused.value.param == field


def test_what_only_an_answer_has_is_ignored():
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": "hot", "n": -1}
    assert parse_tokenize(body, SERVED).source.common.n == 1
