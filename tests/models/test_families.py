"""Architectures of every kind, small and of random weights: everybody's answer is what mlx-lm gives
for that prompt alone. tests/models/matrix.py does it with all of them, on demand."""

import pytest

from server.engine.rows_apart import Ways
from tests.models.architectures import architectures, build, config_of
from tests.models.served import check_all, serve
from tests.models.sizes import OWN, VARIANTS

# What is known of them. Whatever the start finds has to give right answers; this is to notice when
# a new mlx-lm bears more, or less.
KNOWN = {
    "llama": "together",
    "gpt_oss": "together",  # sinks and windows
    "gemma3n": "together",  # layers that share keys
    # A latent, and a choice of what to look at.
    "deepseek_v32": "together, attention by length",
    "deepseek_v3": "together",  # a latent
    "mistral4": "together",  # a latent, and masks that are not asked for as arrays
    "qwen3_next": "together",  # states that see no padding
    "kimi_linear": "together",
    "nemotron-nas": "together",  # layers without attention
    "nemotron_h": "prompts one at a time",  # states that see padding
    "baichuan_m1": "prompts one at a time",
    "rwkv7": "prompts one at a time",
    "longcat_flash_ngram": "a row at a time",  # a prompt of one token beside others
    "llama4": "a row at a time",  # no batch with history
    "deepseek_v41": "a row at a time",
    "gemma2": "a row at a time",  # masks of one row
    "minimax_m3_vl, blocks of 128": "a row at a time",  # seen beyond 2048 tokens only
    "plamo3": "together, in whole chunks",  # answers depend on where prompts are cut
}


@pytest.mark.parametrize("name", KNOWN)
def test_rows_of_a_family_do_not_see_each_other(name):
    shard = serve(name)
    check_all(shard)
    assert str(shard.last.ways) == KNOWN[name]


def test_weights_of_4_bits_are_no_other_case():
    shard = serve("nemotron_h", bits=4)
    check_all(shard)
    assert shard.last.ways == Ways(shelves=True, prompts_apart=True)


def test_a_model_of_every_architecture_can_be_made():
    """Not all at once: it would take as long as the matrix."""
    names = architectures()
    assert len(names) >= 125 and {*OWN} <= {*names}
    assert {architecture for architecture, _ in VARIANTS.values()} <= {*names}
    assert all(config_of(name)["model_type"] == name for name in names)
    first, second = (build("llama").parameters() for _ in range(2))
    assert str(first) == str(second), "the same for the same seed"
