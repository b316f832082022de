"""A row's own caches over steps with drafts, where some of them cannot be cut.

Used by decoding.py, on the main thread of every rank. Of keys and values, windows included, the
last tokens of a step are cut off again. What does not lie token by token (recurrent states, pools)
is kept as it was before the step; where a draft was wrong it is put back, and the tokens that were
right are owed: the next step of the row computes them once more, before its own. That costs places
of a step and no step, until so many are owed that a step has to do without drafts.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm.models.cache import CacheList, RotatingKVCache

from server.engine.batch_caches import Caches, snapshot
from server.engine.prefix_store import leaves
from server.engine.quantised_kv import GROWN
from server.engine.row import Row
from server.engine.rows_apart import is_unused

OWED_MOST = 16  # tokens, with which a step may have drafts

Compute = Callable[[Sequence[int], Caches], None]  # puts tokens into a row's caches


def begin(row: Row, token: int, drafts: Sequence[int]) -> list[int]:
    """What a step computes for a row: what it owes, its last token, and its drafts."""
    text = [*_last(row, row.owing), token, *drafts]
    row.owing = 0
    row.before, row.ran = (_kept(row.caches), len(text)) if drafts else (None, 0)
    return text


def settle(row: Row, wrong: int) -> None:
    """So many drafts of the step were."""
    if wrong:
        row.caches, row.owing = _gone_back(row, row.caches, wrong)
    row.before, row.ran = None, 0


def bears(row: Row) -> bool:
    """Whether it may have drafts."""
    return row.owing <= OWED_MOST


def catch_up(row: Row, compute: Compute) -> None:
    """Nothing is owed any more."""
    if row.owing:
        compute(_last(row, row.owing), row.caches)
        row.owing = 0


def copied(row: Row, beyond: int, compute: Compute) -> Caches:
    """A copy of its caches with its tokens in them and no others. beyond: the drafts of the step
    that runs, of which nobody knows yet which are right."""
    caches, owing = snapshot(row.caches), row.owing
    if beyond:
        caches, owing = _gone_back(row, caches, beyond)
    if owing:
        compute(_last(row, owing), caches)
    return caches


def _last(row: Row, count: int) -> list[int]:
    return row.tokens[len(row.tokens) - count :]


def _gone_back(row: Row, caches: Caches, tokens: int) -> tuple[Caches, int]:
    """These caches of a row without the last tokens of the step that it has begun, and how many
    of those before them are owed now."""
    if all(_can_be_cut(cache) for cache in leaves(caches)):
        for cache in leaves(caches):
            _cut(cache, tokens)
        return caches, 0
    back = zip(caches, row.before, strict=True)
    return [_put_back(cache, before, row.ran) for cache, before in back], row.ran - tokens


def _kept(caches: Caches) -> list:
    """What is needed of a row's caches to go back: of those that cannot be cut, a copy."""
    return [_kept_of(cache) for cache in caches]


def _kept_of(cache: Any) -> Any:
    if type(cache) is CacheList:
        return _kept(cache.caches)
    # A deep copy shares the arrays, which are never changed in place.
    return None if _can_be_cut(cache) else copy.deepcopy(cache)


def _put_back(cache: Any, before: Any, ran: int) -> Any:
    if type(cache) is CacheList:
        inner = zip(cache.caches, before, strict=True)
        return CacheList(*(_put_back(one, its, ran) for one, its in inner))
    if before is None:
        _cut(cache, ran)
        return cache
    return copy.deepcopy(before)


def _can_be_cut(cache: Any) -> bool:
    """Right after a step of several tokens."""
    return type(cache) in GROWN or type(cache) is RotatingKVCache


def _cut(cache: Any, tokens: int) -> None:
    if is_unused(cache):
        return
    cache.trim(tokens)
    if type(cache) is RotatingKVCache:
        # With several tokens it grows beyond its window, so that the first of them sees all of
        # that: none has been pushed out for those that are cut. They are its last columns.
        stay = cache.keys.shape[2] - tokens
        cache.keys, cache.values = cache.keys[..., :stay, :], cache.values[..., :stay, :]
