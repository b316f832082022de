"""Tokenizers and random walks for the tests of grammars: a model that means nothing."""

import random
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from server.grammar.grammars import Grammars, Matcher
from tests.support.tiny_models import VOCAB, write_byte_tokenizer

PATIENCE = 60  # tokens, after which a walk takes the way out where there is one
WAYS_OUT = ("}", "]", '"')  # outside strings; inside, where a letter may come, the quote first


class Walker:
    """A tokenizer with its grammars, as rank 0 has them."""

    def __init__(self, folder: Path, vocab: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.eos = self.tokenizer.eos_token_id
        self.vocab = vocab
        self.grammars = Grammars(self.tokenizer, vocab, {self.eos})
        self._ways_out = [i for way in WAYS_OUT for i in self.ids(way)]
        self._letter = self.ids("z")[0]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def walk(self, matcher: Matcher, seed: int, most: int = 600) -> str:
        """The text of random allowed tokens, up to the end of the grammar."""
        rng = random.Random(seed)
        taken: list[int] = []
        for _ in range(most):
            mask = matcher.mask()
            allowed = allowed_ids(mask)
            token = self._choose(allowed, mask, rng, len(taken) > PATIENCE)
            matcher.accept(token)
            if token == self.eos:
                return self.text(taken)
            taken.append(token)
        raise AssertionError(f"no end after {most} tokens: {self.text(taken)[:400]!r}")

    def _choose(self, allowed, mask, rng: random.Random, leave: bool) -> int:
        if is_set(mask, self.eos) and (leave or rng.random() < 0.5):
            return self.eos
        if leave and rng.random() < 0.9:  # not always: a quote may be the start of a key
            in_string = is_set(mask, self._letter)
            for token in reversed(self._ways_out) if in_string else self._ways_out:
                if is_set(mask, token):
                    return token
        return int(rng.choice(allowed))


def byte_walker(folder: Path) -> Walker:
    """With a token for each byte, and none but those."""
    write_byte_tokenizer(folder)
    return Walker(folder, VOCAB)


def allowed_ids(mask: np.ndarray) -> np.ndarray:
    """The tokens whose bits are set."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def is_set(mask: np.ndarray, token: int) -> bool:
    return bool(mask[token // 32] >> np.uint32(token % 32) & 1)
