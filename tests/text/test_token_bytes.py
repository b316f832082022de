"""The most text that a token can stand for: never too low, as prompts that fit are not refused."""

import copy

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers

from server.text.token_bytes import SHRINKS, bytes_per_token


class Fast:
    """As a Hugging Face tokenizer."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend
        self.get_vocab = backend.get_vocab


def fast(*pieces: str, normalizer=None) -> Fast:
    backend = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, "?"))
    if normalizer is not None:
        backend.normalizer = normalizer
    return Fast(backend)


@pytest.mark.parametrize(
    ("pieces", "most"),
    [
        (["a", "abc"], 3),
        (["\u0120\u0120\u0120\u0120"], 4),  # four blanks of a byte-level vocabulary
        (["\u2581\u2581\u2581"], 3),  # three of another
        (["\u2581\u4e2d"], 4),
        (["<0x0A>"], 6),
        (["a", "<|special|>"], 11),
    ],
)
def test_tokens_are_measured_in_bytes_of_text(pieces, most):
    assert bytes_per_token(fast(*pieces)) == most


def test_normalizers_that_shorten_are_allowed_for():
    for normalizer in (normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()):
        assert bytes_per_token(fast("abc", normalizer=normalizer)) == 3 * SHRINKS
    assert bytes_per_token(fast("ab\u00e9", normalizer=normalizers.NFC())) >= 5
    blanks = "\u0120" * 100
    assert bytes_per_token(fast(blanks, normalizer=normalizers.NFC())) == 100
    spaces = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    assert bytes_per_token(fast("abc", normalizer=spaces)) == 3
    runs = normalizers.Replace(Regex(" {2,}"), " ")
    assert bytes_per_token(fast("abc", normalizer=runs)) == 3 * SHRINKS


@pytest.fixture(scope="module")
def normalized(demo_model_dir):
    """A real tokenizer with each of some normalizers, and what was found for it."""
    from mlx_lm.tokenizer_utils import load

    one, found = load(demo_model_dir)._tokenizer, []
    for normalizer in (None, normalizers.NFC(), normalizers.NFKC(), normalizers.Lowercase()):
        tokenizer = copy.deepcopy(one)
        if normalizer is not None:
            tokenizer.backend_tokenizer.normalizer = normalizer
        found.append((tokenizer, bytes_per_token(tokenizer)))
    return found


@pytest.mark.parametrize(
    "text",
    ["\u212a" * 50, "\U0001d400" * 50, "e\u0301" * 50, "\u1112\u1161\u11ab" * 50, "\ufb03" * 50,
     "\u03b1\u0313\u0301\u0345" * 50, "\u3000" * 50, " " * 400, "#" * 400],
)  # fmt: skip
def test_no_text_has_more_bytes_than_its_tokens_can_stand_for(normalized, text):
    for tokenizer, most in normalized:
        assert len(text.encode()) <= most * len(tokenizer.encode(text))
