"""KV memory is admitted, not discovered: how many tokens' worth of cache all ranks can hold.

The budget is counted in tokens, because that is what rank 0 can reckon with: each rank measures
what a token of this model's real cache costs it and what memory it has left after the weights,
and the smallest result counts for all. measure_capacity runs on the main thread of every rank
with the model; the rest imports no mlx.

mlx-lm keeps a batch as one dense array a layer, [rows, heads, longest, head size], grown in steps
of 256 tokens. So a batch costs rows times its longest row, however short the others are.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = 256  # tokens by which mlx-lm's caches grow
SPARE_SHARE = 0.7  # of the memory left after the weights; the rest is for activations and copies


@dataclass(frozen=True)
class KvBudget:
    """capacity: tokens that all ranks can hold; token_bytes: what one costs this rank. reach:
    tokens that a lone request may have."""

    capacity: int
    token_bytes: int = 0

    @property
    def reach(self) -> int:
        """The longest prompt plus answer that fits when nothing else runs."""
        return self.capacity // STEP * STEP

    def cost(self, lengths: Iterable[int]) -> int:
        """Tokens' worth of memory that a batch with rows of these lengths takes."""
        lengths = list(lengths)
        longest = max(lengths, default=0)
        return len(lengths) * (-(-longest // STEP) * STEP)

    def holds(self, lengths: Iterable[int]) -> bool:
        """Whether such a batch fits. A lone row always does: it was refused otherwise."""
        lengths = list(lengths)
        return len(lengths) <= 1 or self.cost(lengths) <= self.capacity


@dataclass(frozen=True)
class Measured:
    """One rank's: capacity in tokens; bytes that a token costs; what a row costs beside its
    tokens (states of fixed size), in tokens."""

    capacity: int
    token_bytes: int
    row_cost: int


def measure_capacity(model: Any, budget_gb: float | None, ranks_here: int) -> Measured:
    """What this rank can hold.

    budget_gb: the operator's word (10^9 bytes a rank); None: what is left of the memory.
    ranks_here: ranks that share this machine's memory. Every rank must call it: the model's
    forward passes hold collectives.
    """
    short, long = (_cache_bytes(model, tokens) for tokens in (1, STEP + 1))
    # Between two sizes, so that fixed parts drop out.
    per_token = max(1, (long - short) // STEP)
    budget = budget_gb * 1e9 if budget_gb else spare_memory() * SPARE_SHARE / ranks_here
    return Measured(
        int(min(budget / per_token, 2**31 - 1)),
        per_token,
        max(0, short - STEP * per_token) // per_token,
    )


def _cache_bytes(model: Any, tokens: int) -> int:
    """Of the model's own cache, with so many tokens in it."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    model(mx.zeros((1, tokens), dtype=mx.int32), cache=cache)
    mx.eval([layer.state for layer in cache])  # as prefill does; the head is not needed
    return sum(layer.nbytes for layer in cache)


def spare_memory() -> int:
    """Bytes that this machine can still give to arrays."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.gpu:
        info = mx.device_info()
        limit = info.get("max_recommended_working_set_size") or info["memory_size"] * 3 // 4
        return max(0, int(limit) - mx.get_active_memory())
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
