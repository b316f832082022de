"""What models write as calls, and what a client must get of it: shapes that went wrong somewhere.

cases/tool_calls*.jsonl have transcripts, one a line: family, text, want; tools (their properties)
or functions (all of them), finish and prompt where they are not the usual ones. The rest is made
here, the same for every format.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

from server.text.calls.reader import READ_IN_VAIN
from server.text.chat_text import ChatText
from server.text.markup import markup_of
from tests.support.answers_folded import Cut, Folded, fold
from tests.support.call_shapes import (
    PROMPT,
    STRING,
    TOOLS,
    Counting,
    family_prompt,
    one,
    read,
    tokenizer_of,
    tool,
    values,
)  # fmt: skip
from tests.support.families import FAMILIES, Family
from tests.support.sweeps import sample

CASES = [
    json.loads(line)
    for path in sorted((Path(__file__).parent / "cases").glob("tool_calls*.jsonl"))
    for line in path.read_text("utf-8").splitlines()
]
USUAL = {
    "write_file": {"path": STRING, "content": STRING},
    "weather": {"city": STRING},
    "create-pdf-file": {"filename": STRING},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_what_models_wrote(case, folder):
    tools = [tool(name, of) for name, of in case.get("tools", USUAL).items()]
    if "functions" in case:
        tools = [{"type": "function", "function": function} for function in case["functions"]]
    finish, prompt = case.get("finish", "stop"), case.get("prompt", PROMPT)
    got = read(folder, case["family"], case["text"], tools, finish, prompt)
    want = case["want"]
    assert values(got) == [(call["name"], call["arguments"]) for call in want["calls"]]
    assert got.text == want.get("content", got.text)
    assert got.reasoning == want.get("reasoning", got.reasoning)
    assert got.finish == ("tool_calls" if want["calls"] and finish == "stop" else finish)


# The same for every format.

FORMATS = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


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


@FORMATS
def test_two_calls_of_one_tool_are_two(family, folder):
    first, second = {"path": "/a", "text": "x\ny"}, {"path": "/b", "text": ""}
    both = [family.call("write", json.dumps(arguments)) for arguments in (first, second)]
    got = read(folder, family.name, family.calls(both), prompt=family_prompt(family))
    assert (values(got), got.text) == ([("write", first), ("write", second)], "")


ONE_LIST = (
    "llama-3", "llama-4", "mistral-7b", "lfm2", "nemotron", "hunyuan-a13b", "granite-3",
    "command-a", "command-r", "apertus", "internlm",
)  # fmt: skip


@FORMATS
def test_a_cut_call_takes_none_along_that_was_whole(family, folder):
    """Unless the format has one list for all of them."""
    first, second = family.call("now", "{}"), one(family, "write", path="/a", text="y")
    text = family.calls([first, family.call("write", '{"path": "/a", "text": "y"}')])
    lists = family.name in ONE_LIST
    for finish in ("stop", "length"):
        for cut in sample(range(len(second) // 3 + 1, len(second) // 2), 3):
            at = text.rindex("write") + cut - len(second) // 3
            got = read(
                folder, family.name, text[:at], finish=finish, prompt=family_prompt(family),
                every_cut=False,
            )  # fmt: skip
            assert values(got) == ([] if lists else [("now", {})])
            assert lists or got.text and got.text in text


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
            prompt=family_prompt(family),
        )  # fmt: skip
        assert values(got) == [("write", {"path": "/a"})]


@FORMATS
def test_a_call_that_is_cut_anywhere_is_no_call(family, folder):
    """Not even if what is there would do for the tool."""
    text = one(family, "edit", path="/a", old="  x\n", new="y")
    for finish in ("stop", "length"):
        for at in sample(range(1, len(text)), 3):
            got = read(folder, family.name, text[:at], finish=finish, every_cut=False,
                       prompt=family_prompt(family))  # fmt: skip
            assert values(got) in ([], [("edit", {"path": "/a", "old": "  x\n", "new": "y"})])
            assert got.finish == ("tool_calls" if got.calls and finish == "stop" else finish)


@FORMATS
def test_text_around_calls_stays(family, folder):
    if family.name in ("gpt-oss", "solar", "llama-3"):
        return  # messages of their own; all of the answer
    call = one(family, "now")
    text = f"  Before <x>.\n\n{call}\n\nBetween `y`\n{call}\n  After.  z"
    got = read(folder, family.name, text)
    assert got.text == "  Before <x>.\n\n\n\nBetween `y`\n\n  After.  z"
    assert values(got) == [("now", {})] * 2


@FORMATS
def test_a_fenced_example_is_none_and_nothing_around_it_is_lost(family, folder):
    if family.name in ("gpt-oss", "solar", "llama-3"):
        return
    example = one(family, "write", path="/etc/passwd", text="x")
    cut = example[: len(example) // 2]
    real = one(family, "write", path="/a", text="y")
    for shown in (example, cut):
        said = f"An example:\n```xml\n{shown}\n```\nNow in earnest:"
        got = read(folder, family.name, f"{said}\n{real}", every_cut=shown is cut)
        assert (got.text, values(got)) == (said, [("write", {"path": "/a", "text": "y"})])


@FORMATS
@pytest.mark.parametrize(
    "quoted",
    ["``%s``", "```%s```", "~~~\n%s\n~~~\n", "````md\n```\n%s\n```\n````\n", "  ```\n%s\n  ```\n"],
)
def test_code_in_any_fence_or_backticks_is_no_call(quoted, family, folder):
    if family.name in ("gpt-oss", "solar", "llama-3"):
        return
    if family.name == "command-r" and quoted == "``%s``":
        return  # its calls have a fence of their own
    text = "It's so: " * ("\n" not in quoted) + quoted % one(family, "write", path="/a") + " See?"
    assert read(folder, family.name, text, every_cut="``" in quoted) == Folded(text)
    real = one(family, "now")
    got = read(folder, family.name, f"{text} A ` or ``, then: {real}", every_cut=False)
    assert (got.text, values(got)) == (f"{text} A ` or ``, then:", [("now", {})])


@FORMATS
def test_a_fence_that_is_never_closed_hides_no_call(family, folder):
    if family.name in ("gpt-oss", "llama-3"):
        return
    got = read(folder, family.name, "```\nls\n" + one(family, "now"))
    assert (got.text, values(got)) == ("```\nls", [("now", {})])


@FORMATS
def test_a_call_in_a_thought_counts_only_if_no_answer_follows(family, folder):
    markup = markup_of(tokenizer_of(family.name, folder))
    if family.think is None or markup.initial == "header":
        return
    start, end = markup.think_start, markup.think_end
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
    texts = (
        half * 200,
        call * 100,
        half * 100 + tail * 100,
        half + tail * 200,
        f"{call} or " * 100,
    )
    for text in texts:
        tokenizer = tokenizer_of(family.name, folder)
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        out = ChatText(Cut(tokenizer, pieces), (), set(), (), TOOLS)
        counting = Counting(out._markup.reader)
        out._markup = replace(out._markup, reader=counting)
        fold(out, range(len(pieces)), "stop")
        assert counting.chars < 20 * len(text) + 2 * READ_IN_VAIN
