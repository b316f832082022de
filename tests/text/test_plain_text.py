"""The way out for completions, over a detokenizer whose tokens are bytes."""

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from server.protocol.pieces import Parts
from server.text.plain_text import PlainText
from server.text.stop_strings import StopStrings, StopWords

END = 256


class ByteDetokenizer:
    """mlx-lm's interface: token n is byte n; an unfinished character waits for its end."""

    def __init__(self) -> None:
        self._data = b""
        self._told = 0
        self._final = False

    def add_token(self, token: int) -> None:
        self._data += bytes([token])

    def finalize(self) -> None:
        self._final = True

    @property
    def last_segment(self) -> str:
        text = self._data.decode("utf-8", "replace" if self._final else "ignore")
        told, self._told = self._told, len(text)
        return text[told:]


def plain(*stop: str, hidden=(END,)) -> PlainText:
    return PlainText(ByteDetokenizer(), stop, set(hidden))


def test_text_comes_token_by_token_and_nothing_else():
    out = plain()
    assert [out.add(token) for token in b"hi"] == [Parts(text="h"), Parts(text="i")]
    assert out.finish("length") == (Parts(), "length")
    assert out.stopped is None and out.reasoning_tokens == 0


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_reason_is_the_engines_where_no_stop_string_was_met(reason):
    out = plain("<end>")
    assert [out.add(token).text for token in b"a<e"] == ["a", "", ""]
    assert out.finish(reason) == (Parts(text="<e"), reason)


def test_which_stop_string_was_met_is_told_and_is_not_text():
    out = plain("xyz", "lo")
    assert "".join(out.add(token).text for token in b"hello") == "hel"
    assert out.stopped == "lo"
    assert out.add(ord("!")) == Parts()
    assert out.finish("length") == (Parts(), "stop")


def test_a_stop_string_completed_by_the_end_is_a_stop():
    out = plain("a\ufffd")
    assert [out.add(token).text for token in (ord("a"), 0xE2)] == ["", ""]
    assert out.finish("length") == (Parts(), "stop")
    assert out.stopped == "a\ufffd"


def test_hidden_tokens_are_no_text_wherever_they_come():
    out = plain(hidden=(END, ord("x")))
    texts = [out.add(token).text for token in (ord("a"), ord("x"), ord("b"), END)]
    assert texts == ["a", "", "b", ""]
    assert out.finish("stop") == (Parts(), "stop")


@pytest.mark.parametrize("cut", range(1, 4))
def test_an_unfinished_character_comes_at_the_end_as_a_replacement(cut):
    out = plain()
    assert [out.add(token).text for token in "🙂".encode()[:cut]] == [""] * cut
    parts, finish = out.finish("length")
    assert finish == "length" and parts.text and not parts.text.strip("\ufffd")


@settings(max_examples=200)
@given(
    text=st.text(st.sampled_from("ab\n é🙂"), max_size=30),
    stop=st.lists(st.text(st.sampled_from("ab\n é🙂"), min_size=1, max_size=4), max_size=3),
)
def test_any_text_is_cut_at_the_earliest_end_of_a_stop_string(text, stop):
    ends = [(text.find(word) + len(word), -len(word), word) for word in stop if word in text]
    end, length, word = min(ends, default=(len(text), 0, None))
    out = plain(*stop)
    got = "".join(out.add(token).text for token in text.encode())
    rest, finish = out.finish("length")
    assert got + rest.text == text[: end + length]
    assert (out.stopped, finish) == (word, "stop" if word else "length")


@settings(max_examples=200)
@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    cuts=st.lists(st.integers(0, 20), max_size=6),
)
def test_stop_strings_do_not_care_how_the_text_is_cut(text, stop, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole, pieces = StopStrings(stop), StopStrings(stop)
    expected = whole.add(text) + whole.flush()
    got = "".join(pieces.add(text[a:b]) for a, b in zip(edges, edges[1:], strict=False))
    assert got + pieces.flush() == expected
    assert pieces.stopped == whole.stopped


def test_what_was_flushed_is_not_told_again_nor_matched_with_what_follows():
    stop = StopStrings(("ab",))
    assert (stop.add("xa"), stop.flush(), stop.add("b"), stop.flush()) == ("x", "a", "b", "")
    assert stop.stopped is None


def test_stop_words_are_built_once_for_all_choices_and_not_before_there_is_text(monkeypatch):
    generate = importlib.import_module("mlx_lm.generate")
    built = []
    real = generate.TextStateMachine

    class Counted(real):
        def __init__(self, transitions) -> None:
            built.append(transitions)
            super().__init__(transitions)

    monkeypatch.setattr(generate, "TextStateMachine", Counted)
    words = StopWords(("end", "stop"))
    choices = [StopStrings(words) for _ in range(16)]
    assert [choice.flush() for choice in choices] == [""] * 16 and not built
    for n, choice in enumerate(choices):
        assert choice.add(f"{n} en") == f"{n} "
        assert choice.add("d of it") == "" and choice.stopped == "end"
    assert len(built) == 1
