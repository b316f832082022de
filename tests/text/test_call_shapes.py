"""What models write as calls, and what a client must get of it: shapes that went wrong somewhere.

cases/tool_calls.jsonl has transcripts, one a line: family, text, want; tools, finish and prompt
where they are not the usual ones. The rest is made here, the same for every format.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.text.calls.formats import name_of
from server.text.chat_text import READ_IN_VAIN, ChatText
from server.text.markup import markup_of
from tests.support.answers_folded import Cut, Folded, cuts, fold
from tests.support.families import FAMILIES, Family, write_tokenizer

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "cases" / "tool_calls.jsonl").read_text().splitlines()
]
BY_NAME = {family.name: family for family in FAMILIES}
PROMPT = "<|turn|>assistant\n"


def tool(name: str, properties: dict, required=(), **schema) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required), **schema}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING, OPTIONAL = {"type": "string"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}
USUAL = {
    "write_file": {"path": STRING, "content": STRING},
    "weather": {"city": STRING},
    "create-pdf-file": {"filename": STRING},
}
TOOLS = [
    tool("write", {"path": STRING, "text": STRING}, ["path"]),
    tool("edit", {"path": STRING, "old": OPTIONAL, "new": {"type": ["string", "null"]}}, ["path"]),
    tool("now", {}),
    tool("weather", {"city": STRING, "days": {"type": "integer"}}, additionalProperties=False),
]


@cache
def tokenizer_of(name: str, folder: str):
    return load(write_tokenizer(BY_NAME[name], Path(folder) / name, ["some text <tool_call>"] * 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("shapes"))


def read(folder, name, text, tools=TOOLS, finish="stop", prompt=PROMPT, every_cut=True) -> Folded:
    """The answer to text in one piece; the same at every cut."""
    tokenizer = tokenizer_of(name, folder)
    ids = tokenizer.encode(prompt, add_special_tokens=False)

    def of(pieces: list[str]) -> Folded:
        out = ChatText(Cut(tokenizer, pieces), (), set(), ids, tools)
        return fold(out, range(len(pieces)), finish)

    whole = of([text])
    for pieces in cuts(text) if every_cut else ([*text],):
        assert of(pieces) == whole, pieces
    return whole


def values(folded: Folded) -> list[tuple[str, dict]]:
    return [(name, json.loads(arguments)) for name, arguments in folded.calls]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_what_models_wrote(case, folder):
    tools = [tool(name, of) for name, of in case.get("tools", USUAL).items()]
    finish, prompt = case.get("finish", "stop"), case.get("prompt", PROMPT)
    got = read(folder, case["family"], case["text"], tools, finish, prompt)
    want = case["want"]
    assert values(got) == [(call["name"], call["arguments"]) for call in want["calls"]]
    assert got.text == want.get("content", got.text)
    assert got.reasoning == want.get("reasoning", got.reasoning)
    assert got.finish == ("tool_calls" if want["calls"] else finish)


# The same for every format.

FORMATS = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def one(family: Family, name: str, **arguments) -> str:
    return family.calls([family.call(name, json.dumps(arguments, ensure_ascii=False))])


TEXTS = [
    "    return x\n", "\n\n  a\n", "null", "None", "true", "007", "1.50", '{"a": 1}', "[1, 2]", "",
    " ", "é 日本 🙂 \u2028", "a\\nb \\ \" ' `", "<b>&amp;</b>", "a, b: c}", "tab\there",
    "x = {'a': 1}",
]  # fmt: skip


@FORMATS
@pytest.mark.parametrize("text", TEXTS)
def test_a_string_comes_to_the_letter(family, text, folder):
    written = [
        one(family, "write", path="/a", text=text),
        one(family, "edit", path="/a", old=text, new=text),
    ]
    got = read(folder, family.name, written[0], prompt=family_prompt(family), every_cut=False)
    assert values(got) == [("write", {"path": "/a", "text": text})]
    got = read(folder, family.name, written[1], prompt=family_prompt(family), every_cut=False)
    assert values(got) == [("edit", {"path": "/a", "old": text, "new": text})]


def family_prompt(family: Family) -> str:
    """A prompt after which the answer begins as content."""
    return "<|start|>assistant" if family.name == "gpt-oss" else PROMPT


def markers_in_values(family: Family) -> list[str]:
    """Text that holds the format's own markers: a whole call, its end, its middle."""
    call = family.call("weather", '{"city": "B"}')
    block = family.calls([call])
    found = [f"See\n{block}\nend", f"{block} {block}", f"x {call} y"]
    for part in ("</parameter>", "</tool_call>", "</arg_value>", "<|tool_call_end|>", "[ARGS]"):
        found.append(f"a {part} b")
    return [text for text in found if '<|"|>' not in text]


@FORMATS
def test_markers_in_a_value_are_part_of_it(family, folder):
    for text in markers_in_values(family):
        written = one(family, "write", path="/a", text=text)
        got = read(folder, family.name, written, prompt=family_prompt(family), every_cut=False)
        assert values(got) == [("write", {"path": "/a", "text": text})], text
        assert got.text == ""


@FORMATS
def test_two_calls_are_two(family, folder):
    both = [family.call("now", "{}"), family.call("write", '{"path": "/a", "text": "x"}')]
    got = read(folder, family.name, family.calls(both), prompt=family_prompt(family))
    want = [("now", {}), ("write", {"path": "/a", "text": "x"})]
    assert (values(got), got.text, got.finish) == (want, "", "tool_calls")


def seen_as_text(family: Family, text: str) -> str:
    return family.raw(text)


@FORMATS
@pytest.mark.parametrize("name", ["nothing_of_ours", "writer", "rite"])
def test_a_call_of_no_tool_is_text(family, name, folder):
    text = one(family, name, path="/a")
    got = read(folder, family.name, text, prompt=family_prompt(family))
    if family.name == "kimi-k2":  # its calls cannot be anything else
        assert values(got) == [(name, {"path": "/a"})]
    else:
        assert got == Folded(seen_as_text(family, text))


@FORMATS
def test_a_call_without_what_is_required_is_text(family, folder):
    text = one(family, "write", text="x")
    got = read(folder, family.name, text, prompt=family_prompt(family))
    assert got == Folded(seen_as_text(family, text))


@FORMATS
def test_an_argument_that_the_tool_refuses_makes_text_of_the_call(family, folder):
    text = one(family, "weather", city="A", town="B")
    got = read(folder, family.name, text, prompt=family_prompt(family))
    assert got == Folded(seen_as_text(family, text))


@FORMATS
def test_a_namespace_before_a_name_is_taken_off(family, folder):
    if family.name in ("gpt-oss", "kimi-k2"):
        return  # they have one anyway
    for prefix in ("functions.", "mcp:server:"):
        got = read(
            folder, family.name, one(family, f"{prefix}write", path="/a"),
            prompt=family_prompt(family), every_cut=False,
        )  # fmt: skip
        assert values(got) == [("write", {"path": "/a"})]


@FORMATS
def test_a_call_that_is_cut_anywhere_is_no_call(family, folder):
    """Not even if what is there would do for the tool."""
    text = one(family, "edit", path="/a", old="  x\n", new="y")
    for finish in ("stop", "length"):
        for at in range(1, len(text)):
            got = read(folder, family.name, text[:at], finish=finish, every_cut=False,
                       prompt=family_prompt(family))  # fmt: skip
            assert values(got) in ([], [("edit", {"path": "/a", "old": "  x\n", "new": "y"})])
            assert got.finish == ("tool_calls" if got.calls and finish == "stop" else finish)


@FORMATS
def test_text_around_calls_stays(family, folder):
    if family.name in ("gpt-oss", "llama-3"):
        return  # messages of their own; all of the answer
    call = one(family, "now")
    text = f"  Before <x>.\n\n{call}\n\nBetween `y`\n{call}\n  After.  z"
    got = read(folder, family.name, text)
    assert got.text == "  Before <x>.\n\n\n\nBetween `y`\n\n  After.  z"
    assert values(got) == [("now", {})] * 2


@FORMATS
def test_a_fenced_example_is_none_and_nothing_around_it_is_lost(family, folder):
    if family.name in ("gpt-oss", "llama-3"):
        return
    example = one(family, "write", path="/etc/passwd", text="x")
    cut = example[: len(example) // 2]
    real = one(family, "write", path="/a", text="y")
    for shown in (example, cut):
        said = f"An example:\n```xml\n{shown}\n```\nNow in earnest:"
        got = read(folder, family.name, f"{said}\n{real}", every_cut=shown is cut)
        assert (got.text, values(got)) == (said, [("write", {"path": "/a", "text": "y"})])


@FORMATS
def test_a_fence_that_is_never_closed_hides_no_call(family, folder):
    if family.name in ("gpt-oss", "llama-3"):
        return
    got = read(folder, family.name, "```\nls\n" + one(family, "now"))
    assert (got.text, values(got)) == ("```\nls", [("now", {})])


@FORMATS
def test_a_call_in_a_thought_counts_only_if_no_answer_follows(family, folder):
    if family.think is None or family.name == "gpt-oss":
        return
    tokenizer = tokenizer_of(family.name, folder)
    start = tokenizer.think_start or "[THINK]"
    end = tokenizer.think_end or "[/THINK]"
    call, other = one(family, "now"), one(family, "write", path="/a")
    thought = f"{start}I could {call} but"
    got = read(folder, family.name, f"{thought} no.{end}So no.", every_cut=False)
    assert got == Folded("So no.", f"I could {call} but no.")
    got = read(folder, family.name, f"{thought} no.{end}{other}", every_cut=False)
    assert values(got) == [("write", {"path": "/a"})] and got.text == ""
    got = read(folder, family.name, f"{start}I look.{call}", every_cut=False)
    assert (got.reasoning, values(got)) == ("I look.", [("now", {})])
    got = read(folder, family.name, f"{start}I look.{call}{end}\n", every_cut=False)
    assert (got.reasoning, values(got), got.text) == ("I look.", [("now", {})], "")


@FORMATS
def test_hostile_text_is_read_a_bounded_number_of_times(family, folder):
    """Openers without an end, each of which is looked for again, were quadratic."""
    call = one(family, "edit", path="/a", old="x", new="y")
    half, tail = call[: len(call) * 2 // 3], call[len(call) * 2 // 3 :]
    for text in (half * 200, call * 100, half * 100 + tail * 100, half + tail * 200):
        tokenizer = tokenizer_of(family.name, folder)
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        out = ChatText(Cut(tokenizer, pieces), (), set(), (), TOOLS)
        counting = Counting(out._markup.reader)
        out._markup = replace(out._markup, reader=counting)
        fold(out, range(len(pieces)), "stop")
        assert counting.chars < 20 * len(text) + 2 * READ_IN_VAIN


class Counting:
    """A reader that counts the characters that it looked at."""

    def __init__(self, reader) -> None:
        self.openers, self._reader, self.chars = reader.openers, reader, 0

    def read(self, scan, tools):
        try:
            return self._reader.read(scan, tools)
        finally:
            self.chars += scan.reached


# What single formats have of their own.


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
