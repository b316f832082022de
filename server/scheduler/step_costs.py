"""How long a decode step takes, by its rows and by the places of a row.

Rank 0's main thread alone. At the start a forward pass of 1, 2, 4 ... tokens is measured once,
which says how a step grows with its tokens (a mixture of experts reads more experts for more of
them, so it grows steeply; of a dense model nearly all is the same for a few). While it serves, the
time from the tokens of one step to those of the next corrects that, for each number of rows and
places that comes up: all that a step costs, and what it costs to wait for the tokens of the one
before. Imports no mlx.
"""

import bisect
from collections.abc import Sequence

AHEAD = 0  # in the place of a width: a step of one place a row, made while the last one ran
ANY = -1  # likewise: any other step, which waits for the tokens of the one before
WEIGHT, FIRST_WEIGHT = 0.15, 0.4  # of the newest measurement; of the first one
FADE = 0.002  # with each step: what was not measured lately is as the start has it, by and by
OUTLIER = 2.0  # times what was expected: a stall says nothing of a step


class StepCosts:
    """curve: seconds of a forward pass by tokens, ascending."""

    def __init__(self, curve: Sequence[tuple[int, float]]) -> None:
        self._sizes = [tokens for tokens, _ in curve]
        self._seconds = [seconds for _, seconds in curve]
        self._off: dict[tuple[int, int], float] = {}  # measured, as a part of what is expected
        self.measured: dict[int, int] = {}  # steps made ahead, by rows, if their time told or not

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """A step has taken so long, from the tokens before it to its own."""
        off = seconds / self._expected(rows, width)
        for key, other in self._off.items():
            if key[1] != AHEAD:
                self._off[key] += FADE * (self._like(*key) - other)
        self._learn(rows, width, off)
        if width != AHEAD:
            self._learn(rows, ANY, off)
        self.pass_over(rows, width)

    def pass_over(self, rows: int, width: int) -> None:
        """A step whose time is not its own: what is known has to do."""
        if width == AHEAD:
            self.measured[rows] = self.measured.get(rows, 0) + 1

    def of(self, rows: int, width: int) -> float:
        """Seconds of a step."""
        off = self._off.get((rows, width)) or self._like(rows, width)
        return off * self._expected(rows, width)

    def _learn(self, rows: int, width: int, off: float) -> None:
        before = self._off.get((rows, width))
        weight = WEIGHT if before else FIRST_WEIGHT
        if before is None:
            # What is expected of the first is a forward pass and no more.
            before = off if width == AHEAD else self._like(rows, width)
        self._off[rows, width] = before + weight * (min(off, OUTLIER * before) - before)

    def _like(self, rows: int, width: int) -> float:
        """What is assumed of a kind of step that was not measured."""
        ahead = self._off.get((rows, AHEAD), 1.0)
        return ahead if width in (AHEAD, ANY) else self._off.get((rows, ANY), ahead)

    def _expected(self, rows: int, width: int) -> float:
        """By the curve, straight between its points, and beyond the last."""
        tokens = rows * max(1, width)
        after = min(max(1, bisect.bisect_left(self._sizes, tokens)), len(self._sizes) - 1)
        (a, b), (x, y) = self._sizes[after - 1 : after + 1], self._seconds[after - 1 : after + 1]
        return max(x + (y - x) * (tokens - a) / (b - a), 1e-6)
