"""A rank's shard of the prefixes that all ranks keep: caches by entry number.

Used by the engine, on the main thread of every rank, as rank 0's messages say; it decides nothing.
The caches are mlx-lm's own, of one row each.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, make_prompt_cache

from server.engine.quantised_kv import GROWN, arrays_of, pair_of
from server.engine.rows_apart import TOGETHER, Ways, is_unused
from server.protocol.failures import Refused

# What a model's caches allow, least first.
NO_REUSE, REUSE_WHOLE, REUSE_CUT = 0, 1, 2


def reuse_kind(model: Any, ways: Ways = TOGETHER) -> int:
    """REUSE_CUT: a cache can be cut at any token. REUSE_WHOLE: only taken as it was kept.
    NO_REUSE: its layers do not go back into a batch, or what follows would be seen to be cut."""
    caches = make_prompt_cache(model)
    if ways.whole:
        return NO_REUSE
    if can_be_cut(caches):
        return REUSE_CUT
    batched = all(hasattr(cache, "merge") for cache in caches)
    return REUSE_WHOLE if batched or ways.rows_apart else NO_REUSE


class PrefixStore:
    """Entries of one rank. A cache is a list with one mlx-lm cache a layer.

    Raises Refused, before anything is changed, for an entry that is not there or not so long.
    """

    def __init__(self) -> None:
        self._entries: dict[int, list] = {}
        self._lengths: dict[int, int] = {}  # in tokens
        self._fresh: list[list] = []  # caches that MLX does not have yet

    def put(self, number: int, caches: list, length: int) -> None:
        """Keeps a snapshot of length tokens, of which nothing is computed yet: that may take a
        decode step that has not begun."""
        self._entries[number] = caches
        self._lengths[number] = length
        self._fresh.append(caches)

    def compute(self) -> None:
        """Starts to compute what was put or cut. Until then that holds on to what it is from."""
        if self._fresh:
            mx.async_eval([cache.state for caches in self._fresh for cache in caches])
            self._fresh = []

    def check(self, number: int, length: int) -> None:
        """Whether an entry has so many tokens. A cache that is cut to more than it holds would go
        on from what was never computed, and nobody would notice."""
        held = self._lengths.get(number)
        if held is None:
            raise Refused(f"no prefix is kept as entry {number}")
        if not 0 < length <= held:
            raise Refused(f"entry {number} has {held} tokens, not {length}")
        if length < held and not can_be_cut(self._entries[number]):
            raise Refused(f"entry {number} can only be used whole: {held} tokens, not {length}")

    def take(self, number: int, length: int) -> list:
        """A copy of an entry's first tokens, to go on from. The arrays are shared until written."""
        self.check(number, length)
        caches = copy.deepcopy(self._entries[number])
        _cut(caches, length)
        return caches

    def cut(self, number: int, length: int) -> None:
        """Gives up all but the first tokens of an entry."""
        self.check(number, length)
        caches = self._entries[number]
        self._lengths[number] = length
        _cut(caches, length)
        for cache in leaves(caches):
            if is_unused(cache):
                continue
            # Contiguous, so that the memory of the rest is free.
            kept = [mx.contiguous(array[..., :length, :]) for array in arrays_of(cache)]
            cache.keys, cache.values = pair_of(kept)
        # With what was put: to wait for each of thousands would hold up every rank.
        self._fresh.append(caches)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forgets entries; unknown numbers are ignored, as a keeping may have been cancelled."""
        for number in numbers:
            self._entries.pop(number, None)
            self._lengths.pop(number, None)

    def lengths(self) -> dict[int, int]:
        """The entries' tokens, by number."""
        return dict(self._lengths)

    def __len__(self) -> int:
        return len(self._entries)


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """The caches of all layers, one after another; a layer may have a list of them."""
    for cache in caches:
        if type(cache) is CacheList:
            yield from leaves(cache.caches)
        else:
            yield cache


def can_be_cut(caches: Iterable[Any]) -> bool:
    """Whether caches serve every prompt that begins as theirs did: they hold token by token."""
    return all(type(cache) in GROWN for cache in leaves(caches))


def _cut(caches: list, length: int) -> None:
    for cache in leaves(caches):
        # Others are only ever taken whole.
        if type(cache) in GROWN and not is_unused(cache):
            cache.trim(cache.offset - length)
