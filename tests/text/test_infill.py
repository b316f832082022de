"""Filling in the middle: the prompt that a family's models were trained on, and what ends it."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel

from server.protocol.errors import ApiError
from server.text.infill import FORMS, infill_of
from server.text.prompts import TokenizerPrompts
from tests.support.front_end import FrontEnd

END, BOS = "<end>", "<s>"
BEFORE, AFTER = "def add(a, b):\n    ", "\n\nprint(add(1, 2))"
QWEN = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|file_sep|>"]


def write(folder, tokenizer: Tokenizer, special: list[str], **config):
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in [*special, END]]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return folder


def of_bytes(folder, special: list[str], bos: bool = False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    if not bos:
        return write(folder, tokenizer, special)
    begin_with_bos(tokenizer)
    return write(folder, tokenizer, special, bos_token=BOS)


def of_words(folder, special: list[str]):
    """As SentencePiece's: a space before the first word, and a token that begins every text."""
    letters = sorted(set(BEFORE + AFTER + "▁☺"))
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in letters)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    begin_with_bos(tokenizer)
    return write(folder, tokenizer, special, bos_token=BOS)


def begin_with_bos(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(BOS, normalized=False, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )


def prompts_of(folder) -> TokenizerPrompts:
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(folder)
    return TokenizerPrompts(tokenizer, len(tokenizer.get_vocab()))


def shown(prompts: TokenizerPrompts, ids: list[int]) -> str:
    """The tokens' names, with spaces and line feeds as they are."""
    names = prompts.token_names(ids)
    return "".join(names).replace("Ġ", " ").replace("Ċ", "\n")


@pytest.mark.parametrize(
    ("special", "bos", "prompt"),
    [
        (QWEN, False, f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"),
        (
            ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"],
            False,
            f"<fim_prefix>{BEFORE}<fim_suffix>{AFTER}<fim_middle>",
        ),
        (
            ["<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"],
            False,
            f"<fim-prefix>{BEFORE}<fim-suffix>{AFTER}<fim-middle>",
        ),
        (
            ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"],
            True,
            f"{BOS}<｜fim▁begin｜>{BEFORE}<｜fim▁hole｜>{AFTER}<｜fim▁end｜>",
        ),
    ],
    ids=["qwen", "starcoder", "santacoder", "deepseek"],
)
def test_a_family_gets_the_prompt_that_it_knows(tmp_path, special, bos, prompt):
    prompts = prompts_of(of_bytes(tmp_path, special, bos))
    assert shown(prompts, prompts.from_around(BEFORE, prompts.suffix(AFTER))) == prompt
    ids = prompts.encode(BEFORE, special_tokens=False)
    assert prompts.from_around(ids, prompts.suffix(AFTER)) == prompts.from_around(
        BEFORE, prompts.suffix(AFTER)
    )
    assert set(special) <= set(prompts.token_names(list(prompts.suffix(AFTER).ends)))


@pytest.mark.parametrize(
    ("special", "prompt"),
    [
        (["▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"], "{bos}▁<PRE>▁{before}▁<SUF>{after}▁<MID>"),
        (["[PREFIX]", "[MIDDLE]", "[SUFFIX]"], "{bos}[SUFFIX]{after}[PREFIX]▁{before}"),
    ],
    ids=["code llama", "codestral"],
)
def test_a_suffix_has_no_space_before_it_that_is_not_its_own(tmp_path, special, prompt):
    prompts = prompts_of(of_words(tmp_path, special))
    before, after = "x = (a", "b)"
    wanted = prompt.format(bos=BOS, before=before.replace(" ", "▁"), after=after)
    names = prompts.token_names(prompts.from_around(before, prompts.suffix(after)))
    unknown = {"x", "="} - set(BEFORE + AFTER)
    assert "".join(names) == "".join("<unk>" if c in unknown else c for c in wanted)
    assert set(special) <= set(prompts.token_names(list(prompts.suffix(after).ends)))


def test_a_tokenizer_with_half_of_a_form_has_none(tmp_path):
    prompts = prompts_of(of_bytes(tmp_path, ["<|fim_prefix|>", "<|fim_suffix|>", "<PRE>"]))
    with pytest.raises(ApiError) as refused:
        prompts.from_around(BEFORE, prompts.suffix(AFTER))
    assert (refused.value.status, refused.value.param) == (400, "suffix")


def test_tokens_that_the_model_does_not_have_make_no_form(tmp_path):
    from mlx_lm.tokenizer_utils import load

    tokenizer = load(of_bytes(tmp_path, QWEN))
    assert infill_of(tokenizer, tokenizer.get_vocab()["<|fim_middle|>"]) is None


def test_no_form_has_the_tokens_of_another():
    tokens = [token for form in FORMS for token in (form.prefix, form.suffix)]
    assert len(tokens) == len(set(tokens))


# Over HTTP.


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    one = FrontEnd(of_bytes(tmp_path_factory.mktemp("coder"), QWEN))
    yield one
    one.end()


@pytest.mark.parametrize("prompt", [BEFORE, "", [BEFORE, ""]])
def test_completions_take_a_suffix(coder, prompt):
    answer = coder.ask("POST", "/v1/completions", {"prompt": prompt, "suffix": AFTER, "n": 2})
    assert answer.status == 200
    given = prompt if isinstance(prompt, list) else [prompt]
    seen = coder.engine.seen[-2 * len(given) :: 2]
    for ticket, before in zip(seen, given, strict=True):
        wanted = f"<|fim_prefix|>{before}<|fim_suffix|>{AFTER}<|fim_middle|>"
        assert coder.prompts.decode(ticket.prompt) == wanted
        ends = coder.prompts.token_names(list(ticket.common.stop_token_ids))
        assert set(ends) == set(QWEN)
    assert answer.json["usage"]["prompt_tokens"] == sum(len(one.prompt) for one in seen)


def test_a_suffix_of_many_prompts_is_tokenized_once(coder, monkeypatch):
    tokenized = []
    encode = TokenizerPrompts._encode

    def counting(self, text, *others):
        tokenized.append(text)
        return encode(self, text, *others)

    monkeypatch.setattr(TokenizerPrompts, "_encode", counting)
    body = {"prompt": [BEFORE, "", "x"], "suffix": AFTER}
    assert coder.ask("POST", "/v1/completions", body).status == 200
    assert tokenized == [AFTER, BEFORE, "", "x"]


def test_what_may_not_end_is_ended_by_none_of_them(coder):
    body = {"prompt": "x", "suffix": "y", "ignore_eos": True, "stop_token_ids": [5]}
    assert coder.ask("POST", "/v1/completions", body | {"max_tokens": 3}).status == 200
    assert coder.engine.seen[-1].common.stop_token_ids == (5,)


def test_prefix_and_suffix_must_fit_together(coder):
    body = {"prompt": "x " * 600, "suffix": "y " * 600}
    refused = coder.ask("POST", "/v1/completions", body)
    assert refused.status == 400
    assert refused.json["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("prompt", ["x", "", [1, 2]])
def test_a_model_without_such_tokens_refuses_a_suffix(demo_model_dir, prompt):
    front = FrontEnd(demo_model_dir)
    try:
        refused = front.ask("POST", "/v1/completions", {"prompt": prompt, "suffix": "y"})
        assert refused.status == 400 and refused.json["error"]["param"] == "suffix"
        assert front.ask("POST", "/v1/completions", {"prompt": "x", "suffix": ""}).status == 200
        empty = front.ask("POST", "/v1/completions", {"prompt": "", "suffix": ""})
        assert empty.status == 400 and empty.json["error"]["param"] == "prompt"
    finally:
        front.end()
