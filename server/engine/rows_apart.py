"""Rows that are computed one after another, for models that mix up the rows of a batch.

Used by the engine, on the main thread of every rank. In mlx-lm's batches prompts of different
length are padded, and rows are of one array. Some architectures see the padding (states that run
through it), or have caches or masks that know one row alone. startup/batching.py finds out at each
start what a model bears; for what it does not, the layers' caches are RowCaches here.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ways:
    """How a model's rows are computed, so that none depends on its neighbours. prompts_apart: each
    prompt by itself, in a chunk that is shared otherwise. rows_apart: so do decoding rows. whole:
    prompts are cut in full chunks whatever else there is to do, as where they are cut can be seen
    in the answer; so no prefix is reused. unused: layers that have a cache and never fill it."""

    prompts_apart: bool = False
    rows_apart: bool = False
    whole: bool = False
    unused: frozenset[int] = frozenset()

    def __str__(self) -> str:
        if self.rows_apart:
            how = "a row at a time"
        else:
            how = "prompts one at a time" if self.prompts_apart else "together"
        return f"{how}, in whole chunks" if self.whole else how

    @property
    def slower(self) -> bool:
        """Whether they are computed otherwise than all together."""
        return self.prompts_apart or self.whole

    def wrap(self, caches: Sequence[Any]) -> list[Any]:
        """One prompt's caches, one a layer, as a batch of prompts takes them in."""
        return [
            RowCache([cache]) if self.prompts_apart or layer in self.unused else cache
            for layer, cache in enumerate(caches)
        ]


TOGETHER = Ways()


class RowCache:
    """One layer's caches of some rows, an mlx-lm cache of one row for each. Where mlx-lm's batches
    expect a cache of a batch, it can stand instead."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = list(rows)

    @classmethod
    def merge(cls, caches: Sequence["RowCache"]) -> "RowCache":
        return cls([row for cache in caches for row in cache.rows])

    def extend(self, other: "RowCache") -> None:
        self.rows += other.rows

    def filter(self, keep: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in keep]

    def extract(self, place: int) -> Any:
        """A copy of one row's cache; it shares the arrays, which are never changed in place."""
        return copy.deepcopy(self.rows[place])

    def prepare(self, **padding: Any) -> None:
        """Nothing here is padded."""

    def finalize(self) -> None:
        """Nothing here was padded."""

    def together(self) -> Any:
        """All rows in mlx-lm's cache of a batch; unused ones stay as they are."""
        return self if is_unused(self.rows[0]) else self.rows[0].merge(self.rows)

    @property
    def state(self) -> list:
        return [row.state for row in self.rows]

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


def are_apart(caches: Sequence[Any]) -> bool:
    """Whether a batch's caches, one a layer, hold their rows apart."""
    return bool(caches) and all(type(cache) is RowCache for cache in caches)


def is_unused(cache: Any) -> bool:
    """Of one layer and one row: whether nothing has been put into it."""
    return hasattr(cache, "empty") and cache.empty()


def rows_of(caches: Sequence[RowCache]) -> list[list[Any]]:
    """The rows' own caches, each with one a layer."""
    return [list(row) for row in zip(*(cache.rows for cache in caches), strict=True)]
