"""Tools of the Responses API that the client runs: shells and apply_patch, whose calls are items of
their own."""

import openai
import pytest
from jsonschema import Draft202012Validator

from server.api.dialects.own_items import OWN_CALLS
from server.api.dialects.own_tools import OWN_TOOLS
from server.api.dialects.responses import ResponsesDialect
from server.api.dialects.responses_request import parse
from server.protocol.errors import ApiError
from server.protocol.requests import Served
from tests.support.front_end import MODEL, TEXT, FrontEnd
from tests.support.played import called, ended, stream_of, whole_of

SERVED = Served("demo")
KINDS = {
    "local_shell": ("local_shell_call", "action"),
    "shell": ("shell_call", "action"),
    "apply_patch": ("apply_patch_call", "operation"),
}
OUTPUTS = {
    "local_shell": "add.py",
    "shell": [{"stdout": "add.py", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
    "apply_patch": "done",
}
FUNCTION = {"type": "function", "name": "shell", "parameters": {"type": "object"}}


def read(*tools: dict, **more):
    return parse({"input": "x", "tools": list(tools), **more}, SERVED)


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir)
    yield one
    one.end()


@pytest.fixture
def client(front_end) -> openai.OpenAI:
    return openai.OpenAI(base_url=front_end.url, api_key="any", max_retries=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_an_item_of_its_own_and_comes_back_with_its_result(
    front_end, client, kind, stream
):
    item, place = KINDS[kind]
    fields = {"model": MODEL, "tools": [{"type": kind}]}
    forced = fields | {"input": "What is here?", "tool_choice": {"type": kind}}
    if stream:
        with client.responses.stream(**forced) as events:
            told = list(events)
            answer = events.get_final_response()
        assert [event.type for event in told if "output_item" in event.type] == [
            "response.output_item.added",
            "response.output_item.done",
        ]
    else:
        answer = client.responses.create(**forced)
    (call,) = answer.output
    assert (call.type, call.status) == (item, "completed")
    given = getattr(call, place).to_dict()
    (told,) = read({"type": kind})[0].tools
    written = {key: given[key] for key in given.keys() - OWN_TOOLS[kind].always.keys()}
    Draft202012Validator(told["function"]["parameters"]).validate(written)
    result = {"type": f"{item}_output", "call_id": call.call_id, "output": OUTPUTS[kind]}
    if kind == "local_shell":
        result |= {"id": call.call_id}
    later = client.responses.create(previous_response_id=answer.id, input=[result], **fields)
    assert later.output_text == TEXT
    by_id = front_end.prompts.decode(front_end.engine.seen[-1].prompt)
    said = [{"role": "user", "content": "What is here?"}, call.to_dict(), result]
    assert client.responses.create(input=said, **fields).output_text == TEXT
    assert front_end.prompts.decode(front_end.engine.seen[-1].prompt) == by_id


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_told_to_the_model_and_back_to_the_client(kind):
    request, echo = read({"type": kind})
    (told,) = request.tools
    function = told["function"]
    assert function["name"] == kind and function["description"]
    Draft202012Validator.check_schema(function["parameters"])
    assert echo.fields["tools"] == [{"type": kind}] and echo.left_out == ()


def test_a_shell_in_a_container_is_left_out_and_one_on_the_clients_machine_is_not():
    container = {"type": "shell", "environment": {"type": "container_auto"}}
    request, echo = read(container)
    assert request.tools == [] and echo.left_out == ("tools of type 'shell'",)
    local = {"type": "shell", "environment": {"type": "local"}}
    request, echo = read(local)
    assert [tool["function"]["name"] for tool in request.tools] == ["shell"]
    assert echo.fields["tools"] == [local]


def test_a_function_of_the_same_name_stays_another_tool():
    request, echo = read(FUNCTION, {"type": "shell"}, tool_choice={"type": "shell"})
    names = [tool["function"]["name"] for tool in request.tools]
    assert len(set(names)) == 2 and request.tool_choice.name != "shell"
    assert echo.called[request.tool_choice.name].kind == "shell"
    request, echo = read(
        FUNCTION, {"type": "shell"}, tool_choice={"type": "function", "name": "shell"}
    )
    assert echo.called[request.tool_choice.name].kind == ""


def test_a_choice_of_what_is_not_there_is_refused():
    with pytest.raises(ApiError) as refused:
        read(FUNCTION, tool_choice={"type": "apply_patch"})
    assert refused.value.param == "tool_choice"
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "shell"}]}
    request, _ = read({"type": "shell"}, {"type": "apply_patch"}, tool_choice=allowed)
    assert [tool["function"]["name"] for tool in request.tools] == ["shell"]


FINE = {
    "local_shell": {"command": ["ls"]},
    "shell": {"commands": ["ls"], "timeout_ms": 5},
    "apply_patch": {"type": "delete_file", "path": "a"},
}


@pytest.mark.parametrize(
    "kind, arguments",
    [
        ("local_shell", {}),
        ("local_shell", {"command": []}),
        ("local_shell", {"command": [""]}),
        ("local_shell", {"command": ["ls"], "env": {}}),
        ("shell", {"commands": []}),
        ("shell", {"commands": ["ls"], "\u00f1": 1}),
        ("apply_patch", {"type": "update_file", "path": "a"}),
        ("apply_patch", {"type": "delete_file", "path": ""}),
    ],
)
def test_what_the_model_is_told_takes_no_call_that_would_do_nothing(kind, arguments):
    (told,) = read({"type": kind})[0].tools
    schema = Draft202012Validator(told["function"]["parameters"])
    assert not schema.is_valid(arguments) and schema.is_valid(FINE[kind])


@pytest.mark.parametrize(
    "kind, text",
    [
        ("local_shell", '{"command": ["l'),
        ("shell", ""),
        ("shell", '{"commands": 5}'),
        ("shell", "[]"),
        ("apply_patch", '{"type": "update_file", "path": "a"'),
        ("apply_patch", '{"type": "update_file", "path": "a"}'),
    ],
)
def test_a_call_that_lacks_what_its_item_must_have_is_told_as_a_functions(kind, text):
    script = [called(0, name=kind), *([called(0, text)] if text else []), ended("length")]
    events = [data for _, data in stream_of(ResponsesDialect(read({"type": kind})[1]), script)]
    assert not [event for event in events if event.get("item", {}).get("type") in OWN_CALLS]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", kind, text)
    assert item["status"] == "incomplete" and events[-2]["item"] == item
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert added[0]["item"] == item | {"arguments": "", "status": "in_progress"}
    (whole,) = whole_of(ResponsesDialect(read({"type": kind})[1]), script)["output"]
    assert (whole["type"], whole["arguments"]) == ("function_call", text)


def test_a_search_that_was_cut_is_no_search():
    echo = read({"type": "tool_search", "execution": "client"})[1]
    script = [called(0, name="tool_search"), called(0, '{"q": "x'), ended("length")]
    (item,) = whole_of(ResponsesDialect(echo), script)["output"]
    assert item["type"] == "function_call"


def test_an_item_is_not_told_before_it_has_what_it_must_have():
    dialect = ResponsesDialect(read({"type": "shell"})[1])
    events = dialect.opening() + dialect.piece(called(0, name="shell"))
    events += dialect.piece(called(0, '{"commands": ["ls"]}'))
    assert [kind for kind, _ in events] == ["response.created", "response.in_progress"]
    (_, added), (_, done) = dialect.piece(ended("tool_calls"))
    assert added["item"]["action"] == done["item"]["action"] == {"commands": ["ls"]}
