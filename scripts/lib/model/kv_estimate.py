"""What the KV cache would take on each rank, measured on a model that has no weights.

The model is built from its config.json, split as it would be, and its caches are looked at as the
server does when it starts (server/engine/kv_memory.py). Nothing is computed, so a model of any size
takes a second and some megabytes. Needs mlx and mlx-lm; one process of its own, as the collectives
are left out in all of it.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from server.engine.attention import put_attention
from server.engine.kv_memory import RowBytes, added_up, cache_bytes
from server.engine.quantised_kv import Quantised, fits
from server.startup.arrangement import GENERIC_TENSOR, TENSOR, Arrangement
from server.startup.generic_tensor import split_layers
from server.startup.tensor_sizes import sizes_of

FLOATS = {"float32": mx.float32, "float16": mx.float16}  # else bfloat16


class Unknown(Exception):
    """The model cannot be built from its config alone; the text says why."""


class FirstRank:
    """A group of which this is the first rank, for splitting without computing."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return 0


def rank_rows(
    config: dict[str, Any], name: str, ranks: int, how: Arrangement, bits: int = 0
) -> list[RowBytes]:
    """What a row takes on each rank. name: of mlx-lm's architecture. bits: of keys and values,
    where the model bears it; 0: all. Raises Unknown."""
    try:
        model = build(config, name)
        if how.layers:
            return _by_layers(_cache_bytes(model, bits), how.layers)
        with _without_collectives():
            group = FirstRank(ranks)
            if how.kind == TENSOR:
                model.shard(group)
            elif how.kind == GENERIC_TENSOR:
                split_layers(model, sizes_of(config), group)
            return [added_up(_cache_bytes(model, bits))] * ranks
    except Exception as error:  # architectures raise what they like for what a config lacks
        raise Unknown(f"{type(error).__name__}: {error}"[:300]) from error


def _cache_bytes(model: nn.Module, bits: int) -> list[RowBytes]:
    if not bits:
        return cache_bytes(model)
    put_attention(model)
    layers, _ = fits(model, bits)
    return cache_bytes(model, Quantised(bits, 0, layers))


def build(config: dict[str, Any], name: str) -> nn.Module:
    """The model, of random numbers that nobody computes. Raises whatever it does."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    model = module.Model(module.ModelArgs.from_dict(config))
    text = config.get("text_config") or {}
    names = (part.get(key) for part in (config, text) for key in ("dtype", "torch_dtype"))
    model.set_dtype(FLOATS.get(next(filter(None, names), ""), mx.bfloat16))
    return model


def _by_layers(caches: list[RowBytes], layers: tuple[int, ...]) -> list[RowBytes]:
    """Each rank's part in a pipeline. The last rank has the first layers."""
    count = sum(layers)
    if len(caches) != count:  # layers without one, or all in one: as if they were alike
        whole = added_up(caches)
        return [RowBytes(*(-(-size * its // count) for size in astuple(whole))) for its in layers]
    ends = [sum(layers[rank:]) for rank in range(len(layers))]
    return [added_up(caches[end - its : end]) for end, its in zip(ends, layers, strict=True)]


@contextmanager
def _without_collectives() -> Iterator[None]:
    """Sums are those of one rank, as nobody looks at a value."""
    names = ("all_sum", "all_gather")
    own = {name: getattr(mx.distributed, name) for name in names}

    def whole(array: mx.array, **group: Any) -> mx.array:
        return array

    def gathered(array: mx.array, *, group: Any, **options: Any) -> mx.array:
        return mx.concatenate([array] * group.size())

    try:
        mx.distributed.all_sum, mx.distributed.all_gather = whole, gathered
        yield
    finally:
        for name, function in own.items():
            setattr(mx.distributed, name, function)
