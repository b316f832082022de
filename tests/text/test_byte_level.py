"""Every byte comes out of a token as it went in, whole and at every split, in all kinds of
vocabularies."""

import json

import pytest

pytest.importorskip("mlx_lm")

from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models

from server.api.dialects.chat import parse as parse_chat
from server.protocol.client import SERVER
from server.protocol.events import Score
from server.protocol.requests import Common, Served
from server.text.prompts import TokenizerPrompts
from tests.support.answers_folded import fold
from tests.support.tiny_models import VOCAB, write_byte_tokenizer

TEXTS = [
    "\0",
    "a\0b",
    "\0\0",
    "\u0100",
    "\0é\0",
    "a \0 b",
    "é\u4e2d\U0001f600\0",
    "\0\n\r\t\x7f\x80",
]
END = "<|im_end|>"
ADDED = ["<é\u0100>", "<\uff5cdone\u2581\uff5c>"]


def byte_fallback(folder, strip: bool):
    """As sentencepiece has it: token n + 1 is byte n, then some pieces."""
    pieces = [
        "<unk>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "\u2581",
        "a",
        "é",
        "\u0100",
        "\u2581a",
    ]
    inner = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(inner + [decoders.Strip(" ", 1, 0)] * strip)
    return save(folder, tokenizer)


def byte_level(folder):
    write_byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return save(folder, tokenizer)


def save(folder, tokenizer):
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.token_to_id(END) is not None:
        config["eos_token"] = END
    config["chat_template"] = "{{ messages[0].content }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return TokenizerPrompts(load_tokenizer(folder), VOCAB)


@pytest.fixture(scope="module", params=["byte level", "fallback", "fallback, stripped"])
def kind(request, tmp_path_factory):
    """Prompts, and the token of byte 0."""
    folder = tmp_path_factory.mktemp("kind")
    if request.param == "byte level":
        return byte_level(folder), 0
    return byte_fallback(folder, request.param.endswith("stripped")), 1


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("level"))


def request_for(**fields):
    return parse_chat({"messages": [{"role": "user", "content": "hi"}]} | fields, Served("x"))


def outs(prompts):
    """One of each way out of text."""
    chat = request_for()
    yield prompts.plain_out(Common())
    yield prompts.chat_out(chat, None, [5])


def test_every_byte_between_others_is_itself(kind):
    prompts, first = kind
    for byte in range(256):
        data = b"x" + bytes([byte]) + b"y"
        for out in outs(prompts):
            assert fold(out, [first + n for n in data]).text == data.decode("utf-8", "replace")


def test_every_byte_alone_is_itself_where_a_text_goes_on(kind):
    prompts, first = kind
    for byte in range(256):
        out = prompts.plain_out(Common())
        assert fold(out, [first + byte]).text == bytes([byte]).decode("utf-8", "replace")


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_as_soon_as_its_characters_are_whole(kind, text):
    prompts, first = kind
    data = text.encode()
    for out in outs(prompts):
        got = ""
        for end, byte in enumerate(data, 1):
            got += out.add(first + byte).text
            whole = data[:end].decode("utf-8", "ignore")
            assert whole.startswith(got) and whole.rstrip() == got.rstrip()
        assert got + out.finish("stop")[0].text == text


def test_an_answer_cut_within_a_character_keeps_its_nuls(kind):
    prompts, first = kind
    for data in (b"x\0\xc3", b"x\xe4\xb8\0", b"x\xc3\0\xc3", b"x\0 "):
        for out in outs(prompts):
            assert fold(out, [first + n for n in data]).text == data.decode("utf-8", "replace")


def test_the_text_of_tokens_and_of_their_scores_is_the_same(kind):
    prompts, first = kind
    for byte in range(256):
        told = prompts.describe(Score(first + byte, -1.0, ()))
        assert told.bytes == (byte,)
        assert told.text == bytes([byte]).decode("utf-8", "replace")
        if byte < 128 and byte != ord(" "):
            assert prompts.decode([first + byte]) == told.text


def test_pieces_of_sentencepiece_are_scored_as_their_text(tmp_path):
    prompts = byte_fallback(tmp_path, strip=True)
    texts = [prompts.describe(Score(n, -1.0, ())).text for n in range(257, 262)]
    assert texts == [" ", "a", "é", "\u0100", " a"]


def test_a_token_of_several_bytes_may_hold_a_nul_anywhere(tmp_path):
    pieces = [
        "\u0100\u0100",
        "a\u0100",
        "\u0100\u00c3",
        "\u00c3\u0100",
        "\u00a9",
        "\u0120\u0100",
        "a",
    ]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    prompts = save(tmp_path, tokenizer)
    data = [b"\0\0", b"a\0", b"\0\xc3", b"\xc3\0", b"\xa9", b" \0", b"a"]
    pairs = [(one, other) for one in range(len(data)) for other in range(len(data))]
    for tokens in pairs:
        whole = b"".join(data[n] for n in tokens).decode("utf-8", "replace")
        assert prompts.decode(list(tokens)) == whole
        for out, start in zip(outs(prompts), (whole, whole.removeprefix(" ")), strict=True):
            assert fold(out, tokens).text == start


def test_an_added_token_is_its_text_to_the_letter(level):
    for text in ADDED:
        (token,) = level.encode(text, special_tokens=False)
        for out in outs(level):
            assert fold(out, [120, token, 0, token, 0xC3]).text == f"x{text}\0{text}\ufffd"
        told = level.describe(Score(token, -1.0, ()))
        assert (told.text, bytes(told.bytes)) == (text, text.encode())


def test_forced_calls_keep_a_nul(level):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    request = request_for(tools=[tool], tool_choice={"type": "function", "function": {"name": "f"}})
    prompt = level.from_chat(request)
    out = level.chat_out(request, level.chat_constraint(request, prompt, SERVER), prompt)
    assert fold(out, b'{"a": "\xc3\xa9"}').calls == (("f", '{"a": "é"}'),)


def test_a_choice_with_a_nul_is_told_as_it_is(level):
    request = request_for(guided_choice=["a\0b"])
    prompt = level.from_chat(request)
    constraint = level.chat_constraint(request, prompt, SERVER)
    assert constraint is not None
    out = level.chat_out(request, constraint, prompt)
    assert fold(out, b"a\0b").text == "a\0b"
