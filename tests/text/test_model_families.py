"""Transcripts in the formats of the families that people run, through each family's parser.

Whatever the tokens, the pieces add up to the same answer: the tokens of a real tokenizer with
merges, single bytes, and text cut at every position.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import load

from server.text.chat_text import ChatText
from tests.support.answers_folded import Cut, Folded, cuts, fold
from tests.support.families import FAMILIES, Family, write_tokenizer
from tests.support.sweeps import sample

ONE = '{"city": "Zürich 🙂", "days": 3, "where": {"lat": [1.5, -2]}}'
TWO = '{"city": "O\'Hare \\\\ \\"quoted\\"", "days": -1}'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "where": {"type": "object"},
                },
            },
        },
    }
    for name in ("weather", "get_time")
]
PROSE = "Grüße aus 日本 🙂!\n\nA < b > c, [x] {y} and <t.\n  end"
THOUGHT = "Hm, wie war das?\n\n1 < 2 🙂"


def transcripts(family: Family) -> dict[str, tuple[str, Folded, str]]:
    """Name -> what the model writes, what the client should get, how the engine finished."""
    one, two = family.call("weather", ONE), family.call("get_time", TWO)
    first, second = ("weather", ONE), ("get_time", TWO)
    think, said = family.think, family.content
    # Where the prompt has opened the thinking, there is always some to close.
    opened = family.prompt.rstrip().endswith("<think>")
    start, thought = (think(THOUGHT), THOUGHT) if opened else ("", "")
    found = {
        "plain": (start + said(PROSE), Folded(PROSE, thought), "stop"),
        "cut plain": (start + said(PROSE), Folded(PROSE, thought, (), "length"), "length"),
        "one call": (
            start + family.calls([one]), Folded("", thought, (first,), "tool_calls"), "stop",
        ),
        "two calls": (
            start + family.calls([one, two]),
            Folded("", thought, (first, second), "tool_calls"),
            "stop",
        ),
        "content and a call": (
            start + said("I look.") + family.calls([two]),
            Folded("I look.", thought, (second,), "tool_calls"),
            "stop",
        ),
        "cut call": (
            start + said("I look.\n") + family.cut,
            Folded("I look.\n" + family.raw(family.cut), thought, (), "length"),
            "length",
        ),
        "malformed call": (
            start + said("I look. ") + family.broken,
            Folded("I look. " + family.raw(family.broken), thought),
            "stop",
        ),
    }  # fmt: skip
    if think is not None:
        found |= {
            "thinking and content": (
                think(THOUGHT) + said(PROSE), Folded(PROSE, THOUGHT), "stop",
            ),
            "thinking and a call": (
                think(THOUGHT) + family.calls([one]),
                Folded("", THOUGHT, (first,), "tool_calls"),
                "stop",
            ),
            "cut thinking": (
                think(THOUGHT).partition("2")[0], Folded("", THOUGHT[:-3].rstrip(), (), "length"),
                "length",
            ),
        }  # fmt: skip
    return found


@cache
def tokenizer_of(name: str, folder: str):
    family = next(family for family in FAMILIES if family.name == name)
    corpus = [text for text, _, _ in transcripts(family).values()]
    return load(write_tokenizer(family, Path(folder) / name, corpus * 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("families"))


def out_of(family: Family, tokenizer, **options) -> ChatText:
    prompt = tokenizer.encode("<|turn|>user\nhi\n" + family.prompt, add_special_tokens=False)
    # The tokens of a Cut are numbers of its pieces, not of the vocabulary.
    hidden = set() if isinstance(tokenizer, Cut) else set(tokenizer.eos_token_ids)
    return ChatText(tokenizer, (), hidden, prompt, TOOLS, **options)


def same(got: Folded, expected: Folded) -> None:
    """Arguments are compared as values: families without JSON have no spelling of their own."""
    values = tuple((name, json.loads(text)) for name, text in got.calls)
    wanted = tuple((name, json.loads(text)) for name, text in expected.calls)
    assert (got.text, got.reasoning, values, got.finish) == (
        expected.text, expected.reasoning, wanted, expected.finish,
    )  # fmt: skip


CASES = [
    pytest.param(family, name, id=f"{family.name}-{name.replace(' ', '_')}")
    for family in FAMILIES
    for name in transcripts(family)
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_mlx_lm_knows_the_family_by_its_template(family, folder):
    tokenizer = tokenizer_of(family.name, folder)
    parser = getattr(tokenizer.tool_parser, "__module__", "none").rpartition(".")[2]
    assert parser == (family.parser or "none")


@pytest.mark.parametrize(("family", "name"), CASES)
def test_tokens_of_a_tokenizer_with_merges(family, name, folder):
    tokenizer = tokenizer_of(family.name, folder)
    text, expected, reason = transcripts(family)[name]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) < len(text.encode()) * 0.9
    end = [tokenizer.eos_token_id] if reason == "stop" else []
    same(fold(out_of(family, tokenizer), [*tokens, *end], reason), expected)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_one_token_a_byte(family, name, folder):
    """Markers, too, in bytes: a model may spell them out."""
    tokenizer = tokenizer_of(family.name, folder)
    text, expected, reason = transcripts(family)[name]
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    letters = "".join(word for word, _ in words)  # a letter for each byte
    tokens = [tokenizer.convert_tokens_to_ids(letter) for letter in letters]
    assert len(tokens) == len(text.encode())
    same(fold(out_of(family, tokenizer), tokens, reason), expected)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_text_cut_at_every_position(family, name, folder):
    tokenizer = tokenizer_of(family.name, folder)
    text, expected, reason = transcripts(family)[name]
    whole = fold(out_of(family, Cut(tokenizer, [text])), [0], reason)
    same(whole, expected)
    for pieces in cuts(text):
        out = out_of(family, Cut(tokenizer, pieces))
        assert fold(out, range(len(pieces)), reason) == whole, pieces


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_only_the_first_call_where_one_is_allowed(family, folder):
    tokenizer = tokenizer_of(family.name, folder)
    text, expected, _ = transcripts(family)["two calls"]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    got = fold(out_of(family, tokenizer, parallel=False), tokens)
    same(got, Folded("", expected.reasoning, expected.calls[:1], "tool_calls"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_calls_are_text_where_none_were_asked_for(family, folder):
    tokenizer = tokenizer_of(family.name, folder)
    text, expected, _ = transcripts(family)["content and a call"]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    got = fold(out_of(family, tokenizer, parse_calls=False), tokens)
    assert (got.calls, got.finish, got.reasoning) == ((), "stop", expected.reasoning)
    assert got.text.startswith("I look.") and "Hare" in got.text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_answer_that_ends_anywhere_holds_whole_calls_or_text(family, folder):
    """Tokens run out anywhere: what there is, is text, reasoning or whole calls."""
    tokenizer = tokenizer_of(family.name, folder)
    text, expected, _ = transcripts(family)["two calls"]
    for at in sample(range(len(text)), 3):
        for reason in ("stop", "length"):
            got = fold(out_of(family, Cut(tokenizer, [text[:at]])), [0], reason)
            values = [(name, json.loads(arguments)) for name, arguments in got.calls]
            whole = [(name, json.loads(arguments)) for name, arguments in expected.calls]
            assert values == whole[: len(values)], text[:at]
            assert got.finish == ("tool_calls" if values and reason == "stop" else reason)


def scraps(family: Family) -> list[str]:
    """Markers of the family, beginnings and ends of its calls, and some text."""
    call = family.call("weather", '{"days": 1}')
    parts = [call, call[: len(call) // 2], call[len(call) // 2 :], family.cut, family.broken]
    return [*family.markers, *parts, family.calls([call]), "\n", " ", "<", "{", "}", "é", "END"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@settings(max_examples=15)
@given(data=st.data())
def test_any_text_gives_the_same_in_any_pieces(family, data, folder):
    tokenizer = tokenizer_of(family.name, folder)
    words = st.lists(st.sampled_from(scraps(family)), max_size=10)
    text = data.draw(words.map("".join), label="text")
    reason = data.draw(st.sampled_from(["stop", "length"]), label="reason")
    size = data.draw(st.integers(1, 9), label="size")
    whole = fold(out_of(family, Cut(tokenizer, [text])), [0], reason)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    got = fold(out_of(family, Cut(tokenizer, pieces)), range(len(pieces)), reason)
    assert got == whole
    assert got.finish == ("tool_calls" if got.calls and reason == "stop" else reason)
