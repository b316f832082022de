"""Caches of every kind, through files: a model goes on from them as from its own."""

import copy
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from server.disk.entry_file import Part, Span, read_arrays, write_part
from server.engine.kept_caches import Apart, Unkeepable, from_words, put_together
from tests.models.architectures import build
from tests.support.small_models import small_llama

# One of each kind of cache that models of mlx-lm have.
MODELS = [
    "llama", "gpt_oss", "gemma3n", "llama4", "deepseek_v32", "deepseek_v41", "qwen3_5",
    "qwen3_next", "kimi_linear", "nemotron-nas", "nemotron_h", "rwkv7", "mamba2", "longcat_flash",
    "minimax_m3_vl", "baichuan_m1",
]  # fmt: skip
FIRST, LENGTH = 70, 150  # tokens
TOKENS = [3 + i * i % 240 for i in range(LENGTH + 8)]


def run(model, caches: list, start: int, end: int) -> mx.array:
    logits = model(mx.array([TOKENS[start:end]]), cache=caches)
    mx.eval(logits, [cache.state for cache in caches])
    return logits


def keep(folder: Path, caches: list, name: str, base: str, start: int, length: int) -> Apart:
    apart = Apart(caches, start, length)
    part = Part("m", name, base, start, length, 0, tuple(apart.stored), apart.caches)
    write_part(folder, part, b"", apart.arrays(), lambda size: None)
    return apart


def restore(folder: Path, fresh: list, said: list, *spans: Span) -> list:
    read = read_arrays(folder, "m", spans, lambda size: None)
    arrays = [from_words(*one) for one in read]
    return put_together(fresh, said, arrays, spans[-1].end)


def check_through_disk(folder: Path, model) -> None:
    """In two files, the second based on the first."""
    caches = make_prompt_cache(model)
    run(model, caches, 0, FIRST)
    keep(folder, copy.deepcopy(caches), "a", "", 0, FIRST)
    run(model, caches, FIRST, LENGTH)
    said = keep(folder, caches, "b", "a", FIRST, LENGTH).caches
    spans = Span("a", 0, FIRST), Span("b", FIRST, LENGTH)
    back = restore(folder, make_prompt_cache(model), said, *spans)
    for at in range(LENGTH, LENGTH + 8):
        mine, its = (run(model, one, at, at + 1) for one in (back, caches))
        assert mx.array_equal(mine, its), f"token {at - LENGTH}"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_on_from_disk_as_from_memory(tmp_path, name):
    check_through_disk(tmp_path, build(name))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_caches_of_two_bytes_a_number_are_no_other_case(tmp_path, dtype):
    model = build("llama")
    model.set_dtype(dtype)
    check_through_disk(tmp_path, model)


def test_quantized_caches_are_kept_from_a_token_on(tmp_path):
    key = mx.random.normal((1, 2, LENGTH, 64), key=mx.random.key(1))
    cache = QuantizedKVCache(group_size=32, bits=8)
    cache.update_and_fetch(key[..., :FIRST, :], key[..., :FIRST, :])
    keep(tmp_path, [copy.deepcopy(cache)], "a", "", 0, FIRST)
    cache.update_and_fetch(key[..., FIRST:, :], key[..., FIRST:, :])
    said = keep(tmp_path, [cache], "b", "a", FIRST, LENGTH).caches
    spans = Span("a", 0, FIRST), Span("b", FIRST, LENGTH)
    (back,) = restore(tmp_path, [QuantizedKVCache()], said, *spans)
    assert (back.bits, back.group_size, back.offset) == (8, 32, LENGTH)
    mine, its = back.keys_and_values(), cache.keys_and_values()
    for ours, theirs in zip((*mine[0], *mine[1]), (*its[0], *its[1]), strict=True):
        assert mx.array_equal(ours, theirs)


def test_a_part_of_a_file_serves_a_shorter_text(tmp_path):
    model = small_llama()
    caches, shorter = make_prompt_cache(model), make_prompt_cache(model)
    tokens = mx.array([[token % 64 for token in TOKENS]])
    for cache, length in ((caches, LENGTH), (shorter, FIRST)):
        mx.eval(model(tokens[:, :length], cache=cache))
    said = keep(tmp_path, caches, "a", "", 0, LENGTH).caches
    back = restore(tmp_path, make_prompt_cache(model), said, Span("a", 0, FIRST))
    mine, its = (model(tokens[:, FIRST : FIRST + 1], cache=one) for one in (back, shorter))
    assert mx.allclose(mine, its, atol=1e-5)


def test_caches_of_another_model_are_not_filled(tmp_path):
    caches = make_prompt_cache(build("rwkv7"))
    said = Apart(caches, 0, 1).caches
    with pytest.raises(Unkeepable, match="the model has a KVCache"):
        put_together(make_prompt_cache(small_llama(len(said))), said, [], 1)
    with pytest.raises(Unkeepable, match="caches, the model has 1"):
        put_together([QuantizedKVCache()], said * 2, [], 1)


def test_what_nobody_knows_how_to_keep_is_refused():
    class Odd(QuantizedKVCache):
        def __init__(self):
            super().__init__()
            self.thing = object()

    with pytest.raises(Unkeepable, match="object in a cache"):
        Apart([Odd()], 0, 1)
