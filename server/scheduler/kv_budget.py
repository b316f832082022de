"""KV memory is admitted, not discovered: how many tokens' worth of cache all ranks can hold.

Rank 0 reckons in tokens. Each rank says what memory it has for caches and what a row takes in it
(engine/kv_memory); the ranks' parts may be unequal, and the one that has the least room counts.
Imports no mlx.

A row costs what is its own, in steps of 256 tokens, by which caches grow; rows of like length lie
in one array, as long as the longest of them (protocol/row_lengths). Only where a model bears no
other than mlx-lm's caches of a batch, all rows cost as much as the longest. Where keys and values
are in fewer bits from a length on, a token is one of such a row, and shorter rows' cost more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from server.protocol.row_lengths import STEP, WHOLE, Precision, rectangles

MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class RankMemory:
    """One rank's, in bytes. budget: for caches; fixed: of each row, for windows and states; token:
    of each token of a row; whole: of one in a row that is too short for fewer bits, 0: the same."""

    budget: int
    fixed: int
    token: int
    whole: int = 0

    def of(self, tokens: int, length: int, precision: Precision) -> int:
        """What so many tokens of a text of that length take."""
        size = self.token if precision.is_long(length) else self.whole or self.token
        return self.fixed + size * tokens


@dataclass(frozen=True)
class KvBudget:
    """capacity: tokens that all ranks can hold; row_cost: what a row costs beside its tokens, in
    tokens. apart: whether unlike rows are. reach: tokens that a lone request may have. precision:
    what keys and values of short and long rows are kept in."""

    capacity: int
    row_cost: int = 0
    apart: bool = True
    precision: Precision = WHOLE

    @property
    def reach(self) -> int:
        """The longest prompt plus answer that fits when nothing else runs."""
        return self.precision.fits(max(0, self.capacity - self.row_cost)) // STEP * STEP

    def rest(self, wanted: int) -> int:
        """Tokens that are left for kept prefixes, where rows want so many."""
        return self.capacity - wanted

    def cost(self, lengths: Iterable[int]) -> int:
        """Tokens' worth of memory that a batch with rows of these lengths takes."""
        lengths = list(lengths)
        if not self.apart:
            return self._cost([(len(lengths), max(lengths, default=0))])
        long = [length for length in lengths if self.precision.is_long(length)]
        short = [length for length in lengths if not self.precision.is_long(length)]
        return self._cost([*rectangles(long), *rectangles(short)])

    def _cost(self, held: Iterable[tuple[int, int]]) -> int:
        """Of rectangles: rows, and tokens of the longest."""
        return sum(
            rows * (self.row_cost + self.precision.row_cost(-(-longest // STEP) * STEP))
            for rows, longest in held
        )

    def holds(self, lengths: Iterable[int]) -> bool:
        """Whether such a batch fits. A lone row always does: it was refused otherwise."""
        lengths = list(lengths)
        return len(lengths) <= 1 or self.cost(lengths) <= self.capacity


def shared_budget(ranks: Iterable[RankMemory], apart: bool = True, start: int = 0) -> KvBudget:
    """What all ranks can hold. A row that is reckoned to fit does on each of them. apart: as
    KvBudget has it; start: as Precision has it."""
    ranks = list(ranks)
    if not all(rank.budget for rank in ranks):
        return KvBudget(0, apart=apart)
    # Parts of the budget. On some ranks of a pipeline nothing may grow, on others nothing but that.
    a_token = max(Fraction(rank.token, rank.budget) for rank in ranks)
    a_token = max(a_token, Fraction(1, MOST_TOKENS))
    a_row = max(Fraction(rank.fixed, rank.budget) for rank in ranks)
    whole = max(Fraction(rank.whole or rank.token, rank.budget) for rank in ranks) / a_token
    precision = Precision(start, max(Fraction(1), whole)) if start else WHOLE
    return KvBudget(int(1 / a_token), ceil(a_row / a_token), apart, precision)
