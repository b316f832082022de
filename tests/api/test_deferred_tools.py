"""Tools with defer_loading: not in the prompt's list, but where a search has found them."""

import json

import pytest

from tests.support.messages_bodies import ADD, SCHEMA, request_of

LATER = {"name": "docs", "description": "Looks up.", "input_schema": SCHEMA, "defer_loading": True}
OTHER = {"name": "other", "input_schema": SCHEMA, "defer_loading": True}
REFERENCE = {"type": "tool_reference", "tool_name": "docs"}
FUNCTION = {"name": "docs", "description": "Looks up.", "parameters": SCHEMA}
SHOWN = f"<functions>\n<function>{json.dumps(FUNCTION)}</function>\n</functions>"


def searched(*searches: list) -> list[dict]:
    """A conversation in which each search has found these parts."""
    turns = [{"role": "user", "content": "hi"}]
    for n, parts in enumerate(searches):
        use = {"type": "tool_use", "id": f"c{n}", "name": "add", "input": {}}
        result = {"type": "tool_result", "tool_use_id": f"c{n}", "content": parts}
        turns += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return turns


def results(request) -> list[str]:
    return [turn["content"] for turn in request.messages if turn["role"] == "tool"]


def test_a_deferred_tool_can_be_called_but_is_not_listed():
    request = request_of(tools=[ADD, LATER, OTHER])
    assert [tool["function"]["name"] for tool in request.tools] == ["add", "docs", "other"]
    assert request.deferred == {"docs", "other"}


def test_it_is_defined_where_it_was_found_first():
    text = {"type": "text", "text": "found:"}
    turns = searched([text, REFERENCE, REFERENCE], [REFERENCE], "nothing")
    request = request_of(tools=[ADD, LATER, OTHER], messages=turns)
    # Once: a client may refer to it as often as it likes.
    assert results(request) == [f"found:\ndocs\ndocs\n{SHOWN}", "docs", "nothing"]


def test_a_search_changes_nothing_before_it():
    """It was put into the list, so after each search the whole prompt was computed anew."""
    before = request_of(tools=[ADD, OTHER], messages=searched())
    after = request_of(tools=[LATER, ADD, OTHER], messages=searched([REFERENCE]))

    def listed(request):
        return [one for one in request.tools if one["function"]["name"] not in request.deferred]

    assert listed(before) == listed(after)
    assert after.messages[: len(before.messages)] == before.messages


@pytest.mark.parametrize(
    "tools",
    [
        [ADD, LATER, {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}],
        [LATER],
        [ADD, LATER | {"defer_loading": False}],
        [ADD, LATER | {"defer_loading": None}],
    ],
)
def test_all_are_listed_where_nobody_could_find_them_or_none_would_be_left(tools):
    request = request_of(tools=tools, messages=searched([REFERENCE]))
    assert not request.deferred and results(request) == ["docs"]


def test_a_reference_to_what_is_not_there_is_its_name():
    gone = {"type": "tool_reference", "tool_name": "gone"}
    request = request_of(tools=[ADD, LATER], messages=searched([gone]))
    assert results(request) == ["gone"]
