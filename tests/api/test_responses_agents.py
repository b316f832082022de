"""Whole conversations of agents over /v1/responses: the loops of SDKs, and codex's own requests."""

import json
import logging
import re

import openai
import pytest

from tests.support.agent_model import AgentModel, call, thought

MODEL = "demo"
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
DOCS = {
    "type": "namespace",
    "name": "mcp__docs",
    "description": "Tools in the mcp__docs namespace.",
    "tools": [
        {
            "type": "function",
            "name": "search",
            "description": "Search docs",
            "strict": False,
            "parameters": {
                "type": "object",
                "properties": {"q": {"type": "string"}},
                "required": ["q"],
            },
        }
    ],
}
GRAMMAR = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?
hunk: "*** Add File: " filename LF add_line+ | "*** Delete File: " filename LF
filename: /[a-z]{1,8}/
add_line: "+" /[a-z]{0,8}/ LF -> line
%import common.LF
"""
APPLY = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Use it to edit files. This is a free-form tool.",
    "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
}
PATCH = '*** Begin Patch\n*** Add File: a.py\n+\tprint("hi")\n*** End Patch\n'
TOOLS = [WEATHER, DOCS, APPLY, {"type": "web_search", "external_web_access": True}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    one = AgentModel(tmp_path_factory.mktemp("agent"))
    yield one
    one.end()


@pytest.fixture
def ask(model, stream):
    """Asks as a client does; the answer that it gathers."""
    client = openai.OpenAI(base_url=model.url, api_key="none", max_retries=0)
    model.answers.clear()
    model.prompts_seen.clear()

    def ask(**body):
        body = {"model": MODEL, "tools": TOOLS} | body
        if not stream:
            return client.responses.create(**body)
        events = list(client.responses.create(**body, stream=True))
        assert events[-1].type == "response.completed", events[-1]
        return events[-1].response

    return ask


@pytest.mark.parametrize("stream", [False, True])
def test_openais_tool_loop_goes_on_by_previous_response_id(model, ask, stream):
    model.answers = [
        thought("First the docs.") + "Let me look.\n" + call("mcp__docs__search", q="port"),
        thought("Now the file.") + call("apply_patch", input=PATCH),
        thought("And the rest.") + call("weather", city="null"),
        thought("Good.") + "All done.",
    ]
    answer = ask(input="Write it.", instructions="Be good.")
    items = []
    while calls := [item for item in answer.output if item.type.endswith("_call")]:
        items += calls
        results = [
            {"type": f"{one.type}_output", "call_id": one.call_id, "output": f"out {len(items)}"}
            for one in calls
        ]
        answer = ask(input=results, previous_response_id=answer.id)
    assert answer.output_text == "All done." and not model.answers
    docs, patch, weather = items
    assert (docs.name, docs.namespace, docs.arguments) == ("search", "mcp__docs", '{"q": "port"}')
    assert (patch.type, patch.name, patch.input) == ("custom_tool_call", "apply_patch", PATCH)
    assert (weather.name, json.loads(weather.arguments)) == ("weather", {"city": "null"})
    turns = [json.loads(turn) for turn in re.findall(r"<\|turn\|>(\{.*\})", model.prompts_seen[-1])]
    assert [turn["role"] for turn in turns] == ["user", *["assistant", "tool"] * 3]
    assert [turn.get("reasoning_content") for turn in turns[1::2]] == [
        "First the docs.", "Now the file.", "And the rest.",
    ]  # fmt: skip
    assert [turn["content"] for turn in turns[2::2]] == ["out 1", "out 2", "out 3"]
    functions = [turn["tool_calls"][0]["function"] for turn in turns[1::2]]
    assert [one["name"] for one in functions] == ["mcp__docs__search", "apply_patch", "weather"]
    assert functions[1]["arguments"] == {"input": PATCH}
    assert '"Be good."' in model.prompts_seen[0] and "Be good." not in model.prompts_seen[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_the_ai_sdks_loop_refers_to_items_by_their_ids(model, ask, stream):
    model.answers = [
        thought("Hm.") + "I look.\n" + call("weather", city="Rome"),
        thought("So.") + "Sunny.",
        thought("Bye.") + "Yes.",
    ]
    history = [{"role": "user", "content": "How is it?"}]
    first = ask(input=history)
    history += [{"type": "item_reference", "id": item.id} for item in first.output]
    (one,) = (item for item in first.output if item.type == "function_call")
    history.append({"type": "function_call_output", "call_id": one.call_id, "output": "24 C"})
    second = ask(input=history)
    history += [{"type": "item_reference", "id": item.id} for item in second.output]
    ask(input=[*history, {"role": "user", "content": "Sure?"}])
    last = model.prompts_seen[-1]
    for said in ("How is it?", "Hm.", "I look.", "Rome", "24 C", "So.", "Sunny.", "Sure?"):
        assert said in last


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["named", "required"])
def test_a_forced_text_keeps_to_the_grammar_of_its_tool(model, ask, stream, choice):
    named = {"type": "custom", "name": "apply_patch"}
    answer = ask(
        input="Patch it.", tools=[APPLY], tool_choice=named if choice == "named" else choice
    )
    (one,) = (item for item in answer.output if item.type == "custom_tool_call")
    hunk = r"\*\*\* (Add File: [a-z]{1,8}\n(\+[a-z]{0,8}\n)+|Delete File: [a-z]{1,8}\n)"
    assert re.fullmatch(rf"\*\*\* Begin Patch\n({hunk})+\*\*\* End Patch\n?", one.input), one.input


@pytest.mark.parametrize("stream", [False])
def test_a_forced_text_whose_grammar_cannot_be_used_is_refused_by_name(ask, stream):
    broken = APPLY | {"format": APPLY["format"] | {"definition": "start: nowhere"}}
    named = {"type": "custom", "name": "apply_patch"}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(input="x", tools=[WEATHER, broken], tool_choice=named)
    assert refused.value.param == "tools[1].format.definition"


def test_a_request_as_codex_sends_it_is_answered(model, caplog):
    """Its fields and items as version 0.171 sends them, cut to a few tools."""
    caplog.set_level(logging.INFO, "server.api.model_routes")
    model.answers, model.prompts_seen = [thought("Done?") + "done"], []
    said = {"type": "input_text", "text": "You are a coding agent."}
    body = {
        "model": MODEL,
        "stream": True,
        "input": [
            {"type": "message", "id": "msg_1", "role": "developer", "content": [said]},
            {
                "type": "message",
                "id": "msg_2",
                "role": "user",
                "content": [{"type": "input_text", "text": "Add a file"}],
            },
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "With a patch."}],
                "encrypted_content": None,
            },
            {
                "type": "custom_tool_call",
                "id": "ctc_1",
                "call_id": "c1",
                "name": "apply_patch",
                "input": PATCH,
            },
            {
                "type": "custom_tool_call_output",
                "id": "ctco_1",
                "call_id": "c1",
                "output": "Success.",
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "name": "search",
                "namespace": "mcp__docs",
                "arguments": '{"q": "x"}',
                "call_id": "c2",
            },
            {
                "type": "function_call_output",
                "id": "fco_1",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "Found."}],
            },
            {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
            {"type": "compaction", "encrypted_content": "gAAA"},
        ],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a2",
        "client_metadata": {"thread_id": "01a2", "turn_id": "01a2"},
    }
    answer = model.ask("POST", "/v1/responses", body)
    assert answer.status == 200
    events = [event.partition("data: ")[2] for event in answer.body.decode().split("\n\n")]
    last = json.loads([event for event in events if event][-1])
    assert last["type"] == "response.completed" and last["response"]["store"] is False
    assert last["response"]["output"][-1]["content"][0]["text"] == "done"
    (prompt,) = model.prompts_seen
    for told in ("With a patch.", "+\\tprint(", "Success.", "mcp__docs__search", "Found."):
        assert told in prompt
    assert "web_search" not in prompt and "gAAA" not in prompt
    (line,) = [one.getMessage() for one in caplog.records if "left out" in one.getMessage()]
    assert line.startswith("req_") and line.endswith(
        ": left out of the prompt: items of type 'web_search_call', items of type 'compaction', "
        "tools of type 'web_search'"
    )


def test_langchain_goes_on_by_previous_response_id(model):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model.answers = [
        thought("Hm.") + "I look.\n" + call("weather", city="Rome"),
        thought("So.") + "Sunny.",
    ]
    model.prompts_seen.clear()
    chat = ChatOpenAI(
        base_url=model.url,
        api_key="none",
        model=MODEL,
        use_responses_api=True,
        use_previous_response_id=True,
        max_retries=0,
    ).bind_tools([WEATHER])
    talk = [HumanMessage("How is it?")]
    talk.append(chat.invoke(talk))
    (one,) = talk[-1].tool_calls
    talk.append(ToolMessage("24 C", tool_call_id=one["id"]))
    assert chat.invoke(talk).text == "Sunny."
    for said in ("How is it?", "Hm.", "I look.", "Rome", "24 C"):
        assert said in model.prompts_seen[-1]
