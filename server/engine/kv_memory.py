"""What a row's caches take, a fixed part and one that grows, and what memory there is for them.

On every rank's main thread, with its shard of the model; and before a launch, with a model that was
built from its config.json and has no weights. Nothing is computed: what is made here is arrays'
shapes, so a window of any length costs no more than another. All who say how much fits say it by
this: admission, /cluster, and the check before a launch.

A window's layers hold no more than the window, a recurrent state is as large after one token as
after a million. Counted as if they grew, they would make a long context look several times as
dear as it is. So growth is looked at beyond every window.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from server.engine.quantised_kv import GROUP, Quantised

MORE = 512  # tokens, with which every cache that grows has grown: mlx-lm's do by 256
WINDOWS = ("max_size", "chunk_size", "window_size")  # what caches call their own
SPAN = 2 * MORE  # tokens between two sizes of a cache that only its model can fill


SPARE_SHARE = 0.7  # of the memory left after the weights; the rest is for activations and copies


@dataclass(frozen=True)
class RowBytes:
    """Of one rank. fixed: of a row whose windows are full; token: of each token beyond them. whole:
    of one in a row that is too short for fewer bits; 0: the same."""

    fixed: int
    token: int
    whole: int = 0


def kv_memory(budget_gb: float | None, ranks_here: int) -> int:
    """Bytes that this rank may fill. budget_gb: the operator's word (10^9 bytes a rank); None: what
    is left of the memory. ranks_here: ranks that share this machine's memory."""
    return int(budget_gb * 1e9 if budget_gb else spare_memory() * SPARE_SHARE / ranks_here)


def spare_memory() -> int:
    """Bytes that this machine can still give to arrays."""
    if mx.default_device().type == mx.DeviceType.gpu:
        info = mx.device_info()
        limit = info.get("max_recommended_working_set_size") or info["memory_size"] * 3 // 4
        return max(0, int(limit) - mx.get_active_memory())
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def row_bytes(model: Any, quantised: Quantised | None = None) -> RowBytes:
    """What a row takes in this model's own caches. quantised: as Ways have it."""
    return added_up(cache_bytes(model, quantised))


def added_up(parts: Iterable[RowBytes]) -> RowBytes:
    """The sum of them."""
    parts = list(parts)
    whole = sum(part.whole or part.token for part in parts) if any(p.whole for p in parts) else 0
    return RowBytes(sum(part.fixed for part in parts), sum(part.token for part in parts), whole)


def cache_bytes(model: Any, quantised: Quantised | None = None) -> list[RowBytes]:
    """Of each of its caches, which most models have one of for each layer; of all in one where only
    the model can fill them."""
    caches = make_prompt_cache(model)
    model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
    found = []
    layers = quantised.layers if quantised is not None else frozenset()
    for i, cache in enumerate(caches):
        if i in layers:
            sizes = {bits: _token_sizes(cache, bits) for bits in (0, quantised.bits)}
            found.append(RowBytes(0, sizes[quantised.bits], sizes[0]))
            continue
        parts = list(map(_leaf_bytes, _leaves([cache])))
        if None in parts:
            window = max(map(_window, _leaves(caches)), default=0)
            return [_by_the_model(model, window)]
        found.append(added_up(parts))
    return found


def _leaf_bytes(leaf: Any) -> RowBytes | None:
    """None for a cache of a kind that only its model can fill."""
    token = _token_sizes(leaf)
    if token is not None:
        return RowBytes(0, token) if _grows(leaf) else RowBytes(leaf.nbytes, 0)
    if leaf.nbytes and not hasattr(leaf, "cache"):  # no plain list of states
        return None
    return RowBytes(leaf.nbytes, 0)


def _leaves(caches: Any) -> Iterator[Any]:
    """The caches of all layers; a layer may have a list of them."""
    for cache in caches:
        inner = getattr(cache, "caches", None)
        yield from _leaves(inner) if inner is not None else (cache,)


def _window(leaf: Any) -> int:
    """Tokens that a cache keeps at most, as far as it says."""
    sizes = (getattr(leaf, name, None) for name in WINDOWS)
    return max((size for size in sizes if isinstance(size, int)), default=0)


def _token_sizes(leaf: Any, bits: int = 0) -> int | None:
    """Bytes of one token's keys and values, in so many bits or as they are; None for a cache of
    another kind."""
    pair = getattr(leaf, "keys", None), getattr(leaf, "values", None)
    if not all(isinstance(array, mx.array) and array.ndim == 4 for array in pair):
        return None
    return sum(array.shape[1] * _size(array, bits) for array in pair)


def _size(array: mx.array, bits: int) -> int:
    """Bytes of one token and head."""
    values = array.shape[3]
    if not bits:
        return values * array.itemsize
    return values * bits // 8 + 2 * values // GROUP * array.itemsize  # with a scale and a bias


def _grows(leaf: Any) -> bool:
    """Whether it goes on growing when it is full. Fills it, so that its own bytes say how much a
    cache that does not takes."""
    sizes = []
    # A prompt leaves more than a window; the next token takes it down to that.
    for tokens in (_window(leaf) + MORE, 1, MORE, 1):
        if hasattr(leaf, "maybe_trim_front"):
            leaf.maybe_trim_front()
        leaf.update_and_fetch(*(_more(array, tokens) for array in (leaf.keys, leaf.values)))
        sizes.append(leaf.nbytes)
    return sizes[3] > sizes[1]


def _more(array: mx.array, tokens: int) -> mx.array:
    return mx.zeros((*array.shape[:2], tokens, array.shape[3]), dtype=array.dtype)


def _by_the_model(model: Any, window: int) -> RowBytes:
    """By passes of the model, of which nothing is computed: for caches that only it can fill."""
    short, long = (_filled(model, window + more) for more in (MORE, MORE + SPAN))
    token = max(0, long - short) // SPAN
    return RowBytes(max(0, short - (window + MORE + 1) * token), token)


def _filled(model: Any, tokens: int) -> int:
    caches = make_prompt_cache(model)
    for length in (tokens, 1):
        model(mx.zeros((1, length), dtype=mx.int32), cache=caches)
    return sum(cache.nbytes for cache in caches)
