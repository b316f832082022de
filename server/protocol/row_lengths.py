"""Which rows of a batch share one rectangle of keys and values: those of like length.

Rank 0 reckons memory by it, and every rank lays its caches out by it. So nothing here looks at
anything but lengths.
"""

from collections.abc import Iterable

STEP = 256  # tokens by which caches grow
PART = 3  # a row may be padded by one token for so many of its own: a quarter of its place
FAR = 2048  # tokens of padding in a row: to read them takes longer than another attention call
SLACK = STEP  # tokens that a row may be shorter whatever that is of it: caches grow by as much
MOST_RECTANGLES = 8  # attention calls of a layer in a decode step; beyond them rows are padded more


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
