"""Text in and out over a real tokenizer: one whose token n is byte n, so that any text can be cut
anywhere, and the demo model's."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_tokenizer

from server.errors import ApiError
from server.prompts import TokenizerPrompts
from server.requests import Served, parse_chat
from tests.tiny_models import SPECIALS, VOCAB, write_byte_tokenizer

EOS = 256 + SPECIALS.index("<|im_end|>")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> TokenizerPrompts:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    return TokenizerPrompts(load_tokenizer(folder, eos_token_ids=EOS), VOCAB)


@pytest.fixture(scope="module")
def demo(demo_model_dir) -> TokenizerPrompts:
    return TokenizerPrompts(load_tokenizer(demo_model_dir), 49152)


def chat(**fields):
    body = {"messages": [{"role": "user", "content": "hi"}]} | fields
    return parse_chat(body, Served("demo"))


def run(prompts, tokens, *stop: str, end_tokens_are_text: bool = False) -> tuple[list[str], bool]:
    """What each token gave, then what finish() gave; and whether a stop string was met."""
    out = prompts.text_out(stop, end_tokens_are_text)
    parts = []
    for token in tokens:
        parts.append(out.add(token))
        if out.stopped:
            return parts, True
    return [*parts, out.finish()], out.stopped


def text_of(prompts, tokens, *stop: str) -> tuple[str, bool]:
    parts, stopped = run(prompts, tokens, *stop)
    return "".join(parts), stopped


# Text in.


def test_a_conversation_goes_through_the_template(prompts):
    ids = prompts.from_chat(chat())
    text = b"".join(bytes([i]) if i < 256 else f"<{i}>".encode() for i in ids).decode()
    assert text == "<257>user\nhi<258>\n<257>assistant\n"
    assert all(type(token) is int for token in ids)


def test_plain_text_is_encoded_as_it_is(prompts):
    assert prompts.from_text("a\x00é🙂") == list("a\x00é🙂".encode())


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": text}]
        for text in ["", "\x00\x01", "🙂" * 500, "<|im_end|>", "{{ 1 / 0 }}", "{% raw %}", "\u202e"]
    ]
    + [
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        [{"role": "assistant", "content": None}],
        [{"role": "system", "content": "a"}] * 3,
    ],
)
def test_odd_conversations_give_tokens(prompts, messages):
    assert prompts.from_chat(chat(messages=messages))


class Refusing:
    """A tokenizer whose template or encoder raises, as templates may."""

    has_chat_template = True
    eos_token_ids = {2}

    def __init__(self, error: Exception) -> None:
        self._error = error

    def apply_chat_template(self, *_, **__):
        raise self._error

    encode = apply_chat_template


@pytest.mark.parametrize(
    "error", [ValueError("roles must alternate"), KeyError("x"), RecursionError(), OSError("disk")]
)
def test_what_template_and_tokenizer_refuse_is_400(error):
    refusing = TokenizerPrompts(Refusing(error), 10)
    with pytest.raises(ApiError) as caught:
        refusing.from_chat(chat())
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(ApiError) as caught:
        refusing.from_text("hi")
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_a_template_that_gives_no_token_ids_is_400():
    """Text in place of ids got as far as the ranks, and ended them."""
    for result in ("text", ["a"], [[1]], [None], []):
        tokenizer = Refusing(ValueError())
        tokenizer.apply_chat_template = lambda *_, result=result, **__: result
        with pytest.raises(ApiError) as caught:
            TokenizerPrompts(tokenizer, 10).from_chat(chat())
        assert caught.value.status == 400


def test_a_model_without_a_template_says_so():
    tokenizer = Refusing(ValueError())
    tokenizer.has_chat_template = False
    with pytest.raises(ApiError, match="no chat template"):
        TokenizerPrompts(tokenizer, 10).from_chat(chat())


def test_a_token_that_the_model_does_not_have_is_400(prompts):
    """Tokenizers can have more tokens than the embedding has rows; MLX does not check an index."""
    smaller = TokenizerPrompts(prompts._tokenizer, EOS)
    assert smaller.from_text("hi")
    for ask in (lambda: smaller.from_chat(chat()), lambda: smaller.from_text("<|im_end|>")):
        with pytest.raises(ApiError, match="does not have") as caught:
            ask()
        assert caught.value.status == 400


def test_an_empty_text_is_400(prompts):
    with pytest.raises(ApiError) as caught:
        prompts.from_text("")
    assert caught.value.param == "prompt"


# Text out.


def test_text_comes_token_by_token(prompts):
    assert run(prompts, b"hello") == (["h", "e", "l", "l", "o", ""], False)


@pytest.mark.parametrize("char", ["é", "€", "🙂", "👨‍👩‍👧"])
def test_an_unfinished_character_is_held_back(prompts, char):
    parts, _ = run(prompts, f"a{char}b".encode())
    assert "".join(parts) == f"a{char}b"
    assert not any("\ufffd" in part for part in parts)


def test_a_character_that_is_never_finished_comes_as_a_replacement_at_the_end(prompts):
    parts, _ = run(prompts, "a🙂".encode()[:-1])
    assert parts[:-1] == ["a", "", "", ""]
    assert parts[-1].strip("\ufffd") == "" and parts[-1]


def test_bytes_that_are_no_text_do_no_harm(prompts):
    text, _ = text_of(prompts, b"a\xff\xfeb\xc3(c")
    assert [c for c in text if c != "\ufffd"] == list("ab(c")


def test_a_stop_string_across_tokens_ends_the_text_and_is_not_in_it(prompts):
    parts, stopped = run(prompts, b"one two three", "two")
    assert stopped and "".join(parts) == "one "
    assert len(parts) == len("one two")


def test_text_that_might_begin_a_stop_string_is_held_back_until_it_does_not(prompts):
    parts, stopped = run(prompts, b"a<en.<e", "<end>")
    assert not stopped
    assert parts == ["a", "", "", "", "<en.", "", "", "<e"]


def test_what_was_held_back_comes_at_the_end(prompts):
    assert text_of(prompts, b"wait: <en", "<end>") == ("wait: <en", False)


def test_the_first_of_several_stop_strings_counts(prompts):
    assert text_of(prompts, b"abcdef", "ef", "cd") == ("ab", True)


@pytest.mark.parametrize("stop", [("abcd", "bc"), ("bc", "abcd")])
def test_a_stop_string_inside_the_beginning_of_another_is_found(prompts, stop):
    assert text_of(prompts, b"xabcx", *stop) == ("xa", True)


def test_a_stop_string_that_overlaps_itself_is_found(prompts):
    assert text_of(prompts, b"aaab", "aab") == ("a", True)
    assert text_of(prompts, b"\n\n", "\n\n") == ("", True)


def test_a_stop_string_of_many_bytes_a_character_is_found(prompts):
    assert text_of(prompts, "za 🙂end".encode(), "🙂") == ("za ", True)
    assert text_of(prompts, "日本語".encode(), "本") == ("日", True)


def test_nothing_comes_after_a_stop_string(prompts):
    out = prompts.text_out(("b",))
    assert [out.add(ord("a")), out.add(ord("b")), out.add(ord("c")), out.finish()] == [
        "a", "", "", "",
    ]  # fmt: skip
    assert out.stopped


def test_a_stop_string_completed_by_the_end_is_still_one(prompts):
    """An unfinished character before it is only decided by the end."""
    out = prompts.text_out(("\ufffd",))
    assert out.add(0xE2) == "" and not out.stopped
    assert out.finish() == "" and out.stopped


def test_end_of_text_is_not_part_of_the_text(prompts):
    assert text_of(prompts, [*b"done", EOS]) == ("done", False)


def test_end_of_text_is_text_when_it_does_not_end_it(prompts):
    parts, _ = run(prompts, [*b"a", EOS, *b"b"], end_tokens_are_text=True)
    assert "".join(parts) == "a<|im_end|>b"


def test_a_space_at_the_start_is_kept_where_the_text_continues_a_prompt(prompts, demo):
    """mlx-lm's detokenizers drop it, as at the start of any text."""
    for one in (prompts, demo):
        out = one.text_out(("the end",), False, continues=True)
        tokens = one.from_text(" then\n  it is the end")
        assert "".join(out.add(token) for token in tokens) + out.finish() == " then\n  it is "
        assert out.stopped
        out = one.text_out((), False, continues=False)
        assert "".join(out.add(token) for token in one.from_text(" then")) == "then"


def test_two_answers_at_once_do_not_share_their_text(prompts):
    one, two = prompts.text_out(()), prompts.text_out(("x",))
    assert [one.add(0xC3), two.add(ord("b")), one.add(0xA9), two.add(ord("x"))] == [
        "", "b", "é", "",
    ]  # fmt: skip
    assert (one.stopped, two.stopped) == (False, True)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\n é🙂"), min_size=1, max_size=30),
    stop=st.lists(st.text(st.sampled_from("ab\n é🙂"), min_size=1, max_size=4), max_size=3),
)
def test_any_text_is_cut_at_the_earliest_end_of_a_stop_string(prompts, text, stop):
    """mlx-lm trims one space at the very start, so the text begins with something else."""
    text = "." + text
    ends = [(text.find(word) + len(word), -len(word)) for word in stop if word in text]
    end, length = min(ends, default=(len(text), 0))
    got, stopped = text_of(prompts, text.encode(), *stop)
    assert stopped == bool(ends)
    assert got == text[: end + length]


# The demo model's tokenizer, with its merges.


@pytest.mark.parametrize(
    "text",
    ["The capital of France is Paris.", "日本語とé and 🙂🙂", "x = [1, 2]\n\n    y\t1234567"],
)
def test_the_demo_tokenizers_text_comes_back(demo, text):
    assert text_of(demo, demo.from_text(text)) == (text, False)


def test_the_demo_tokenizer_stops_inside_a_token(demo):
    tokens = demo.from_text("The capital of France is Paris.")
    assert text_of(demo, tokens, "apit") == ("The c", True)
    assert text_of(demo, tokens, "ce is Pa") == ("The capital of Fran", True)


def test_one_tokenizer_serves_many_threads(demo):
    """HTTP threads share it, and encode and decode at the same time."""
    texts = [f"Thread {n} counts: " + " ".join(map(str, range(n, n + 60))) for n in range(16)]

    def there_and_back(text: str) -> bool:
        request = chat(messages=[{"role": "user", "content": text}])
        ids = demo.from_chat(request)
        return len(ids) > 60 and text_of(demo, demo.from_text(text)) == (text, False)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, texts * 4))
