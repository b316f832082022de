"""Tools that may be called, and a format for the answer: it is a call, or it has the format."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.api.dialects.chat import parse
from server.protocol.client import SERVER
from server.protocol.errors import ApiError
from server.protocol.requests import Served
from server.text.prompts import TokenizerPrompts
from tests.support.answers_folded import fold
from tests.support.families import FAMILIES, Family, write_tokenizer
from tests.support.grammar_walks import Walker, is_set

BY_NAME = {family.name: family for family in FAMILIES}
FORMAT = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}},
    "required": ["answer"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]


def special_marker(family: Family, marker: str) -> Family:
    """The same with the marker as a special token, which no text of a grammar stands for."""
    rest = tuple(other for other in family.markers if other != marker)
    return replace(family, markers=rest, special=(marker, *family.special))


FORMATS = [
    BY_NAME["qwen3.5"],
    BY_NAME["kimi-k2"],
    BY_NAME["deepseek-v3.2"],
    special_marker(BY_NAME["mistral"], "[TOOL_CALLS]"),
    special_marker(BY_NAME["minimax-m3"], "]<]minimax[>["),
    special_marker(BY_NAME["llama-3"], "<|python_tag|>"),
]


@pytest.fixture(scope="module", params=FORMATS, ids=lambda family: family.name)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / request.param.name
    tokenizer = load(write_tokenizer(request.param, Path(folder), ["some text"] * 3))
    prompts = TokenizerPrompts(tokenizer, len(tokenizer))
    yield prompts, Walker(folder, len(tokenizer))
    prompts.close()


@pytest.fixture(scope="module")
def harmony(tmp_path_factory):
    """gpt-oss, whose markers are special tokens."""
    family = BY_NAME["gpt-oss"]
    special = tuple(marker for marker in family.markers if marker != "<|return|>")
    family = replace(family, markers=(), special=(*special, "<|return|>"))
    folder = tmp_path_factory.mktemp("model") / "gpt-oss"
    tokenizer = load(write_tokenizer(family, Path(folder), ["some text"] * 3))
    prompts = TokenizerPrompts(tokenizer, len(tokenizer))
    yield prompts, Walker(folder, len(tokenizer))
    prompts.close()


def request_of(**fields):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": FORMAT}}
    body = {"messages": [{"role": "user", "content": "hi"}], "response_format": schema, **fields}
    return parse(body, Served("m"))


def answer(prompts, walker, request, seed: int, begin: list[int]):
    """What a client gets where a model without a mind writes on after begin."""
    prompt = prompts.from_chat(request)
    constraint = prompts.chat_constraint(request, prompt, SERVER)
    matcher = constraint.matcher()
    for token in begin:
        assert is_set(matcher.mask(), token), token
        matcher.accept(token)
    text = walker.walk(matcher, seed)
    tokens = [*begin, *walker.ids(text), walker.eos]
    return fold(prompts.chat_out(request, constraint, prompt), tokens)


def opener(walker, prompts) -> list[int]:
    from server.text.markup import markup_of

    return walker.ids(markup_of(prompts._tokenizer).reader.openers[0])


@pytest.mark.parametrize("parallel", [True, False])
def test_after_the_opener_come_calls_of_the_tools(model, parallel):
    prompts, walker = model
    request = request_of(tools=TOOLS, parallel_tool_calls=parallel)
    for seed in range(6):
        got = answer(prompts, walker, request, seed, opener(walker, prompts))
        assert (got.text, got.finish) == ("", "tool_calls") and got.calls
        assert parallel or len(got.calls) == 1
        for name, arguments in got.calls:
            values = json.loads(arguments)
            assert name in ("weather", "now")
            assert isinstance(values["city"], str) if name == "weather" else values == {}


def test_without_the_opener_the_answer_has_the_format(model):
    prompts, walker = model
    request = request_of(tools=TOOLS)
    for seed in range(4):
        got = answer(prompts, walker, request, seed, walker.ids("{"))
        assert (set(json.loads(got.text)), got.calls, got.finish) == ({"answer"}, (), "stop")


def test_nothing_else_may_begin_an_answer(model):
    prompts, walker = model
    request = request_of(tools=TOOLS)
    prompt = prompts.from_chat(request)
    mask = prompts.chat_constraint(request, prompt, SERVER).matcher().mask()
    for text in ("x", "Hello", ")", "n"):
        assert not is_set(mask, walker.ids(text)[0]), text


def test_a_choice_of_none_leaves_the_format_alone(model):
    prompts, walker = model
    request = request_of(tools=TOOLS, tool_choice="none")
    prompt = prompts.from_chat(request)
    mask = prompts.chat_constraint(request, prompt, SERVER).matcher().mask()
    assert not is_set(mask, opener(walker, prompts)[0]) and is_set(mask, walker.ids("{")[0])


@pytest.mark.parametrize(
    ("fields", "begin", "text"),
    [
        ({"guided_regex": "a+b"}, "a", "a"),
        ({"guided_choice": ["yes", "no"]}, "ye", "yes"),
        ({"guided_grammar": 'start: "x" | "y"'}, "x", "x"),
        ({"response_format": {"type": "json_object"}}, "{", "{"),
    ],
)
def test_every_kind_of_format_leaves_room_for_calls(model, fields, begin, text):
    prompts, walker = model
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, **fields}
    request = parse(body, Served("m"))
    assert answer(prompts, walker, request, 1, opener(walker, prompts)).calls
    assert answer(prompts, walker, request, 1, walker.ids(begin)).text.startswith(text)


def test_what_cannot_be_used_is_named(model):
    prompts, _ = model
    bad = {"type": "object", "properties": {"a": {"type": "no such type"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": bad}}]
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": bad}}
    for fields, word in (
        ({"tools": tools}, "tools[0].function.parameters"),
        ({"tools": TOOLS, "response_format": schema}, "response_format"),
    ):
        request = request_of(**fields)
        with pytest.raises(ApiError) as caught:
            prompts.chat_constraint(request, prompts.from_chat(request), SERVER)
        assert caught.value.status == 400 and word in caught.value.message


THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


@pytest.mark.parametrize("thoughts", ["", THOUGHT, THOUGHT * 2])
def test_harmony_thinks_then_calls_or_answers_in_its_own_messages(harmony, thoughts):
    prompts, walker = harmony
    request = request_of(tools=TOOLS)
    reasoning = "\n".join(["Hm."] * thoughts.count("Hm."))
    for name in ("weather", "now"):
        for begin in ("", f"functions.{name} "):
            begin = f"{thoughts}<|channel|>commentary to={begin}"
            got = answer(prompts, walker, request, 3, walker.ids(begin))
            assert (got.text, got.reasoning, got.finish) == ("", reasoning, "tool_calls")
            ((called, arguments),) = got.calls
            assert called == name or not begin.endswith(f"{name} ")
            assert isinstance(json.loads(arguments), dict)
    for constrained in ("", " <|constrain|>json"):
        begin = f"{thoughts}<|channel|>final{constrained}<|message|>"
        got = answer(prompts, walker, request, 1, walker.ids(begin))
        assert (set(json.loads(got.text)), got.reasoning, got.calls) == ({"answer"}, reasoning, ())
    prompt = prompts.from_chat(request)
    matcher = prompts.chat_constraint(request, prompt, SERVER).matcher()
    assert not is_set(matcher.mask(), walker.ids("{")[0])
