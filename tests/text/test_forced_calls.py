"""Forced calls: plain JSON from a grammar, told as calls while it arrives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.protocol.pieces import CallPiece, Parts
from server.protocol.requests import ToolChoice
from server.text.call_scanner import CallScanner
from server.text.forced_calls import ForcedCalls
from tests.support.answers_folded import Cut, Folded, cuts, fold, parts_of
from tests.support.families import FAMILIES, write_tokenizer

NAMED = ToolChoice("named", "f")
REQUIRED = ToolChoice("required")
ONE = '{"a": "}],{\\"[\\\\", "b": [{"c": null}, -1.5e3], "d": {}}'
TWO = '{ "x" : true }'
BOTH = f'[{{"name": "f", "arguments": {ONE}}}, {{"name":"g","arguments":{TWO}}}]'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forced")
    return load(write_tokenizer(FAMILIES[0], folder, [BOTH] * 3))


def run(tokenizer, text: str, choice: ToolChoice, reason: str = "stop", **options) -> Folded:
    """The answer to text that comes in one piece; the same however it is cut."""
    whole = fold(ForcedCalls(Cut(tokenizer, [text]), choice, **options), [0], reason)
    for pieces in cuts(text):
        out = ForcedCalls(Cut(tokenizer, pieces), choice, **options)
        assert fold(out, range(len(pieces)), reason) == whole, pieces
    return whole


def test_named_passes_the_arguments_on(tokenizer):
    assert run(tokenizer, ONE, NAMED) == Folded("", "", (("f", ONE),), "tool_calls")
    assert run(tokenizer, "\n {}", NAMED) == Folded("", "", (("f", "{}"),), "tool_calls")


def test_named_comes_as_id_and_name_first(tokenizer):
    out = ForcedCalls(Cut(tokenizer, ['{"a', '": 1}']), NAMED)
    (first, second), (third,) = out.add(0).calls, out.add(1).calls
    assert first.id.startswith("call_") and first == CallPiece(0, first.id, "f")
    assert (second, third) == (CallPiece(0, arguments='{"a'), CallPiece(0, arguments='": 1}'))
    assert out.finish("stop") == (Parts(), "tool_calls")


def test_named_that_is_cut_says_length(tokenizer):
    assert run(tokenizer, ONE[:9], NAMED, "length").finish == "length"
    assert run(tokenizer, " ", NAMED, "length") == Folded(finish="length")


def test_required_tells_every_call(tokenizer):
    expected = (("f", ONE), ("g", TWO))
    assert run(tokenizer, BOTH, REQUIRED) == Folded("", "", expected, "tool_calls")
    got = run(tokenizer, BOTH, REQUIRED, parallel=False)
    assert got == Folded("", "", expected[:1], "tool_calls")


def test_required_tells_arguments_as_they_arrive(tokenizer):
    out = ForcedCalls(
        Cut(tokenizer, ['[{"name": "f", "argu', 'ments": {"a', '": 1}}', "]"]), REQUIRED
    )
    parts = [out.add(n).calls for n in range(4)]
    assert parts[0] == () and parts[3] == ()
    assert [piece.name for piece in parts[1]] == ["f", None]
    assert [piece.arguments for piece in (*parts[1], *parts[2])] == ["", '{"a', '": 1}']


@pytest.mark.parametrize(
    "text",
    ['[{"arguments": {}, "name": "f"}]', '{"name": "f", "arguments": {}}', '[{"name": "f"}]'],
)
def test_required_in_other_spellings(tokenizer, text):
    assert run(tokenizer, text, REQUIRED).calls == (("f", "{}"),)


def test_required_that_is_cut_holds_what_there_was(tokenizer):
    for at in range(len(BOTH)):
        got = run(tokenizer, BOTH[:at], REQUIRED, "length") if at % 7 == 0 else fold(
            ForcedCalls(Cut(tokenizer, [BOTH[:at]]), REQUIRED), [0], "length"
        )  # fmt: skip
        assert got.finish == "length" and not got.text
        for (name, arguments), (whole_name, whole) in zip(
            got.calls, (("f", ONE), ("g", TWO)), strict=False
        ):
            assert name == whole_name and whole.startswith(arguments)


def test_real_tokens_and_hidden_ones(tokenizer):
    tokens = tokenizer.encode(BOTH, add_special_tokens=False)
    out = ForcedCalls(tokenizer, REQUIRED, {tokenizer.eos_token_id})
    assert fold(out, [*tokens, tokenizer.eos_token_id]).calls == (("f", ONE), ("g", TWO))


def test_markers_inside_of_arguments_are_arguments(tokenizer):
    text = '{"a": "<think>b</think> <tool_call>"}'
    assert run(tokenizer, text, NAMED) == Folded("", "", (("f", text),), "tool_calls")


@pytest.mark.parametrize("start", ["", "<think>\n", "\n<think>"])
def test_thinking_before_the_call_is_reasoning(tokenizer, start):
    text = f'{start}hm <t\n\n{{"a": 1}}\n</think>\n\n{{"a": "</think>"}}'
    got = run(tokenizer, text, NAMED, thinks=True)
    assert got == Folded("", 'hm <t\n\n{"a": 1}', (("f", '{"a": "</think>"}'),), "tool_calls")
    cut = run(tokenizer, f"{start}hm </thi", NAMED, "length", thinks=True)
    assert cut == Folded("", "hm </thi", (), "length")


def test_reasoning_tokens_are_counted(tokenizer):
    thought = tokenizer.encode("hm hm\n", add_special_tokens=False)
    rest = tokenizer.encode("</think>\n\n{}", add_special_tokens=False)
    out = ForcedCalls(tokenizer, NAMED, thinks=True)
    _, finish = parts_of(out, [*thought, *rest])
    assert (out.reasoning_tokens, finish) == (len(thought), "tool_calls")
    assert ForcedCalls(tokenizer, NAMED).reasoning_tokens == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(0, 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=80)
@given(
    calls=st.lists(
        st.tuples(st.text(min_size=1, max_size=5), st.dictionaries(st.text(max_size=4), JSON)),
        min_size=1,
        max_size=3,
    ),
    style=st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}]),
    size=st.integers(1, 7),
)
def test_any_array_of_calls_comes_back(tokenizer, calls, style, size):
    text = json.dumps([{"name": n, "arguments": a} for n, a in calls], **style)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    got = fold(ForcedCalls(Cut(tokenizer, pieces), REQUIRED), range(len(pieces)))
    assert [(name, json.loads(arguments)) for name, arguments in got.calls] == calls


@pytest.mark.parametrize(
    "text",
    ["x", "[", '{"name"}', '{"name": 1}', '{"name": "f" "arguments"', '{"": 1}', "{,",
     '{"name": "f", "name": "g"}', '{"arguments": [1]}', '{"arguments": {}, "parameters": {}}',
     '{"name": "f"}}', '{"a\\q": 1}'],
)  # fmt: skip
def test_scanner_knows_what_is_no_call(text):
    scanner = CallScanner()
    for char in text:
        scanner.feed(char)
    assert scanner.failed


def test_a_text_that_is_the_whole_argument_comes_as_json(tokenizer):
    """A tool that takes a text with a grammar of its own: the answer is the text."""
    text = ' \n"a" \\ {\n'
    arguments = json.dumps({"input": text})
    assert run(tokenizer, text, NAMED, as_text=True) == Folded(
        "", "", (("f", arguments),), "tool_calls"
    )
    cut = run(tokenizer, text, NAMED, "length", as_text=True)
    assert cut.finish == "length" and cut.calls == (("f", arguments[:-2]),)
    empty = run(tokenizer, "", NAMED, as_text=True)
    assert empty.calls == (("f", '{"input": ""}'),) and empty.finish == "tool_calls"
