"""Real clients, unchanged, against the whole front end. Only the model is made up."""

import asyncio
import json

import anthropic
import openai
import pydantic
import pytest

from tests.support.front_end import CONTEXT, MODEL, TEXT, FrontEnd

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


class Trip(pydantic.BaseModel):
    """What the clients that work with pydantic ask for."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str
    days: int
    by_train: bool


@pytest.fixture(scope="module")
def front_end(demo_model_dir):
    one = FrontEnd(demo_model_dir, API_KEY="right")
    yield one
    one.end()


@pytest.fixture
def client(front_end) -> openai.OpenAI:
    return openai.OpenAI(base_url=front_end.url, api_key="right", max_retries=0)


@pytest.fixture
def claude(front_end) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=front_end.root, api_key="right", max_retries=0)


def user(text: str = "Where?") -> list[dict]:
    return [{"role": "user", "content": text}]


def function(name: str = "weather") -> dict:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}


def check_arguments(arguments: dict) -> None:
    assert arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9
    assert set(arguments) == {"city", "days"}


# openai: chat and completions.


def test_openai_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=user())
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint == "fp_demo"


def test_openai_chat_streamed_with_usage(client):
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=user(),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({(c.id, c.created) for c in chunks}) == 1
    *told, last = chunks
    assert last.choices == [] and last.usage.completion_tokens > 1
    assert told[0].choices[0].delta.role == "assistant" and told[0].usage is None
    assert "".join(c.choices[0].delta.content or "" for c in told) == TEXT
    assert [c.choices[0].finish_reason for c in told][-2:] == [None, "stop"]


def test_openai_async(front_end):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=front_end.url, api_key="right") as client:

            async def whole() -> str:
                answer = await client.chat.completions.create(model=MODEL, messages=user())
                return answer.choices[0].message.content

            async def streamed() -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=user(), stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(whole(), streamed(), whole(), streamed())

    assert asyncio.run(ask()) == [TEXT] * 4


@pytest.mark.parametrize("strict", [True, False])
def test_openai_json_schema(client, strict):
    schema = {"name": "trip", "schema": PARAMETERS, "strict": strict}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=user(),
        response_format={"type": "json_schema", "json_schema": schema},
    )
    check_arguments(json.loads(answer.choices[0].message.content))


def test_openai_parses_into_a_pydantic_model(client):
    answer = client.chat.completions.parse(model=MODEL, messages=user(), response_format=Trip)
    assert isinstance(answer.choices[0].message.parsed, Trip)


def test_openai_stream_helper_parses_a_pydantic_model(client):
    with client.chat.completions.stream(
        model=MODEL, messages=user(), response_format=Trip
    ) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(answer.choices[0].message.parsed, Trip)


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_forced_tool_calls(client, choice, stream):
    named = {"type": "function", "function": {"name": "weather"}}
    fields = {
        "model": MODEL,
        "messages": user(),
        "tools": [function("time"), function()],
        "tool_choice": named if choice == "named" else choice,
        "parallel_tool_calls": False,
    }
    if not stream:
        (one,) = client.chat.completions.create(**fields).choices
    else:
        with client.chat.completions.stream(**fields) as events:
            (one,) = events.until_done().get_final_completion().choices
    assert one.finish_reason == "tool_calls" and not one.message.content
    (call,) = one.message.tool_calls
    assert call.function.name in (["weather"] if choice == "named" else ["weather", "time"])
    check_arguments(json.loads(call.function.arguments))


def test_openai_goes_on_after_a_tool_call(client):
    said = (
        client.chat.completions.create(
            model=MODEL, messages=user(), tools=[function()], tool_choice="required"
        )
        .choices[0]
        .message
    )
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in said.tool_calls
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=[*user(), said, *results], tools=[function()]
    )
    assert answer.choices[0].message.content == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_openai_loop_of_several_steps(client, stream):
    """Calls and their results in turn, with a screenshot among them, until the model has done."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
    turns, steps = user(), 0
    while steps < 4:
        fields = {
            "model": MODEL,
            "messages": turns,
            "tools": [function()],
            "tool_choice": "required" if steps < 3 else "auto",
            "reasoning_effort": "high",
        }
        if stream:
            with client.chat.completions.stream(**fields) as events:
                (one,) = events.until_done().get_final_completion().choices
        else:
            (one,) = client.chat.completions.create(**fields).choices
        steps += 1
        turns = [*turns, one.message.to_dict()]
        if one.finish_reason != "tool_calls":
            break
        for call in one.message.tool_calls:
            check_arguments(json.loads(call.function.arguments))
            content = [{"type": "text", "text": "sunny"}, image]
            turns = [*turns, {"role": "tool", "tool_call_id": call.id, "content": content}]
    assert steps == 4 and one.finish_reason == "stop"
    assert one.message.content == TEXT


def test_openai_completions_with_echo_and_logprobs(client):
    answer = client.completions.create(
        model=MODEL, prompt="Paris is", echo=True, logprobs=2, max_tokens=4
    )
    (choice,) = answer.choices
    assert choice.text.startswith("Paris is") and choice.finish_reason == "length"
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None


def test_openai_choices_prompts_and_logprobs(client):
    answer = client.completions.create(model=MODEL, prompt=["one", "two"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    answer = client.chat.completions.create(
        model=MODEL, messages=user(), n=2, logprobs=True, top_logprobs=3
    )
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == TEXT
        assert len(tokens[0].top_logprobs) == 3


# openai: responses.


def test_openai_responses(client):
    answer = client.responses.create(model=MODEL, input="Where?", instructions="Be short.")
    assert (answer.status, answer.output_text) == ("completed", TEXT)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_openai_responses_streamed(client):
    with client.responses.stream(model=MODEL, input=user()) as stream:
        events = list(stream)
        answer = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer.output_text == TEXT


def test_openai_responses_parse_and_tools(client):
    answer = client.responses.parse(model=MODEL, input="Where?", text_format=Trip)
    assert isinstance(answer.output_parsed, Trip)
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    answer = client.responses.create(
        model=MODEL, input="Where?", tools=[tool], tool_choice="required"
    )
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls and all(call.name == "weather" for call in calls)
    for call in calls:
        check_arguments(json.loads(call.arguments))
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        for call in calls
    ]
    given = [*user(), *answer.output, *results]
    assert client.responses.create(model=MODEL, input=given, tools=[tool]).output_text == TEXT


# openai: errors and models.


def test_openai_errors_have_their_classes(front_end, client):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-5", messages=user())
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        create(model=MODEL, messages=user("word " * CONTEXT))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as hot:
        create(model=MODEL, messages=user(), temperature=3)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=front_end.url, api_key="wrong").models.list()
    assert client.models.retrieve(MODEL).id == client.models.list().data[0].id == MODEL


# anthropic.


def test_anthropic_messages(claude):
    answer = claude.messages.create(model=MODEL, max_tokens=100, messages=user(), system="Hi.")
    assert [(block.type, block.text) for block in answer.content] == [("text", TEXT)]
    assert answer.stop_reason == "end_turn" and answer.usage.output_tokens > 1
    short = claude.messages.create(model=MODEL, max_tokens=2, messages=user())
    assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 2
    stopped = claude.messages.create(
        model=MODEL, max_tokens=100, messages=user(), stop_sequences=[" France"]
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " France")
    assert stopped.content[0].text == "The capital of"


def test_anthropic_streaming(claude):
    with claude.messages.stream(model=MODEL, max_tokens=100, messages=user()) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    assert text == answer.content[0].text == TEXT
    assert answer.stop_reason == "end_turn"
    raw = claude.messages.create(model=MODEL, max_tokens=100, messages=user(), stream=True)
    kinds = [event.type for event in raw]
    assert kinds[0] == "message_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_tools(claude, stream):
    fields = {
        "model": MODEL,
        "max_tokens": 200,
        "messages": user(),
        "tools": [{"name": "weather", "description": "It.", "input_schema": PARAMETERS}],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    if not stream:
        answer = claude.messages.create(**fields)
    else:
        with claude.messages.stream(**fields) as events:
            answer = events.get_final_message()
    (block,) = answer.content
    assert (block.type, block.name, answer.stop_reason) == ("tool_use", "weather", "tool_use")
    check_arguments(block.input)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    later = claude.messages.create(
        **fields
        | {
            "messages": [
                *user(),
                {"role": "assistant", "content": answer.content},
                {"role": "user", "content": [result]},
            ],
            "tool_choice": {"type": "auto"},
        }
    )
    assert later.content[0].text == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_parses_what_fits_a_schema(claude, stream):
    """Claude Code asks for titles so; it got prose."""
    fields = {"model": MODEL, "max_tokens": 200, "messages": user(), "output_format": Trip}
    if not stream:
        answer = claude.messages.parse(**fields)
    else:
        with claude.messages.stream(**fields) as events:
            answer = events.get_final_message()
    assert isinstance(answer.parsed_output, Trip)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_loop_of_several_steps(claude, stream):
    """Calls and their results in turn, with a screenshot among them, until the model has done."""
    schema = {"name": "weather", "input_schema": PARAMETERS}
    image = {"type": "base64", "media_type": "image/png", "data": "eA=="}
    turns, steps = user(), 0
    while steps < 4:
        fields = {
            "model": MODEL,
            "max_tokens": 200,
            "messages": turns,
            "tools": [schema],
            "tool_choice": {"type": "any" if steps < 3 else "auto"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        }
        if stream:
            with claude.messages.stream(**fields) as events:
                answer = events.get_final_message()
        else:
            answer = claude.messages.create(**fields)
        steps += 1
        turns = [*turns, {"role": "assistant", "content": answer.content}]
        uses = [block for block in answer.content if block.type == "tool_use"]
        if not uses:
            break
        for use in uses:
            check_arguments(use.input)
        results = [
            {
                "type": "tool_result",
                "tool_use_id": use.id,
                "content": [
                    {"type": "text", "text": "sunny"},
                    {"type": "image", "source": image},
                ],
            }
            for use in uses
        ]
        turns = [*turns, {"role": "user", "content": results}]
    assert steps == 4 and answer.stop_reason == "end_turn"
    assert answer.content[-1].text == TEXT


def test_anthropic_counts_what_the_answer_counts(claude):
    count = claude.messages.count_tokens(model=MODEL, messages=user(), system="Hi.")
    answer = claude.messages.create(model=MODEL, max_tokens=5, messages=user(), system="Hi.")
    assert count.input_tokens == answer.usage.input_tokens


def test_anthropic_errors_have_their_classes(front_end, claude):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="claude", max_tokens=5, messages=user())
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model=MODEL, max_tokens=0, messages=user())
    other = anthropic.Anthropic(base_url=front_end.root, api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError):
        other.messages.create(model=MODEL, max_tokens=5, messages=user())


def test_anthropic_async_streams(front_end):
    async def ask() -> str:
        async with (
            anthropic.AsyncAnthropic(
                base_url=front_end.root, auth_token="right", api_key=None
            ) as client,
            client.messages.stream(model=MODEL, max_tokens=100, messages=user()) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(ask()) == TEXT


# pydantic-ai.


def agent(front_end: FrontEnd, **options):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=front_end.url, api_key="right")
    return Agent(OpenAIChatModel(MODEL, provider=provider), **options)


def test_pydantic_ai_answers_in_text_streamed_and_not(front_end):
    assert agent(front_end).run_sync("Where?").output == TEXT

    async def stream() -> str:
        async with agent(front_end).run_stream("Where?") as answer:
            return [text async for text in answer.stream_text()][-1]

    assert asyncio.run(stream()) == TEXT


def test_pydantic_ai_forces_its_output_tool(front_end):
    answer = agent(front_end, output_type=Trip).run_sync("Where?")
    assert isinstance(answer.output, Trip)


def test_pydantic_ai_native_output(front_end):
    from pydantic_ai import NativeOutput

    answer = agent(front_end, output_type=NativeOutput(Trip)).run_sync("Where?")
    assert isinstance(answer.output, Trip)


# langchain-openai.


@pytest.fixture
def langchain(front_end):
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=front_end.url, api_key="right", model=MODEL, max_retries=0)


def test_langchain_answers_streamed_and_not(langchain):
    answer = langchain.invoke("Where?")
    assert answer.content == TEXT
    assert answer.usage_metadata["output_tokens"] > 1
    assert "".join(chunk.text for chunk in langchain.stream("Where?")) == TEXT


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(langchain, method):
    chain = langchain.with_structured_output(Trip, method=method)
    assert isinstance(chain.invoke("Where?"), Trip)


def test_langchain_binds_tools(langchain):
    forced = langchain.bind_tools([function()], tool_choice="weather")
    answer = forced.invoke("Where?")
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    check_arguments(call["args"])


def test_langchain_recognises_a_prompt_that_is_too_long(langchain):
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError):
        langchain.invoke("word " * CONTEXT)


def test_langchain_responses_api(front_end):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=front_end.url, api_key="right", model=MODEL, use_responses_api=True)
    assert model.invoke("Where?").text == TEXT
