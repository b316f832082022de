"""A tokenizer that tests of several files need."""

import pytest
from mlx_lm.utils import load_tokenizer

from tests.support.tiny_models import END, THINK, write_byte_tokenizer


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A tokenizer with tokens that begin and end thinking."""
    folder = tmp_path_factory.mktemp("thinker")
    write_byte_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        text = text.replace("<|spare_0|>", "<think>").replace("<|spare_1|>", "</think>")
        (folder / name).write_text(text)
    (folder / "config.json").write_text("{}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.think_start_tokens == (THINK,) and tokenizer.think_end_tokens == (END,)
    return tokenizer
