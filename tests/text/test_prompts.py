"""Text in and out over a real tokenizer: one whose token n is byte n, so that any text can be cut
anywhere, and the demo model's."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_tokenizer

from server.api.dialects.chat import parse as parse_chat
from server.protocol.client import SERVER
from server.protocol.errors import ApiError
from server.protocol.events import Score
from server.protocol.pieces import TokenLogprob
from server.protocol.requests import ChatRequest, Common, Served
from server.text.prompts import TokenizerPrompts
from tests.support.tiny_models import SPECIALS, VOCAB, write_byte_tokenizer

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


def chat(**fields) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "hi"}]} | fields
    return parse_chat(body, Served("demo"))


def run(
    prompts, tokens, *stop: str, ignore_eos: bool = False, stop_token_ids=()
) -> tuple[list[str], bool]:
    """What each token gave, then what finish() gave; and whether a stop string was met."""
    out = prompts.plain_out(
        Common(stop=stop, ignore_eos=ignore_eos, stop_token_ids=tuple(stop_token_ids))
    )
    parts = []
    for token in tokens:
        parts.append(out.add(token).text)
        if out.stopped is not None:
            return parts, True
    rest, _ = out.finish("length")
    return [*parts, rest.text], out.stopped is not None


def text_of(prompts, tokens, *stop: str) -> tuple[str, bool]:
    parts, stopped = run(prompts, tokens, *stop)
    return "".join(parts), stopped


# Text in.


def test_a_conversation_goes_through_the_template(prompts):
    ids = prompts.from_chat(chat())
    text = b"".join(bytes([i]) if i < 256 else f"<{i}>".encode() for i in ids).decode()
    assert text == "<257>user\nhi<258>\n<257>assistant\n"
    assert all(type(token) is int for token in ids)


@pytest.mark.parametrize(
    "own, shown", [({}, "1 2"), ({"a": 3}, "3 2"), ({"a": None, "c": 4}, "None 2")]
)
def test_a_request_s_variables_of_the_template_come_before_the_operator_s(tmp_path, own, shown):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path, eos_token_ids=EOS)
    tokenizer._tokenizer.chat_template = "{{ a }} {{ b }}"
    defaults = TokenizerPrompts(tokenizer, VOCAB, {"a": 1, "b": 2})
    ids = defaults.from_chat(chat(chat_template_kwargs=own))
    assert bytes(ids).decode() == shown


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

    def __init__(self, real: TokenizerPrompts, error: Exception) -> None:
        self._tokenizer = real._tokenizer._tokenizer  # for grammars
        self.get_vocab = self._tokenizer.get_vocab
        self._error = error

    def apply_chat_template(self, *_, **__):
        raise self._error

    encode = apply_chat_template


@pytest.mark.parametrize(
    "error", [ValueError("roles must alternate"), KeyError("x"), RecursionError(), OSError("disk")]
)
def test_what_template_and_tokenizer_refuse_is_400(prompts, error):
    refusing = TokenizerPrompts(Refusing(prompts, error), VOCAB)
    with pytest.raises(ApiError) as caught:
        refusing.from_chat(chat())
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(ApiError) as caught:
        refusing.from_text("hi")
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_a_template_that_gives_no_text_is_400(prompts):
    """What is no list of ids got as far as the ranks, and ended them."""
    for result in ("", b"text", ["a"], [[1]], [None], [], None):
        tokenizer = Refusing(prompts, ValueError())
        tokenizer.apply_chat_template = lambda *_, result=result, **__: result
        tokenizer.encode = tokenizer._tokenizer.encode
        with pytest.raises(ApiError) as caught:
            TokenizerPrompts(tokenizer, VOCAB).from_chat(chat())
        assert caught.value.status == 400


def test_a_model_without_a_template_says_so(prompts):
    tokenizer = Refusing(prompts, ValueError())
    tokenizer.has_chat_template = False
    with pytest.raises(ApiError, match="no chat template"):
        TokenizerPrompts(tokenizer, VOCAB).from_chat(chat())


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
    out = prompts.plain_out(Common(stop=("b",)))
    assert [out.add(token).text for token in b"abc"] == ["a", "", ""]
    rest, finish = out.finish("length")
    assert (rest.text, finish, out.stopped) == ("", "stop", "b")


def test_a_stop_string_completed_by_the_end_is_still_one(prompts):
    """An unfinished character before it is only decided by the end."""
    out = prompts.plain_out(Common(stop=("\ufffd",)))
    assert out.add(0xE2).text == "" and out.stopped is None
    rest, finish = out.finish("length")
    assert (rest.text, finish, out.stopped) == ("", "stop", "\ufffd")


def test_end_of_text_is_not_part_of_the_text(prompts):
    assert text_of(prompts, [*b"done", EOS]) == ("done", False)


def test_end_of_text_is_text_when_it_does_not_end_it(prompts):
    parts, _ = run(prompts, [*b"a", EOS, *b"b"], ignore_eos=True)
    assert "".join(parts) == "a<|im_end|>b"


def test_a_stop_token_is_not_part_of_the_text_even_where_end_of_text_is(prompts):
    parts, _ = run(prompts, [*b"aX", EOS, *b"b"], ignore_eos=True, stop_token_ids=[ord("X")])
    assert "".join(parts) == "a<|im_end|>b"


def test_a_space_at_the_start_is_kept_where_the_text_continues_a_prompt(prompts, demo):
    """mlx-lm's detokenizers drop it, as at the start of any text."""
    for one in (prompts, demo):
        out = one.plain_out(Common(stop=("the end",)))
        tokens = one.from_text(" then\n  it is the end")
        assert "".join(out.add(token).text for token in tokens) == " then\n  it is "
        assert out.stopped == "the end" and out.finish("length")[0].text == ""
        request = chat()
        out = one.chat_out(request, None, one.from_chat(request))
        text = "".join(out.add(token).text for token in one.from_text(" then"))
        assert text + out.finish("length")[0].text == "then"


def test_two_answers_at_once_do_not_share_their_text(prompts):
    one, two = prompts.plain_out(Common()), prompts.plain_out(Common(stop=("x",)))
    turns = [(one, 0xC3), (two, ord("b")), (one, 0xA9), (two, ord("x"))]
    assert [out.add(token).text for out, token in turns] == ["", "b", "é", ""]
    assert (one.stopped, two.stopped) == (None, "x")


def test_chat_text_is_cut_at_stop_strings_and_has_no_end_tokens(prompts):
    request = chat(stop=["two"])
    ids = prompts.from_chat(request)
    out = prompts.chat_out(request, None, ids)
    assert "".join(out.add(token).text for token in b"one two three") == "one "
    assert out.stopped == "two"
    out = prompts.chat_out(chat(), None, ids)
    assert "".join(out.add(token).text for token in [*b"done", EOS]) == "done"
    assert out.finish("stop")[1] == "stop"


# Log-probabilities.


def test_a_score_is_told_with_its_text_and_bytes(prompts):
    score = Score(ord("a"), -0.5, ((ord("b"), -1.5), (EOS, -2.5)))
    assert prompts.describe(score) == TokenLogprob(
        ord("a"), "a", (97,), -0.5,
        (
            TokenLogprob(ord("b"), "b", (98,), -1.5),
            TokenLogprob(EOS, "<|im_end|>", tuple(b"<|im_end|>"), -2.5),
        ),
    )  # fmt: skip
    assert prompts.describe(Score(1, None)).logprob is None


def test_part_of_a_character_has_its_own_bytes(prompts):
    described = [prompts.describe(Score(byte, 0.0)) for byte in "é🙂".encode()]
    assert bytes(byte for one in described for byte in one.bytes).decode() == "é🙂"
    assert all(one.text == "\ufffd" for one in described)


@pytest.mark.parametrize("text", [" The capital,  of\n\nFrance\t1 234", "日本語とé 🙂🙂", "Ġ\x00a"])
def test_the_bytes_of_all_tokens_joined_are_the_text(prompts, demo, text):
    for one in (prompts, demo):
        described = [one.describe(Score(token, -1.0)) for token in one.from_text(text)]
        assert bytes(byte for t in described for byte in t.bytes).decode() == text
        if text.isascii():
            assert "".join(t.text for t in described) == text


def test_a_token_id_beyond_the_tokenizer_still_has_a_description(demo):
    """Models have more rows than tokens, for speed; sampling hardly ever meets one."""
    one = demo.describe(Score(10**6, -50.0))
    assert one.id == 10**6 and isinstance(one.text, str)


def test_token_ids_become_text_for_echo(prompts, demo):
    for one in (prompts, demo):
        for text in (" a b", "é🙂", "x <|im_end|> y"):
            assert one.decode(one.from_text(text)) == text


# What the answer must match.


def test_a_format_or_a_forced_call_makes_a_constraint_and_nothing_else_does(prompts):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    request = chat(tools=[tool])
    ids = prompts.from_chat(request)
    for fields in ({}, {"tools": [tool]}, {"response_format": {"type": "text"}}):
        assert prompts.chat_constraint(chat(**fields), ids, SERVER) is None
    named = {"type": "function", "function": {"name": "f"}}
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"tools": [tool], "tool_choice": "required"},
        {"tools": [tool], "tool_choice": named},
    ):
        matcher = prompts.chat_constraint(chat(**fields), ids, SERVER).matcher()
        opening = ord("[") if fields.get("tool_choice") == "required" else ord("{")
        mask = matcher.mask()
        assert mask[opening // 32] >> (opening % 32) & 1
        assert not mask[ord("x") // 32] >> (ord("x") % 32) & 1


def test_an_impossible_schema_is_400_before_any_work(prompts):
    schema = {"type": "object", "properties": {"a": {"type": "no such type"}}}
    given = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    request = chat(response_format=given)
    with pytest.raises(ApiError) as caught:
        prompts.chat_constraint(request, prompts.from_chat(request), SERVER)
    assert caught.value.status == 400 and "response_format" in caught.value.param


@settings(max_examples=200)
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


STRICT = (
    "{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('role') }}{% endif %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }};{% endfor %}"
)


def test_templates_that_want_system_first_get_it_there(tmp_path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path, eos_token_ids=EOS)
    tokenizer._tokenizer.chat_template = STRICT
    prompts = TokenizerPrompts(tokenizer, VOCAB)

    def rendered(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return bytes(prompts.from_chat(chat(messages=messages))).decode()

    assert rendered(("system", "a"), ("user", "b")) == "s:a;u:b;"
    assert rendered(("developer", "a"), ("user", "b")) == "s:a;u:b;"
    assert rendered(("user", "b"), ("system", "c")) == "u:b;u:c;"
    with pytest.raises(ApiError, match="role"):
        rendered(("user", "b"), ("tool", "c"))
