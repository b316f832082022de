"""How a model's rows are computed, so that none depends on its neighbours.

Used by the engine, on the main thread of every rank. Prompts of different length that are computed
together are padded, and rows share arrays. Some architectures see the padding (states that run
through it), or have caches or masks that know one row alone. startup/batching.py finds out at each
start what a model bears.
"""

from dataclasses import dataclass
from typing import Any

from server.engine.quantised_kv import Quantised


@dataclass(frozen=True)
class Ways:
    """prompts_apart: each prompt by itself, in a chunk that is shared otherwise. rows_apart: so do
    decoding rows. shelves: rows of unlike length have keys and values in arrays of their own; else
    they are in mlx-lm's caches of a batch, all as long as the longest. by_shelf: a layer's
    attention is called once for each of these arrays. whole: prompts are cut in full chunks
    whatever else there is to do, as where they are cut can be seen in the answer; so no prefix is
    reused. latent: keys of prompts that share a pass are put into one array for it, so only those
    share one that have come about as far. unused: layers that have a cache and never fill it.
    quantised: what of keys and values is kept in fewer bits; None: nothing. unfit: why nothing is,
    though it was asked for."""

    prompts_apart: bool = False
    rows_apart: bool = False
    shelves: bool = False
    by_shelf: bool = False
    whole: bool = False
    latent: bool = False
    unused: frozenset[int] = frozenset()
    quantised: Quantised | None = None
    unfit: str = ""

    def __str__(self) -> str:
        if self.rows_apart:
            how = "a row at a time"
        else:
            how = "prompts one at a time" if self.prompts_apart else "together"
            if self.by_shelf:
                how += ", attention by length"
            if not self.shelves:
                how += ", all as long as the longest"
        return f"{how}, in whole chunks" if self.whole else how

    @property
    def precision(self) -> str:
        """Of keys and values, in words."""
        if self.quantised is not None:
            return str(self.quantised)
        return f"full: {self.unfit}" if self.unfit else "full"

    @property
    def slower(self) -> bool:
        """Whether they are computed otherwise than all together and each in its own length."""
        return self.prompts_apart or self.by_shelf or self.whole or not self.shelves

    @property
    def bear_widths(self) -> bool:
        """Whether rows of a step may have unlike numbers of tokens, as prompts of a chunk do."""
        return self.shelves and not self.prompts_apart and (self.by_shelf or not self.latent)

    @property
    def apart(self) -> bool:
        """Whether a row takes no more memory than is its own."""
        return self.shelves or self.rows_apart


TOGETHER = Ways()


def is_unused(cache: Any) -> bool:
    """Of one layer and one row: whether nothing has been put into it."""
    return hasattr(cache, "empty") and cache.empty()
