"""KV memory is admitted, not discovered: how many tokens' worth of cache all ranks can hold.

Rank 0 reckons in tokens. Each rank says what memory it has for caches and what a row takes in it
(engine/kv_memory); the ranks' parts may be unequal, and the one that has the least room counts.
Imports no mlx.

mlx-lm keeps a batch as one dense array a layer, [rows, heads, longest, head size], grown in steps
of 256 tokens. So a batch costs rows times its longest row, however short the others are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

STEP = 256  # tokens by which mlx-lm's caches grow
MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class RankMemory:
    """One rank's, in bytes. budget: for caches; fixed: of each row, for windows and states; token:
    of each token of a row."""

    budget: int
    fixed: int
    token: int


@dataclass(frozen=True)
class KvBudget:
    """capacity: tokens that all ranks can hold; row_cost: what a row costs beside its tokens, in
    tokens. reach: tokens that a lone request may have."""

    capacity: int
    row_cost: int = 0

    @property
    def reach(self) -> int:
        """The longest prompt plus answer that fits when nothing else runs."""
        return max(0, self.capacity - self.row_cost) // STEP * STEP

    def cost(self, lengths: Iterable[int]) -> int:
        """Tokens' worth of memory that a batch with rows of these lengths takes."""
        lengths = list(lengths)
        longest = max(lengths, default=0)
        return len(lengths) * (self.row_cost + -(-longest // STEP) * STEP)

    def holds(self, lengths: Iterable[int]) -> bool:
        """Whether such a batch fits. A lone row always does: it was refused otherwise."""
        lengths = list(lengths)
        return len(lengths) <= 1 or self.cost(lengths) <= self.capacity


def shared_budget(ranks: Iterable[RankMemory]) -> KvBudget:
    """What all ranks can hold. A row that is reckoned to fit does on each of them."""
    ranks = list(ranks)
    if not all(rank.budget for rank in ranks):
        return KvBudget(0)
    # Parts of the budget. On some ranks of a pipeline nothing may grow, on others nothing but that.
    a_token = max(Fraction(rank.token, rank.budget) for rank in ranks)
    a_token = max(a_token, Fraction(1, MOST_TOKENS))
    a_row = max(Fraction(rank.fixed, rank.budget) for rank in ranks)
    return KvBudget(int(1 / a_token), ceil(a_row / a_token))
