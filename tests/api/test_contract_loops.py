"""Tool loops of several steps, as the SDKs run them, over a model in a family's own format.

Where a request has a grammar, the model's tokens must be allowed by it. The AI SDK has no place in
Python: its steps are sent as they were recorded (version 6.0).
"""

import json
import re
from collections.abc import Iterator
from random import Random

import anthropic
import openai
import pydantic
import pytest

from server.protocol.events import Event, Token
from server.scheduler.queue import Ticket
from server.text.markup import markup_of
from tests.support.agent_model import KEY, AgentModel
from tests.support.grammar_walks import is_set

USER = "Is it warm in Rome, Paris and Oslo?"
WEATHER = {"Rome": "28 degrees", "Paris": "19 degrees", "Oslo": "no station there"}
DONE = "Rome is warm."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
RESPONSES_TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
CLAUDE_TOOL = {"name": "weather", "description": "It.", "input_schema": SCHEMA}


class Warm(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    city: str
    warm: bool


@pytest.fixture(scope="module", params=["qwen3.5", "kimi-k2", "mistral"])
def model(request, tmp_path_factory):
    one = AgentModel(tmp_path_factory.mktemp("loops"), request.param)
    yield one
    one.end()


@pytest.fixture(autouse=True)
def anew(model):
    """A model that says a call, two at once, and the end; nothing that its grammars forbid."""
    forbidden.clear()
    say_three_steps(model)
    yield
    assert forbidden == []


@pytest.fixture
def client(model) -> openai.OpenAI:
    return openai.OpenAI(base_url=model.url, api_key=KEY, max_retries=0)


@pytest.fixture
def claude(model) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=model.root, api_key=KEY, max_retries=0)


forbidden: list[str] = []


def say_three_steps(model: AgentModel) -> None:
    begun = model.thought("One by one.") + "I look.\n" + model.call("weather", city="Rome")
    two = [model.family.call("weather", json.dumps({"city": city})) for city in ("Paris", "Oslo")]
    others = model.thought("And the others.") + model.family.calls(two)
    script(model, begun, others, model.thought("Good.") + DONE)


def script(model: AgentModel, *texts: str) -> None:
    left = list(texts)
    model.prompts_seen.clear()

    def say(ticket: Ticket) -> Iterator[Event]:
        model.prompts_seen.append(model.front.prompts.decode(ticket.prompt))
        return allowed(model, ticket, left.pop(0))

    model.engine.script = say


def allowed(model: AgentModel, ticket: Ticket, text: str) -> Iterator[Event]:
    """The text; with a grammar it is the beginning, and what the grammar allows follows."""
    speaker = model.front.speaker
    tokens = speaker.tokenizer.encode(text, add_special_tokens=False)
    if ticket.grammar is None:
        yield from model.speak(text, ticket)
        return
    matcher, end = ticket.grammar.matcher(), set(speaker.tokenizer.eos_token_ids)
    while True:
        mask = matcher.mask()
        token = tokens.pop(0) if tokens else speaker._choose(mask, Random(0))
        if mask is not None and not is_set(mask, token):
            forbidden.append(f"{speaker.tokenizer.decode([token])!r} of {text!r}")
            token = min(end)
        yield Token(token, "stop" if token in end else None, None)
        if token in end:
            return
        matcher.accept(token)


def say_call_then_format(model: AgentModel) -> None:
    """Where a grammar leaves both open, and a thought before. Mistral's, which the prompt does not
    begin, is not among the things that it allows."""
    opener = markup_of(model.front.speaker.tokenizer).reader.openers[0]
    thought = "" if model.family.name == "mistral" else model.thought("Look.").rstrip()
    script(model, thought + opener, thought + '{"city":"Rome","warm":true}')


def check_prompts(model: AgentModel) -> None:
    """That the last prompt has all that was said, in its order."""
    assert len(model.prompts_seen) == 3
    told = [USER, "One by one.", "I look.", "Rome", WEATHER["Rome"], "And the others."]
    told += ["Paris", "Oslo", WEATHER["Paris"], WEATHER["Oslo"]]
    last = model.prompts_seen[-1]
    places = [last.index(told[0])]
    for word in told[1:]:
        places.append(last.index(word, places[-1] + 1 if word != "Rome" else places[-1]))
    assert places == sorted(places)
    for earlier, later in zip(model.prompts_seen, model.prompts_seen[1:], strict=False):
        begun = earlier.rpartition("<|turn|>")[0]
        assert later.startswith(begun)  # so that its caches are reused


# OpenAI's Responses.


def respond(client: openai.OpenAI, stream: bool, **fields):
    fields = {"model": "demo", "tools": [RESPONSES_TOOL], **fields}
    if not stream:
        return client.responses.create(**fields)
    with client.responses.stream(**fields) as events:
        return events.until_done().get_final_response()


def outputs(response) -> list[dict]:
    return [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": WEATHER.get(json.loads(item.arguments)["city"], "28 degrees"),
        }
        for item in response.output
        if item.type == "function_call"
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kept", [True, False])
def test_responses_go_on_from_an_id_or_from_the_items(model, client, stream, kept):
    said = [{"role": "user", "content": USER}]
    answer = respond(client, stream, input=said, store=kept)
    for _ in range(2):
        results = outputs(answer)
        if kept:
            more = {"input": results, "previous_response_id": answer.id}
        else:
            said = [*said, *(item.to_dict() for item in answer.output), *results]
            more = {"input": said}
        answer = respond(client, stream, store=kept, **more)
    assert answer.output_text == DONE and not outputs(answer)
    check_prompts(model)


def test_both_ways_make_the_same_prompt(model, client):
    test_responses_go_on_from_an_id_or_from_the_items(model, client, False, True)
    by_id = list(model.prompts_seen)
    say_three_steps(model)
    test_responses_go_on_from_an_id_or_from_the_items(model, client, True, False)

    def anonymous(prompt: str) -> str:
        return re.sub(r'"(tool_call_)?id": "[^"]+"', "", prompt)

    assert list(map(anonymous, model.prompts_seen)) == list(map(anonymous, by_id))


# OpenAI's chat.


@pytest.mark.parametrize("stream", [False, True])
def test_chat_loop_with_several_calls_at_once(model, client, stream):
    turns = [{"role": "user", "content": USER}]
    for _ in range(4):
        fields = {"model": "demo", "messages": turns, "tools": [CHAT_TOOL]}
        if stream:
            with client.chat.completions.stream(**fields) as events:
                (one,) = events.until_done().get_final_completion().choices
        else:
            (one,) = client.chat.completions.create(**fields).choices
        turns = [*turns, one.message.to_dict()]
        if one.finish_reason != "tool_calls":
            break
        for call in one.message.tool_calls:
            content = WEATHER[json.loads(call.function.arguments)["city"]]
            turns = [*turns, {"role": "tool", "tool_call_id": call.id, "content": content}]
    assert one.message.content == DONE
    check_prompts(model)


# A format for the end, and tools before it: openai-agents, pydantic-ai and the AI SDK send both in
# each request.


def test_chat_calls_first_and_then_has_the_format(model, client):
    say_call_then_format(model)
    strict = {**CHAT_TOOL, "function": {**CHAT_TOOL["function"], "strict": True}}
    turns = [{"role": "user", "content": USER}]
    for _ in range(2):
        answer = client.chat.completions.parse(
            model="demo", messages=turns, tools=[strict], response_format=Warm
        )
        message = answer.choices[0].message
        turns = [*turns, message.to_dict()]
        for call in message.tool_calls or ():
            turns.append({"role": "tool", "tool_call_id": call.id, "content": "28 degrees"})
    assert message.parsed == Warm(city="Rome", warm=True)
    assert {turn["role"] for turn in turns[1:-1]} == {"assistant", "tool"}


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_first_and_then_have_the_format(model, client, stream):
    say_call_then_format(model)
    said = [{"role": "user", "content": USER}]
    for _ in range(2):
        fields = {"model": "demo", "input": said, "tools": [RESPONSES_TOOL], "text_format": Warm}
        if stream:
            with client.responses.stream(**fields) as events:
                answer = events.until_done().get_final_response()
        else:
            answer = client.responses.parse(**fields)
        said = [*said, *(item.to_dict() for item in answer.output), *outputs(answer)]
    assert answer.output_parsed == Warm(city="Rome", warm=True)


def test_messages_call_first_and_then_have_the_format(model, claude):
    say_call_then_format(model)
    turns = [{"role": "user", "content": USER}]
    fields = {"model": "demo", "max_tokens": 500, "tools": [CLAUDE_TOOL], "output_format": Warm}
    first = claude.messages.parse(messages=turns, **fields)
    assert first.stop_reason == "tool_use" and first.parsed_output is None
    turns += [{"role": "assistant", "content": first.content}, results(first)]
    assert claude.messages.parse(messages=turns, **fields).parsed_output == Warm(
        city="Rome", warm=True
    )


# Anthropic's Messages.


def results(answer) -> dict:
    """The user's turn with what came of all calls; one of them has failed."""
    return {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": block.id,
                "content": WEATHER.get(block.input["city"], "28 degrees"),
                "is_error": block.input["city"] == "Oslo",
            }
            for block in answer.content
            if block.type == "tool_use"
        ],
    }


@pytest.mark.parametrize("stream", [False, True])
def test_messages_loop_with_several_calls_at_once(model, claude, stream):
    turns = [{"role": "user", "content": USER}]
    calls = []
    for _ in range(4):
        fields = {"model": "demo", "max_tokens": 500, "messages": turns, "tools": [CLAUDE_TOOL]}
        if stream:
            with claude.messages.stream(**fields) as events:
                answer = events.get_final_message()
        else:
            answer = claude.messages.create(**fields)
        if answer.stop_reason != "tool_use":
            break
        calls.append(sum(block.type == "tool_use" for block in answer.content))
        turns = [*turns, {"role": "assistant", "content": answer.content}, results(answer)]
    assert calls == [1, 2]
    assert answer.content[-1].text == DONE
    check_prompts(model)


def test_the_tool_runner_goes_on_with_the_whole_conversation(model, claude):
    """It begins a thread, and would go on with no more than the result of the call."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """It.

        Args:
            city: where
        """
        return WEATHER[city]

    messages = [{"role": "user", "content": USER}]
    runner = claude.beta.messages.tool_runner(
        model="demo", max_tokens=500, tools=[weather], messages=messages
    )
    assert runner.until_done().content[-1].text == DONE
    check_prompts(model)


def test_a_thread_is_refused_by_its_name(model, claude):
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(
            model="demo",
            max_tokens=5,
            messages=[{"role": "user", "content": "x"}],
            extra_body={"thread": {"type": "continue", "previous_message_id": "msg_1"}},
        )
    error = refused.value.body["error"]
    assert "'thread' is not supported" in error["message"]
    assert error["details"]["error_code"] == "thread_unsupported_request"


# The AI SDK's default provider: Responses, in which later steps name earlier items by their ids.


def sent(model: AgentModel, path: str, body: dict) -> list[dict]:
    answer = model.ask("POST", path, body, f"Authorization: Bearer {KEY}")
    assert answer.status == 200, answer.body
    if not body.get("stream"):
        return [answer.json]
    lines = answer.body.decode().splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def items_of(told: list[dict], stream: bool) -> list[dict]:
    if not stream:
        return told[0]["output"]
    return [event["item"] for event in told if event["type"] == "response.output_item.done"]


@pytest.mark.parametrize("stream", [False, True])
def test_ai_sdk_steps_over_responses(model, stream):
    said = [{"role": "user", "content": [{"type": "input_text", "text": USER}]}]
    for _ in range(3):
        body = {"model": "demo", "input": said, "tools": [RESPONSES_TOOL], "tool_choice": "auto"}
        items = items_of(sent(model, "/v1/responses", body | {"stream": stream}), stream)
        calls = [item for item in items if item["type"] == "function_call"]
        said += [{"type": "item_reference", "id": one["id"]} for one in items if one not in calls]
        known = ("type", "call_id", "name", "arguments")
        said += [{name: call[name] for name in known} for call in calls]
        for call in calls:
            result = {"type": "function_call_output", "call_id": call["call_id"]}
            said.append(result | {"output": WEATHER[json.loads(call["arguments"])["city"]]})
    assert items[-1]["content"][0]["text"] == DONE
    assert sum(item.get("type") == "item_reference" for item in said) >= 4
    check_prompts(model)


@pytest.mark.parametrize("stream", [False, True])
def test_ai_sdk_steps_over_chat(model, stream):
    """Of its chat providers, whose assistant turns have calls and no content."""
    turns: list[dict] = [{"role": "user", "content": USER}]
    for _ in range(3):
        body = {"model": "demo", "messages": turns, "tools": [CHAT_TOOL], "tool_choice": "auto"}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        told = sent(model, "/v1/chat/completions", body)
        text, calls = folded(told) if stream else whole(told)
        if not calls:
            break
        turns = [*turns, {"role": "assistant", "content": None, "tool_calls": calls}]
        for call in calls:
            content = WEATHER[json.loads(call["function"]["arguments"])["city"]]
            turns = [*turns, {"role": "tool", "tool_call_id": call["id"], "content": content}]
    assert text == DONE and len(model.prompts_seen) == 3
    assert all(one in model.prompts_seen[-1] for one in (USER, *WEATHER, *WEATHER.values()))


def whole(told: list[dict]) -> tuple[str, list[dict]]:
    message = told[0]["choices"][0]["message"]
    return message["content"], message.get("tool_calls", [])


def folded(told: list[dict]) -> tuple[str, list[dict]]:
    text, calls = "", {}
    for chunk in told:
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            for part in choice["delta"].get("tool_calls", ()):
                call = calls.setdefault(
                    part["index"],
                    {"id": part.get("id"), "type": "function", "function": {"arguments": ""}},
                )
                call["function"]["name"] = part["function"].get("name") or call["function"]["name"]
                call["function"]["arguments"] += part["function"].get("arguments", "")
    return text, list(calls.values())
