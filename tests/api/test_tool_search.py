"""Tools that a client of Responses searches for itself, as codex does with those of MCP servers."""

import json

import openai
import pytest

from server.api.dialects.responses import parse
from tests.support.agent_model import AgentModel, call, thought
from tests.support.front_end import MODEL
from tests.support.played import SERVED

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
SEARCH = {
    "type": "tool_search", "execution": "client", "description": "Finds.", "parameters": SCHEMA,
}  # fmt: skip
LOOK = {"type": "function", "name": "look", "parameters": SCHEMA, "defer_loading": True}
DOCS = {"type": "namespace", "name": "mcp__docs", "tools": [LOOK]}
PLAIN = {"type": "function", "name": "plain", "parameters": SCHEMA}
DEFINED = f"<function>{json.dumps({'name': 'mcp__docs__look', 'parameters': SCHEMA})}</function>"
SHOWN = f"<functions>\n{DEFINED}\n</functions>"


def searched(*found: list, id: str = "c") -> list[dict]:
    items = [{"role": "user", "content": "hi"}]
    for n, tools in enumerate(found):
        ids = {"call_id": f"{id}{n}", "execution": "client"}
        items.append({"type": "tool_search_call", "arguments": {"q": "x"}, **ids})
        items.append({"type": "tool_search_output", "tools": tools, **ids})
    return items


def request_of(tools: list, input: list | str = "hi", **more):
    return parse({"tools": tools, "input": input, **more}, SERVED)


def names(request) -> list[str]:
    return [tool["function"]["name"] for tool in request.tools]


def results(request) -> list[str]:
    return [turn["content"] for turn in request.messages if turn["role"] == "tool"]


def test_a_search_that_the_client_runs_is_a_function():
    request, echo = request_of([SEARCH, PLAIN])
    assert names(request) == ["tool_search", "plain"] and not request.deferred
    assert request.tools[0]["function"]["parameters"] == SCHEMA
    assert echo.fields["tools"][0] == SEARCH and not echo.left_out


@pytest.mark.parametrize("execution", ["server", None])
def test_a_search_that_a_server_would_run_is_left_out_and_hides_nothing(execution):
    tool = {"type": "tool_search"} | ({} if execution is None else {"execution": execution})
    request, echo = request_of([tool, LOOK])
    assert names(request) == ["look"] and not request.deferred
    assert echo.left_out == ("tools of type 'tool_search'",)


def test_what_was_found_can_be_called_and_is_defined_there_once():
    input = searched([DOCS], [DOCS])
    request, echo = request_of([SEARCH], input)
    assert names(request) == ["tool_search", "mcp__docs__look"]
    assert request.deferred == {"mcp__docs__look"}
    assert results(request) == [SHOWN, json.dumps([DOCS])]
    called = echo.called["mcp__docs__look"]
    assert (called.name, called.namespace) == ("look", "mcp__docs")


def test_a_deferred_tool_of_the_request_is_defined_where_it_was_found():
    request, _ = request_of([SEARCH, DOCS, PLAIN], searched([DOCS]))
    assert names(request) == ["tool_search", "mcp__docs__look", "plain"]
    assert request.deferred == {"mcp__docs__look"} and results(request) == [SHOWN]
    # One that is listed needs no definition.
    request, _ = request_of([SEARCH, PLAIN], searched([PLAIN]))
    assert not request.deferred and results(request) == [json.dumps([PLAIN])]


@pytest.mark.parametrize("found", [[], [{"type": "new"}], [{"type": "web_search", "filters": 5}]])
def test_what_nobody_here_can_run_is_no_tool_and_no_error(found):
    request, _ = request_of([SEARCH], searched(found))
    assert names(request) == ["tool_search"] and len(results(request)) == 1


def test_no_more_is_taken_than_a_request_may_have():
    many = [PLAIN | {"name": f"f{n}"} for n in range(600)]
    request, _ = request_of([SEARCH], searched(many))
    assert len(request.tools) == 512


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    one = AgentModel(tmp_path_factory.mktemp("agent"))
    yield one
    one.end()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_loop_with_a_search(model, stream, kept):
    """By previous_response_id, or with all of it sent again."""
    client = openai.OpenAI(base_url=model.url, api_key="none", max_retries=0)
    model.prompts_seen.clear()
    model.answers = [
        thought("Which?") + call("tool_search", q="docs"),
        thought("That.") + call("mcp__docs__look", q="port"),
        thought("So.") + "Done.",
    ]
    said: list = [{"role": "user", "content": "hi"}]

    def ask(new: list, previous: str | None):
        body = {"model": MODEL, "tools": [SEARCH, PLAIN], "input": new if kept else said}
        if kept and previous:
            body["previous_response_id"] = previous
        if not stream:
            return client.responses.create(**body)
        events = list(client.responses.create(**body, stream=True))
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert done == events[-1].response.output
        return events[-1].response

    answer = ask(said, None)
    search = answer.output[-1]
    assert (search.type, search.execution, search.arguments) == (
        "tool_search_call", "client", {"q": "docs"},
    )  # fmt: skip
    new = [{"type": "tool_search_output", "call_id": search.call_id, "tools": [DOCS]}]
    said += [item.to_dict() for item in answer.output] + new
    answer = ask(new, answer.id)
    found = answer.output[-1]
    assert (found.type, found.name, found.namespace) == ("function_call", "look", "mcp__docs")
    new = [{"type": "function_call_output", "call_id": found.call_id, "output": "8080"}]
    said += [item.to_dict() for item in answer.output] + new
    assert ask(new, answer.id).output_text == "Done."
    # The list at the beginning is what it was, and each prompt goes on from the one before.
    first, second, third = (prompt.removesuffix("<|turn|>assistant\n<think>\n")
                            for prompt in model.prompts_seen)  # fmt: skip
    assert second.startswith(first) and third.startswith(second)
    assert "mcp__docs__look" not in first and "mcp__docs__look" in second
