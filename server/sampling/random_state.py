"""What sampling needs of a row: its parameters, its random numbers, and how many it has used.

On rank 0 this is part of the row (row_state.py); for a row that any rank may draw, the others make
it of rank 0's message, and it is all that they know of the row. The random numbers are made of the
row's seed and the position of the token, so that a seeded request draws the same alone, in any
batch and on any rank.
"""

import copy
from collections.abc import Sequence
from typing import Self

from server.protocol.requests import Sampling
from server.wire.messages import Draw

# Below this, temperature would overflow float32 long before it changed the choice.
GREEDY_BELOW = 1e-3
_MASK64 = 2**64 - 1


class RandomState:
    """seed: any integer, of which 64 bits count. drawn: tokens drawn so far, on any rank.

    shared: any rank may draw for it, since all have been told how; else rank 0 chooses. chooser:
    the rank that chose its last tokens.
    """

    def __init__(self, sampling: Sampling, seed: int, drawn: int = 0, shared: bool = False) -> None:
        self.sampling = sampling
        self.seed = seed & _MASK64
        self.drawn = drawn
        self.shared = shared
        self.chooser = 0

    @classmethod
    def told(cls, draw: Draw | None) -> "RandomState":
        """On a rank that is not rank 0, which tells nothing of the rows that it keeps."""
        if draw is None:
            return cls(Sampling(), 0)
        sampling = Sampling(draw.temperature, draw.top_p, draw.top_k, draw.min_p)
        return cls(sampling, draw.seed, draw.drawn, shared=True)

    def tell(self, uid: int) -> Draw:
        """The message that told() reads, for the row with that uid."""
        s = self.sampling
        return Draw(uid, s.temperature, s.top_p, s.top_k, s.min_p, self.seed, self.drawn)

    @property
    def origin(self) -> "RandomState":
        """The row itself, where this stands for it at a place further on."""
        return self

    def places(self, drafts: Sequence[int]) -> list[Self]:
        """The row, and the row as it will be behind each of these drafts, if all are drawn."""
        return [self, *(self._behind(drafts, n) for n in range(1, len(drafts) + 1))]

    def settle(self, drafts: Sequence[int], tokens: Sequence[int]) -> None:
        """Of the places that propose() has counted for a row with these drafts, those of these
        tokens count."""
        self.drawn -= 1 + len(drafts) - len(tokens)

    def _behind(self, drafts: Sequence[int], count: int) -> Self:
        ahead = copy.copy(self)
        ahead.drawn += count
        return ahead

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < GREEDY_BELOW

    @property
    def filtered(self) -> bool:
        s = self.sampling
        return s.top_p < 1 or s.top_k > 0 or s.min_p > 0

    def uniforms(self) -> tuple[float, float]:
        """Two random numbers for the token about to be drawn, mixed from seed and position.

        From 0 to 1 - 2^-23, in steps of 2^-23: any of them times a float32 is less than it.
        """
        x = (self.seed * 0x9E3779B97F4A7C15 + self.drawn * 0xD1B54A32D192ED03) & _MASK64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
        x ^= x >> 31
        return (x >> 41) * 2.0**-23, (x & 0x7FFFFF) * 2.0**-23
