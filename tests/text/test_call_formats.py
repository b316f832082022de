"""What single formats of calls have of their own: their ends, their types, ways to write them."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.text.calls.formats import name_of
from server.text.chat_text import ChatText
from server.text.markup import markup_of
from tests.support.answers_folded import Cut, Folded, fold
from tests.support.call_shapes import (
    BY_NAME,
    TOOLS,
    family_prompt,
    one,
    read,
    tokenizer_of,
    tool,
    values,
)  # fmt: skip
from tests.support.families import write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("shapes"))


def test_other_types_are_read_by_their_type_and_else_stay_text(folder):
    properties = {
        "n": {"type": "integer"}, "x": {"type": "number"}, "b": {"type": "boolean"},
        "z": {"type": ["integer", "null"]}, "l": {"type": "array"}, "o": {"$ref": "#/$defs/O"},
        "s": {"$ref": "#/$defs/S"}, "e": {"enum": ["1", "2"]}, "any": {},
    }  # fmt: skip
    schema = {"$defs": {"O": {"type": "object"}, "S": {"enum": ["null"], "type": "string"}}}
    tools = [tool("f", properties, **schema)]
    rows = [
        ("n", "5", 5), ("n", "5.0", 5), ("n", "five", "five"), ("n", "2026-01-15", "2026-01-15"),
        ("x", "1.5", 1.5), ("x", "2", 2), ("x", "NaN", "NaN"), ("b", "True", True),
        ("b", "false", False), ("b", "yes", "yes"), ("z", "null", None), ("z", "None", None),
        ("l", "['a', None]", ["a", None]), ("l", '[1, {"a": true}]', [1, {"a": True}]),
        ("o", '{"a": 1}', {"a": 1}), ("o", "{oh", "{oh"), ("s", "null", "null"), ("e", "1", "1"),
        ("any", "5", "5"), ("any", '{"a": 1}', {"a": 1}), ("n", "1" * 5000, "1" * 5000),
        ("o", "[" * 5000, "[" * 5000),
    ]  # fmt: skip
    for key, text, value in rows:
        for name in ("qwen3.5", "glm-4.x", "minimax-m2"):
            call = one(BY_NAME[name], "f", **{key: text})
            got = read(folder, name, call, tools, every_cut=False)
            assert values(got) == [("f", {key: value})], (name, key, text)


XML = "<tool_call>\n<function=write>\n<parameter=path>\n/a\n</parameter>\n"


@pytest.mark.parametrize(
    "text",
    [
        # A whole call's closing, with and without an end of its own after it.
        "a\n</parameter>\n</function>\n</tool_call>\nb",
        # The other argument again, before and after the value that holds it.
        "a\n</parameter>\n<parameter=path>\n/etc\n</parameter>\nb",
        "a <parameter=text> b",
        "<function=write>",
        "</function>\n</tool_call>",
        "a\n</parameter>\n<parameter=path>\nb",
        "a\n</parameter>\n<parameter=mode>\nb\n</parameter>\nc",
    ],
)
def test_xml_markers_in_a_value(text, folder):
    written = f"{XML}<parameter=text>\n{text}\n</parameter>\n</function>\n</tool_call>"
    got = read(folder, "qwen3.5", written)
    assert values(got) == [("write", {"path": "/a", "text": text})] and got.text == ""


def test_xml_value_before_the_argument_that_it_names(folder):
    text = "a\n</parameter>\n<parameter=path>\n/etc/passwd\n</parameter>\nb"
    written = (
        f"<tool_call>\n<function=write>\n<parameter=text>\n{text}\n</parameter>\n"
        "<parameter=path>\n/a\n</parameter>\n</function>\n</tool_call>"
    )
    assert values(read(folder, "qwen3.5", written)) == [("write", {"text": text, "path": "/a"})]


@pytest.mark.parametrize(
    ("end", "called"),
    [
        ("</function>\n</tool_call>", True),  # the value's own end was forgotten
        ("</parameter>\n</tool_call>", True),
        ("</parameter>\n</function>", True),
        ("</tool_call>", False),
        ("</parameter>", False),
        ("", False),
    ],
)
def test_xml_ends_that_are_missing(end, called, folder):
    got = read(folder, "qwen3.5", f"{XML}<parameter=text>\nhalf\n{end}")
    want = [("write", {"path": "/a", "text": "half"})]
    assert values(got) == (want if called else [])
    if not called:
        assert got.text == f"{XML}<parameter=text>\nhalf\n{end}"


def test_an_end_that_was_forgotten_between_two_arguments(folder):
    """The second would else be text of the first."""
    text = XML.replace("</parameter>\n", "") + "<parameter=text>\nx\n</parameter>\n</function>"
    got = read(folder, "qwen3.5", text + "\n</tool_call>")
    assert values(got) == [("write", {"path": "/a", "text": "x"})]


def test_a_cut_value_that_holds_a_closing_is_no_call(folder):
    """The call seems to end where its value only quotes an end."""
    text = f"{XML}<parameter=text>\nDocs:\n</parameter>\n</function>\n</tool_call>\nand th"
    assert read(folder, "qwen3.5", text, finish="length") == Folded(text, finish="length")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", '<tool_call>[{"name": "now"}, {"name": "now", "arguments": {}}]</tool_call>'),
        ("qwen3", '<tool_call>{"name": "now"}\n{"name": "now", "arguments": "{}"}</tool_call>'),
        ("qwen3", "<tool_call>\n<function=now>\n</function><function=now></function></tool_call>"),
        ("qwen3", "<tool_call>[{'name': 'now'}, {'name': 'now', 'arguments': {}}]</tool_call>"),
        ("glm-4.x", "<tool_call>now\n{}</tool_call><tool_call>now</tool_call>"),
        ("mistral", '[TOOL_CALLS]now{}[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}'),
        ("gemma4", "<|tool_call>call:now{}call:now{}<tool_call|>"),
        ("lfm2", '<|tool_call_start|>[{"name": "now"}, {"name": "now"}]<|tool_call_end|>'),
        ("deepseek-v3.2", "<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>" * 2),
        ("minimax-m2", "<invoke name='now'></invoke><invoke name=now></invoke>"),
        ("llama-3", '{"type": "function", "function": {"name": "now"}}, {"name": "now"}'),
        ("gpt-oss", " to=now<|message|>{}<|call|><|start|>assistant to=functions.now<|message|>{}"),
    ],
)  # fmt: skip
def test_ways_to_write_two_calls(name, text, folder):
    got = read(folder, name, text, prompt=family_prompt(BY_NAME[name]))
    assert (values(got), got.text) == ([("now", {})] * 2, "")


@pytest.mark.parametrize(
    "value", [repr("it's ) ] <|tool_call_end|>"), "'''it's ) ok\n'''", '"""a "b" )]\n"""', "'a\nb'"]
)
def test_strings_of_python(value, folder):
    got = read(
        folder, "lfm2", f"<|tool_call_start|>[write(path='/a', text={value})]<|tool_call_end|>"
    )
    text = value.strip("'\"")
    assert values(got) == [("write", {"path": "/a", "text": text})]
    call = f"{{'name': 'write', 'arguments': {{'path': '/a', 'text': {value}}}}}"
    got = read(folder, "qwen3", f"<tool_call>{call}</tool_call>")
    assert values(got) == [("write", {"path": "/a", "text": text})]


def test_minimax_m3_containers_are_elements_in_elements(folder):
    edits = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    mark = "]<]minimax[>["
    inner = f"{mark}<item>{mark}<n>5{mark}</n>{mark}<s>5{mark}</s>{mark}</item>" * 2
    text = (
        f'{mark}<tool_call>\n{mark}<invoke name="f">{mark}<edits>{inner}{mark}</edits>'
        f"{mark}</invoke>{mark}</tool_call>"
    )
    got = read(folder, "minimax-m3", text, [tool("f", {"edits": edits})])
    assert values(got) == [("f", {"edits": [{"n": 5, "s": "5"}] * 2})]


def test_an_unknown_formats_calls_are_read_by_mlx_lms_parser(folder):
    """And by it alone: what it finds must be a call of a tool with all that is required."""

    class Other(Cut):
        chat_template = ""
        tool_call_start, tool_call_end = "<call>", "</call>"

        @staticmethod
        def tool_parser(text, tools):
            return json.loads(text)

    tokenizer = tokenizer_of("mistral-7b", folder)
    call = '<call>{"name": "write", "arguments": {"path": "</call>"}}</call>'
    for text, found in (
        (call, [("write", {"path": "</call>"})]),
        (call.replace("write", "other"), []),
        (call.replace("path", "text"), []),
        (call[:-3], []),
    ):
        got = fold(ChatText(Other(tokenizer, [text]), tools=TOOLS), [0])
        assert values(got) == found
        assert found or got.text == text
    assert replace(got, text="") == Folded()


@pytest.mark.parametrize(
    ("model_type", "format"),
    [("deepseek_v32", "dsml"), ("glm4_moe_lite", "tags"), ("minimax_m2", "minimax-m2"),
     ("llama", "none"), ("", "none")],
)  # fmt: skip
def test_the_model_type_tells_the_format_where_nothing_else_does(model_type, format, tmp_path):
    silent = replace(BY_NAME["qwen3"], markers=(), telltale="")
    write_tokenizer(silent, tmp_path, ["some text"] * 3)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert name_of(markup_of(load(tmp_path)).reader) == format
