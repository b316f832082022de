"""Content, reasoning and calls out of a chat answer's tokens: what holds for every family.

What a family's own format needs is in test_model_families.py.
"""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.protocol.pieces import Parts
from server.text.chat_text import READ_IN_VAIN, ChatText
from tests.support.answers_folded import Cut, Folded, cuts, fold, parts_of
from tests.support.call_shapes import Counting
from tests.support.families import END, FAMILIES, write_tokenizer

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "x\\n1", "b": [2]}}\n</tool_call>'
ARGUMENTS = '{"a": "x\\n1", "b": [2]}'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CORPUS = [f"<think>\nhm\n</think>\n\nyes {CALL}"] * 3


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """name -> that family's tokenizer."""
    made = {}

    def get(name: str):
        if name not in made:
            family = next(family for family in FAMILIES if family.name == name)
            made[name] = load(write_tokenizer(family, tmp_path_factory.mktemp(name), CORPUS))
        return made[name]

    return get


@pytest.fixture(scope="module")
def qwen(tokenizers):
    return tokenizers("qwen3")


def run(tokenizer, text: str, reason: str = "stop", **options) -> Folded:
    """The answer to text that comes in one piece; the same however it is cut."""
    options = {"tools": TOOLS, **options}
    whole = fold(ChatText(Cut(tokenizer, [text]), **options), [0], reason)
    for pieces in cuts(text):
        out = ChatText(Cut(tokenizer, pieces), **options)
        assert fold(out, range(len(pieces)), reason) == whole, pieces
    return whole


def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# Content and stop strings.


def test_content_comes_as_it_is_written_and_at_once(qwen):
    out = ChatText(qwen, parse_calls=False)
    tokens = encoded(qwen, "Two  words\n and\n")
    assert all(out.add(token).text for token in tokens[:1])
    assert fold(ChatText(qwen), tokens) == Folded("Two  words\n and\n")


def test_an_unfinished_character_waits_for_its_bytes(qwen):
    out = ChatText(qwen)
    pieces = [out.add(token).text for token in encoded(qwen, "🙂")]
    assert len(pieces) > 1 and pieces == [""] * (len(pieces) - 1) + ["🙂"]


def test_hidden_tokens_are_no_text_and_others_are(qwen):
    tokens = [*encoded(qwen, "a"), qwen.eos_token_id]
    assert fold(ChatText(qwen, hidden={qwen.eos_token_id}), tokens).text == "a"
    assert fold(ChatText(qwen), tokens).text == "a" + END


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abc END def", ("END",), "abc "),
        ("abc", ("END",), "abc"),
        ("a\n\nb", ("\n\n",), "a"),
        ("a  \nb", ("b",), "a  \n"),
        ("xabcdx", ("abcd", "bc"), "xa"),
        ("a <tool b", ("tool b",), "a <"),
        ("日本 🙂", ("🙂",), "日本 "),
        ("<think>\nENDless\n</think>\n\nabc END", ("END",), "abc "),
        ("<think>\nhm\n</think>\n\nabc", ("\n\n",), "abc"),
        (f"abc{CALL}", ("arguments",), "abc"),
        ("<tool_call>{END}</tool_call> END", ("END",), "<tool_call>{"),
    ],
)
def test_stop_strings_cut_the_content_and_only_that(qwen, text, stop, expected):
    assert run(qwen, text, stop=stop).text == expected


def test_which_stop_string_it_was_is_told(qwen):
    out = ChatText(Cut(qwen, ["abc EN", "D def", "ghi"]), stop=("x", "END"))
    # A space may be layout before a call, so it waits, too.
    assert [out.add(n) for n in range(3)] == [Parts("abc"), Parts(" "), Parts()]
    assert out.stopped == "END"
    assert out.finish("stop") == (Parts(), "stop")


def test_a_stop_string_after_a_call_leaves_the_call(qwen):
    got = run(qwen, f"{CALL}\nabc END", stop=("END",))
    assert (got.text, got.calls, got.finish) == ("abc ", (("f", ARGUMENTS),), "tool_calls")


def test_a_stop_string_does_not_reach_across_a_call(qwen):
    assert run(qwen, f"ab{CALL}cd", stop=("bc",)).text == "abcd"


def test_a_stop_string_at_the_very_end_is_decided_by_finish(qwen):
    out = ChatText(qwen, stop=("\ufffd",))
    assert out.add(encoded(qwen, "🙂")[0]) == Parts()
    assert out.finish("length") == (Parts(), "stop") and out.stopped == "\ufffd"


# Reasoning.


def test_reasoning_is_split_off_without_the_newlines_around_it(qwen):
    got = run(qwen, "<think>\n\nhm\n\n a \n</think>\n\n\n  yes\n")
    assert got == Folded("  yes\n", "hm\n\n a")


def test_empty_reasoning_is_none(qwen):
    assert run(qwen, "<think>\n\n</think>\n\nyes") == Folded("yes")


def test_reasoning_tokens_are_counted_between_the_markers(qwen):
    thought = encoded(qwen, "\nhm\n")
    tokens = [*encoded(qwen, "<think>"), *thought, *encoded(qwen, "</think>\n\nyes it is")]
    out = ChatText(qwen)
    fold(out, tokens)
    assert out.reasoning_tokens == len(thought)
    opened = ChatText(qwen, prompt_ids=encoded(qwen, "<|turn|>assistant\n<think>\n"))
    fold(opened, tokens[1:])
    assert opened.reasoning_tokens == len(thought)
    none = ChatText(qwen)
    fold(none, encoded(qwen, "yes it is"))
    assert none.reasoning_tokens == 0


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|turn|>user\nhi\n<|turn|>assistant\n<think>\n", True),
        ("<|turn|>user\nhi\n<|turn|>assistant\n<think>\nWell,", True),
        ("<|turn|>user\nhi\n<|turn|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|turn|>user\nhi\n<|turn|>assistant\n", False),
        ("<|turn|>user\nwhat is <think>?\n<|turn|>assistant\n", False),
        ("<|turn|>user\nwhat is </think>?\n<|turn|>assistant\n<think>\n", True),
        ("", False),
    ],
)
def test_thinking_that_the_prompt_has_opened_goes_on(qwen, prompt, opened):
    """A <think> in a user's message is none, though mlx_lm.server takes it for one."""
    got = run(qwen, "a</think>b", prompt_ids=encoded(qwen, prompt))
    assert got == (Folded("b", "a") if opened else Folded("a</think>b"))


def test_an_answer_can_speak_about_thinking(qwen):
    text = "Write <think> first, then </think>.\n<think>"
    assert run(qwen, text) == Folded(text)
    assert run(qwen, f"<think>\nhm\n</think>\n\n{text}") == Folded(text, "hm")


def test_thinking_about_calls_is_reasoning(qwen):
    text = "<think>\nSo <tool_call>{}</tool_call> or\n<tool_call> it is.\n</think>\n\nyes"
    assert run(qwen, text) == Folded("yes", "So <tool_call>{}</tool_call> or\n<tool_call> it is.")


def test_a_call_inside_of_thinking_is_one(qwen):
    assert run(qwen, f"<think>\nhm\n{CALL}") == Folded("", "hm", (("f", ARGUMENTS),), "tool_calls")


def test_harmony_messages_of_one_kind_are_put_together(tokenizers):
    text = (
        "<|channel|>analysis<|message|>one<|end|><|start|>assistant"
        "<|channel|>analysis<|message|>two<|end|><|start|>assistant"
        "<|channel|>final<|message|>yes"
    )
    prompt = encoded(tokenizers("gpt-oss"), "<|start|>assistant")
    assert run(tokenizers("gpt-oss"), text, prompt_ids=prompt) == Folded("yes", "one\ntwo")


def test_harmony_call_that_names_its_recipient_first(tokenizers):
    text = ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    got = run(tokenizers("gpt-oss"), text)
    assert got == Folded("", "", (("f", '{"a": 1}'),), "tool_calls")


def test_harmony_without_its_headers_is_text(tokenizers):
    """A grammar leaves no room for them."""
    assert run(tokenizers("gpt-oss"), "just text") == Folded("just text")
    assert run(tokenizers("gpt-oss"), '{"a": "<|c"}<|end|>') == Folded('{"a": "<|c"}')
    out = ChatText(Cut(tokenizers("gpt-oss"), ["{", '"a']))
    assert [out.add(0).text, out.add(1).text] == ["{", '"a']
    final = encoded(tokenizers("gpt-oss"), "<|start|>assistant<|channel|>final<|message|>")
    assert run(tokenizers("gpt-oss"), "just text", prompt_ids=final) == Folded("just text")


# Calls.


def test_a_call_comes_as_id_and_name_then_arguments_in_pieces(qwen):
    long = json.dumps({"a": "é" * 300}, ensure_ascii=False)
    text = f'<tool_call>{{"name": "f", "arguments": {long}}}</tool_call>'
    parts, finish = parts_of(ChatText(qwen, tools=TOOLS), encoded(qwen, text))
    first, *rest = sum(parts, Parts()).calls
    assert re.fullmatch(r"call_[0-9a-f]{32}", first.id)
    assert (first.index, first.name, first.arguments) == (0, "f", "")
    assert len(rest) > 2 and all(piece.id is piece.name is None for piece in rest)
    assert "".join(piece.arguments for piece in rest) == long and finish == "tool_calls"


def test_a_call_that_is_cut_is_text_and_says_length(qwen):
    """Its arguments were once told as they came, and stood though no end of them ever came."""
    text = 'I <tool_call>\n{"name": "f", "arguments": {"a": 1'
    assert run(qwen, text, "length") == Folded(text, finish="length")


def test_what_follows_a_call_without_an_end_is_not_lost(qwen):
    text = '<tool_call>{"name": "f", "arguments": {"a": 1}} and more'
    assert run(qwen, text) == Folded(text)


@pytest.mark.parametrize(
    "call",
    [
        '{"arguments": {"a": 1}, "name": "f"}',
        '{"id": 7, "name": "f", "ok": true, "arguments": {"a": 1}}',
        '  {"name":"f","arguments":{"a": 1}}  ',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    ],
)
def test_json_calls_in_any_order(qwen, call):
    got = run(qwen, f"<tool_call>{call}</tool_call>")
    assert got.calls == (("f", '{"a": 1}'),)


@pytest.mark.parametrize("call", ['{"name": "f"}', '{"name": "f", "arguments": {}}'])
def test_a_call_without_arguments_has_an_empty_object(qwen, call):
    got = run(qwen, f"<tool_call>{call}</tool_call>")
    assert got == Folded("", "", (("f", "{}"),), "tool_calls")


@pytest.mark.parametrize(
    "body",
    [
        "", "no json", "[]", "{}", "null", '"f"', '{"name": 1, "arguments": {}}',
        '{"name": "", "arguments": {}}', '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "x"}', '{"name": "f", "arguments": {"a": NaN}}',
        '{"arguments": {}}', "[" * 100_000, '{"name": "f", "arguments": {"a": 1}',
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(qwen, body):
    text = f"See:\n<tool_call>{body}</tool_call>\nthere"
    assert fold(ChatText(Cut(qwen, [text]), tools=TOOLS), [0]) == Folded(text)


def test_a_call_after_one_that_is_none(qwen):
    got = run(qwen, f"So <tool_call>oh</tool_call> {CALL}\n")
    assert got == Folded("So <tool_call>oh</tool_call>", "", (("f", ARGUMENTS),), "tool_calls")
    got = run(qwen, f"I use <tool_call>: {CALL}")
    assert got == Folded("I use <tool_call>:", "", (("f", ARGUMENTS),), "tool_calls")


def test_whatever_a_parser_raises_is_text(qwen):
    for error in (KeyError("x"), RecursionError(), AssertionError(), StopIteration()):

        class Broken(Cut):
            def tool_parser(self, text, tools, error=error):
                raise error

        assert fold(ChatText(Broken(qwen, [CALL])), [0]) == Folded(CALL)


def test_parsers_are_given_the_tools(tokenizers):
    call = "<tool_call>\n<function=f>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>"
    for kind, value in (("integer", 5), ("string", "5")):
        parameters = {"type": "object", "properties": {"n": {"type": kind}}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        got = run(tokenizers("qwen3.5"), call, tools=tools)
        assert json.loads(got.calls[0][1]) == {"n": value}


@pytest.mark.parametrize("parameters", [None, {}, {"properties": {"n": True}}])
def test_tools_of_few_words_are_no_trouble_for_parsers(tokenizers, parameters):
    call = "<tool_call>\n<function=f>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>"
    function = {"name": "f"} if parameters is None else {"name": "f", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    assert len(run(tokenizers("qwen3.5"), call, tools=tools).calls) == 1
    call = "<tool_call>f\n<arg_key>n</arg_key>\n<arg_value>5</arg_value>\n</tool_call>"
    assert len(run(tokenizers("glm-4.x"), call, tools=tools).calls) == 1


def test_a_call_whose_end_marker_was_forgotten_counts_if_it_is_whole(qwen, tokenizers):
    text = '<tool_call>\n{"name": "f", "arguments": {}}'
    assert run(qwen, text) == Folded("", "", (("f", "{}"),), "tool_calls")
    assert run(qwen, text, "length") == Folded("", "", (("f", "{}"),), "length")
    loose = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>"
    assert run(tokenizers("glm-4.x"), loose) == Folded(loose)


def test_white_space_before_a_call_is_layout_only_if_one_follows(qwen):
    assert run(qwen, f"a \n\n{CALL}\n\n{CALL}\n ").text == "a"
    assert run(qwen, "a \n\n<tool_call>").text == "a \n\n<tool_call>"
    assert run(qwen, "a \n\n").text == "a \n\n"
    assert run(qwen, f"{CALL}\nand\n").text == "and\n"
    assert run(qwen, f"a\n{CALL}\n").text == "a"


def test_kimi_keeps_its_own_ids_once_each(tokenizers):
    one = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    text = f"<|tool_calls_section_begin|>{one}{one}<|tool_calls_section_end|>"
    parts, _ = parts_of(ChatText(Cut(tokenizers("kimi-k2"), [text]), tools=TOOLS), [0])
    first, second = [piece.id for piece in sum(parts, Parts()).calls if piece.id]
    assert first == "functions.f:0" and second.startswith("call_")


def test_mistral_gets_ids_that_its_template_takes_back(tokenizers):
    cut = Cut(tokenizers("mistral"), ["[TOOL_CALLS]f[ARGS]{}"])
    parts, _ = parts_of(ChatText(cut, tools=TOOLS), [0])
    assert re.fullmatch(r"[A-Za-z0-9]{9}", sum(parts, Parts()).calls[0].id)


def test_llama_calls_need_no_marker_at_the_start_of_an_answer(tokenizers):
    llama = tokenizers("llama-3")
    call = '{"name": "f", "parameters": {"a": "<|python"}}'
    assert run(llama, call) == Folded("", "", (("f", '{"a": "<|python"}'),), "tool_calls")
    assert len(run(llama, f"\n{call}; {call}").calls) == 2
    assert run(llama, '{"a": 1}') == Folded('{"a": 1}')
    assert run(llama, call, parse_calls=False) == Folded(call)
    assert run(llama, f"So {call}") == Folded(f"So {call}")


# Anything at all.

SOUP = st.lists(
    st.sampled_from(
        [
            "<think>", "</think>", "<tool_call>", "</tool_call>", "<", ">", "</", "\n", " ", "END",
            "EN", "a", "é🙂", "{", "}", '{"name": "f", "arguments": {"a": 1}}', '{"name": "f", ',
            '"arguments": ', CALL,
        ]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@settings(max_examples=200)
@given(
    text=SOUP,
    stop=st.sampled_from([(), ("END",), ("\n\n",), ("aE", "N")]),
    reason=st.sampled_from(["stop", "length"]),
    parallel=st.booleans(),
    size=st.integers(1, 9),
)
def test_any_text_gives_the_same_in_any_pieces(qwen, text, stop, reason, parallel, size):
    options = {"stop": stop, "tools": TOOLS, "parallel": parallel}
    whole = fold(ChatText(Cut(qwen, [text]), **options), [0], reason)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    out = ChatText(Cut(qwen, pieces), **options)
    assert fold(out, range(len(pieces)), reason) == whole
    # Across a call, content that met a stop string only together would stand on both sides.
    assert whole.calls or not any(word in whole.text for word in stop)
    if not stop:
        # Nothing is lost but markers, white space and what calls are made of.
        told = "".join([whole.text, whole.reasoning, *(arguments for _, arguments in whole.calls)])
        assert told.count("é") == text.count("é")


def test_a_long_answer_full_of_beginnings_is_read_a_bounded_number_of_times(qwen):
    text = "<tool_call>{" * 5_000
    out = ChatText(Cut(qwen, list(text)), tools=TOOLS)
    counting = Counting(out._markup.reader)
    out._markup = replace(out._markup, reader=counting)
    assert fold(out, range(len(text))) == Folded(text)
    assert counting.chars < 20 * len(text) + 2 * READ_IN_VAIN
