"""What a row's caches are said to take, against those that mlx-lm fills."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from server.engine.attention import put_attention
from server.engine.kv_memory import RowBytes, kv_memory, row_bytes
from server.engine.quantised_kv import Quantised, fits
from tests.models.architectures import build

CHUNK = 128  # tokens of a prompt that are computed together
STEP = 256  # tokens by which mlx-lm's caches grow
# One of every kind of cache, and of every mixture of them.
FAMILIES = (
    "llama",  # windows and keys of all
    "gpt_oss",
    "gemma3_text, a window of 512",
    "gemma3n",  # layers that share keys
    "deepseek_v3",  # a latent
    "deepseek_v32",  # two caches a layer
    "deepseek_v41",
    "deepseek_v41, tokens compressed by layers of its own",
    "llama4",  # chunks
    "qwen3_next",  # states
    "falcon_h1",
    "baichuan_m1",
    "mamba",
    "recurrent_gemma",
    "nemotron-nas",  # layers without
    "longcat_flash_ngram",
)


def filled(model: nn.Module, tokens: int) -> int:
    """Bytes of a row's caches after a prompt in chunks, and a token."""
    caches = make_prompt_cache(model)
    for at in range(0, tokens - 1, CHUNK):
        length = min(CHUNK, tokens - 1 - at)
        model(mx.zeros((1, length), dtype=mx.int32), cache=caches)
        mx.eval([cache.state for cache in caches])
    model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
    mx.eval([cache.state for cache in caches])
    return sum(cache.nbytes for cache in caches)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_takes_what_it_is_said_to(name):
    """Windows longer than the 257 tokens that were tried were counted as growing."""
    model = build(name)
    row, long = row_bytes(model), 4 * STEP + 1
    real = filled(model, long)
    assert filled(model, long + STEP) - real == STEP * row.token
    beyond = real - (row.fixed + long * row.token)
    assert -STEP * 512 <= beyond <= STEP * row.token, "but for the step that is begun"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["llama, heads of 64", "gemma3_text, heads of 64"])
def test_a_row_in_fewer_bits_takes_what_it_is_said_to(name, bits):
    model = build(name)
    put_attention(model)
    layers, why = fits(model, bits)
    quantised = Quantised(bits, 0, layers)
    row, whole = row_bytes(model, quantised), row_bytes(model)
    assert not why and row.whole == whole.token and row.fixed == whole.fixed
    caches = quantised.convert(make_prompt_cache(model))
    sizes = []
    for _ in range(2):
        # Beyond every window, in steps by which caches grow.
        model(mx.zeros((1, 4 * STEP), dtype=mx.int32), cache=caches)
        sizes.append(sum(cache.nbytes for i, cache in enumerate(caches) if i in layers))
    assert sizes[1] - sizes[0] == 4 * STEP * row.token
    assert row.token < whole.token * (bits + 4) / 32, "of 32 bits"


class Windows(nn.Module):
    """Layers of a window, and of all."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def make_cache(self) -> list:
        return [RotatingKVCache(self.window), KVCache(), RotatingKVCache(self.window)]

    def __call__(self, tokens: mx.array, cache: list) -> mx.array:
        assert tokens.shape == (1, 1), "a long prompt is computed"
        for layer in cache:
            layer.update_and_fetch(mx.zeros((1, 2, 1, 16)), mx.zeros((1, 2, 1, 8)))
        return tokens


@pytest.mark.parametrize("window", [1, 16, 255, 256, 257, 4096, 131_072, 10**9])
def test_a_window_of_any_length_is_a_fixed_part_and_costs_no_computing(window):
    a_token = 2 * (16 + 8) * 4  # two heads of float32
    assert row_bytes(Windows(window)) == RowBytes(fixed=2 * window * a_token, token=a_token)


def test_the_operators_word_is_each_ranks_and_what_is_spare_is_shared():
    assert kv_memory(1e-3, 4) == 1_000_000
    assert 0 < kv_memory(None, 4) * 3 < kv_memory(None, 1)
