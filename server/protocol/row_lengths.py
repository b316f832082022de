"""Which rows of a batch share one rectangle of keys and values: those of like length.

Rank 0 reckons memory by it, and every rank lays its caches out by it. So nothing here looks at
anything but lengths.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

STEP = 256  # tokens by which caches grow
PART = 3  # a row may be padded by one token for so many of its own: a quarter of its place
FAR = 2048  # tokens of padding in a row: to read them takes longer than another attention call
SLACK = STEP  # tokens that a row may be shorter whatever that is of it: caches grow by as much
MOST_RECTANGLES = 8  # attention calls of a layer in a decode step; beyond them rows are padded more


@dataclass(frozen=True)
class Precision:
    """Keys and values of rows of `start` tokens and more may be kept in fewer bits. Memory is
    reckoned in tokens of such rows; one of a shorter row takes as much as `whole` of them."""

    start: int = 0
    whole: Fraction = Fraction(1)

    def is_long(self, tokens: int) -> bool:
        """Whether a text of that length is kept in the fewer bits, all of it."""
        return tokens >= self.start

    def cost(self, tokens: int) -> int:
        """Of a kept text, in tokens."""
        return tokens if self.is_long(tokens) else ceil(tokens * self.whole)

    def row_cost(self, tokens: int) -> int:
        """Of a row's place of that length: it was shorter before, and may have taken more then."""
        return max(tokens, ceil(min(tokens, -(-self.start // STEP) * STEP) * self.whole))

    def fits(self, room: int) -> int:
        """The longest row whose place takes no more."""
        if self.row_cost(room) <= room:
            return room
        return min(int(room / self.whole), self.start - 1)

    def serves(self, kept: int, tokens: int) -> bool:
        """Whether a row can go on from so many of the first tokens of a kept text: one that is in
        fewer bits would give a shorter row other numbers than it computes."""
        return self.is_long(tokens) or not self.is_long(kept)


WHOLE = Precision()


def are_alike(short: int, long: int, slack: int = SLACK) -> bool:
    """Whether a row of `short` tokens may lie in a rectangle of `long` ones."""
    return long - short <= max(slack, min(short // PART, FAR))


def rectangles(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """(rows, tokens of the longest) of the rectangles that hold rows of these lengths."""
    found: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        if found and are_alike(length, found[-1][0]):
            found[-1].append(length)
        else:
            found.append([length])
    while len(found) > MOST_RECTANGLES:
        # The pair whose shorter rows are padded least by the longer one's length.
        at = min(range(1, len(found)), key=lambda i: _padding(found, i))
        found[at - 1] += found.pop(at)
    return [(len(rows), rows[0]) for rows in found]


def _padding(found: list[list[int]], at: int) -> int:
    return len(found[at]) * (found[at - 1][0] - found[at][0])
