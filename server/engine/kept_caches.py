"""Caches of one row, taken apart into arrays that another thread may read, and put together again.

Used by prefix_disk.py, on the main thread of every rank. What is kept of a cache is what a copy of
it has: its attributes. A cache that holds all tokens' keys and values is kept from a token on; all
others (windows, states) whole.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from server.disk.entry_file import Stored
from server.engine.quantised_kv import GROWN

PLAIN = (bool, int, float, str)
WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}  # by bytes


class Unkeepable(ValueError):
    """A cache has something that cannot be kept. The same on every rank."""


class Apart:
    """What caches have for the tokens from start to length. caches: JSON, in which arrays stand as
    their numbers. Has the arrays computed, if they are not."""

    def __init__(self, caches: list, start: int, length: int) -> None:
        self._start, self._length = start, length
        self.stored: list[Stored] = []
        self._words: list[mx.array] = []
        self.caches = [self._cache(cache, self._words) for cache in caches]
        mx.async_eval(self._words)

    def arrays(self) -> list[np.ndarray]:
        """Whole ones, in words, for any thread. Waits for them if they are not computed yet."""
        # Views: what lies in memory is neither copied nor changed as long as they are held.
        return [np.asarray(memoryview(array)) for array in self._words]

    def _cache(self, cache: Any, words: list[mx.array]) -> dict:
        grows = type(cache) in GROWN and not cache.empty() and cache.offset == self._length
        has = {
            name: self._write(value, grows and name in ("keys", "values"), words)
            for name, value in vars(cache).items()
        }
        return {"cache": type(cache).__name__, "grows": grows, "has": has}

    def _write(self, value: Any, grows: bool, words: list[mx.array]) -> Any:
        if value is None or type(value) in PLAIN:
            return value
        if isinstance(value, mx.array):
            shape = value.shape
            if grows:
                shape = (*shape[:-2], self._length - self._start, shape[-1])
            words.append(value.view(WORDS[value.dtype.size]))
            kinds = [str(one.dtype).rpartition(".")[2] for one in (value, words[-1])]
            self.stored.append(Stored(*kinds, shape, grows))
            return {"array": len(words) - 1}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [self._write(one, grows, words) for one in value]}
        if hasattr(type(value), "nbytes") and hasattr(value, "__dict__"):
            return self._cache(value, words)
        raise Unkeepable(f"{type(value).__name__} in a cache of this model")


def put_together(fresh: list, said: list, arrays: list[mx.array], length: int) -> list:
    """Fills caches that the model has just made. Raises Unkeepable if they are of other kinds."""
    if len(fresh) != len(said):
        raise Unkeepable(f"{len(said)} caches, the model has {len(fresh)}")
    fresh = list(map(_of_kind, fresh, said))
    for cache, one in zip(fresh, said, strict=True):
        _read_cache(cache, one, arrays, length)
    return fresh


def _of_kind(cache: Any, said: dict) -> Any:
    """The model makes whole ones; rows that are long enough get the other kind."""
    quantised = said.get("cache") == QuantizedKVCache.__name__
    return QuantizedKVCache() if quantised and type(cache) is KVCache else cache


def from_words(stored: Stored, words: np.ndarray) -> mx.array:
    """Copies."""
    dtype = mx.bool_ if stored.dtype == "bool" else getattr(mx, stored.dtype)
    return mx.array(words).view(dtype)


def _read_cache(cache: Any, said: dict, arrays: list[mx.array], length: int) -> Any:
    if type(cache).__name__ != said.get("cache"):
        raise Unkeepable(f"a {said.get('cache')}, the model has a {type(cache).__name__}")
    mine = vars(cache)
    for name, value in said["has"].items():
        setattr(cache, name, _read(mine.get(name), value, arrays, length))
    if said["grows"]:
        cache.offset = length
    return cache


def _read(mine: Any, said: Any, arrays: list[mx.array], length: int) -> Any:
    if not isinstance(said, dict):
        return said
    if "array" in said:
        return arrays[said["array"]]
    if "cache" in said:
        return _read_cache(mine, said, arrays, length)
    ((kind, items),) = said.items()
    inner = [None] * len(items)
    if isinstance(mine, list | tuple) and len(mine) == len(items):
        inner = mine
    values = [_read(one, item, arrays, length) for one, item in zip(inner, items, strict=True)]
    return tuple(values) if kind == "tuple" else values
