"""Keys and values in fewer bits (KV_BITS), in mlx-lm's QuantizedKVCache: which layers bear it, from
which token of a row on, and attention over them.

Used by the engine and by the models, on the main thread of every rank. A row's caches are
quantised when it has just so many tokens, however its prompt is cut and whoever is computed beside
it: so each token sees the same numbers in any company.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

GROUP = 64  # values of a token and head that share a scale and a bias, as in mlx-lm
CANNOT = "its attention takes none:"  # begins a reason that counts for all ranks
FEW = 8  # new tokens, up to which scores are computed from the quantised keys
GROWN = (KVCache, QuantizedKVCache)  # what holds all tokens of a row

Arrays = tuple[mx.array, ...]  # keys and values: of each one array, or words, scales and biases


@dataclass(frozen=True)
class Quantised:
    """bits: of each value, 8 or 4. start: tokens of a row from which on it is so. layers: those of
    this rank that are; the others keep what they have."""

    bits: int
    start: int
    layers: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"{self.bits} bits" + (f" from {self.start} tokens on" if self.start else "")

    def within(self, length: int, size: int) -> int:
        """How many of the next tokens may be computed at once."""
        return size if length >= self.start else min(size, self.start - length)

    def convert(self, caches: Sequence[Any]) -> list[Any]:
        """A row's caches as they are for its next token: quantised where that is due."""
        return [
            self._convert(cache) if i in self.layers else cache for i, cache in enumerate(caches)
        ]

    def _convert(self, cache: Any) -> Any:
        if type(cache) is not KVCache or cache.offset < self.start:
            return cache
        if cache.empty():
            return QuantizedKVCache(GROUP, self.bits)
        return cache.to_quantized(GROUP, self.bits)


def next_caches(quantised: Quantised | None, caches: list[Any]) -> list[Any]:
    """A row's caches, as they are for its next token."""
    return caches if quantised is None else quantised.convert(caches)


def is_quantised(caches: Iterable[Any]) -> bool:
    """Whether any of a row's caches is."""
    return any(type(cache) is QuantizedKVCache for cache in caches)


def arrays_of(cache: KVCache | QuantizedKVCache) -> Arrays:
    """All of a row's cache, with the tokens on the last axis but one."""
    if type(cache) is QuantizedKVCache:
        return (*cache.keys, *cache.values)
    return cache.keys, cache.values


def pair_of(arrays: Sequence[mx.array]) -> tuple[Any, Any]:
    """Keys and values of these, as models and mlx-lm's caches have them."""
    if len(arrays) == 2:
        return arrays[0], arrays[1]
    return tuple(arrays[:3]), tuple(arrays[3:])


def flat(keys: Any, values: Any) -> Arrays:
    """The arrays of such a pair."""
    return (keys, values) if isinstance(keys, mx.array) else (*keys, *values)


def like(held: Sequence[mx.array], keys: mx.array, values: mx.array) -> Arrays:
    """New keys and values, as those are that are held."""
    if len(held) == 2:
        return keys, values
    bits = _bits(held)
    return tuple(part for new in (keys, values) for part in mx.quantize(new, GROUP, bits))


def filled(arrays: Sequence[mx.array], length: int) -> KVCache | QuantizedKVCache:
    """A row's cache of these."""
    cache = KVCache() if len(arrays) == 2 else QuantizedKVCache(GROUP, _bits(arrays))
    cache.keys, cache.values = pair_of(arrays)
    cache.offset = length
    return cache


def _bits(triple: Sequence[mx.array]) -> int:
    """Of each value: by the words and scales that a head's values have."""
    words, scales = triple[0], triple[1]
    return 32 * words.shape[-1] // (GROUP * scales.shape[-1])


def fits(model: Any, bits: int) -> tuple[frozenset[int], str]:
    """The layers whose keys and values can be quantised, and where the model takes none for such
    why. Nothing is computed. The model's attention goes through attention.attend() by then."""
    caches = make_prompt_cache(model)
    model(mx.zeros((1, 3), dtype=mx.int32), cache=caches)
    why = "no layer keeps keys and values of all tokens"
    layers = set()
    for i, cache in enumerate(caches):
        if type(cache) is KVCache and not cache.empty():
            reason = _against(cache.keys, cache.values)
            why = reason or why
            if not reason:
                layers.add(i)
    if not layers:
        return frozenset(), why
    found = Quantised(bits, 0, frozenset(layers))
    caches = found.convert(make_prompt_cache(model))
    try:
        for tokens in (3, 1):
            model(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)
    except Exception as error:  # architectures raise whatever it comes to
        return frozenset(), f"{CANNOT} {type(error).__name__}: {error}"[:200]
    return found.layers, ""


def _against(keys: mx.array, values: mx.array) -> str:
    if keys.shape[1] == values.shape[1] == 1 and keys.shape[3] != values.shape[3]:
        return "keys and values are one latent"
    odd = next((size for size in (keys.shape[3], values.shape[3]) if size % GROUP), 0)
    return f"a head has {odd} values, which {GROUP} does not divide" if odd else ""


def attend_quantised(
    queries: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Attention over quantised keys and values. queries: [B, heads, T, D]. Of many new tokens the
    scores would be larger than the keys: then these are made whole for a moment."""
    if sinks is not None:
        raise ValueError("attention sinks do not go with quantised keys")
    bits = _bits(keys)
    batch, heads, tokens, size = queries.shape
    if tokens > FEW:
        whole = (mx.dequantize(*part, group_size=GROUP, bits=bits) for part in (keys, values))
        return mx.fast.scaled_dot_product_attention(queries, *whole, scale=scale, mask=mask)
    groups, columns = keys[0].shape[1], keys[0].shape[2]
    repeats = heads // groups
    # The heads that share keys are rows of one product: so the keys are read once for all.
    asked = (queries * scale).reshape(batch, groups, repeats * tokens, size)
    scores = mx.quantized_matmul(asked, *keys, transpose=True, group_size=GROUP, bits=bits)
    scores = scores.reshape(batch, groups, repeats, tokens, columns)
    if isinstance(mask, str):
        mask = mx.arange(columns - tokens, columns)[:, None] >= mx.arange(columns)[None]
    if mask is not None:
        if mask.ndim == 4:  # [B, 1 or heads, T, columns]
            many = mask.shape[1] > 1
            mask = (
                mask.reshape(len(mask), groups, repeats, *mask.shape[2:]) if many else mask[:, None]
            )
        if mask.dtype == mx.bool_:
            scores = mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
        else:
            scores = scores + mask
    weights = mx.softmax(scores, axis=-1, precise=True)
    weights = weights.reshape(batch, groups, repeats * tokens, columns)
    out = mx.quantized_matmul(weights, *values, transpose=False, group_size=GROUP, bits=bits)
    return out.reshape(batch, heads, tokens, -1)
