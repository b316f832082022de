"""A decode step from its plan to its tokens, and what comes of it.

Used by decoding.py, on the main thread of every rank.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import mlx.core as mx

from server.engine.batch_caches import Caches
from server.engine.row import Row
from server.sampling.drafts import Drafts


@dataclass(frozen=True)
class Decoded:
    """One row's next token. finish is None, "stop" or "length". caches: of a finished row that is
    to be kept, a copy of its own. drafted, wrong: as a Token has them."""

    row: Row
    token: int
    finish: str | None
    caches: Caches | None = None
    drafted: bool = False
    wrong: int = 0


@dataclass(frozen=True)
class Stepped:
    """A decode step: the next tokens of rows, and the header that came with them. step_s: seconds
    from handing it to MLX to its tokens, chunks of prompts between them left out; 0 if no row had
    to wait for it. launch_s: those that MLX took to take in a step. lost: rows that are no more,
    as the step after it cannot be computed, for that error. width: as a Turn has it."""

    rows: list[Decoded]
    header: list[int]
    step_s: float
    launch_s: float
    lost: Sequence[Row] = ()
    error: Exception | None = None
    width: int = 0


class Phase(Enum):
    """Of a step, in this order."""

    PLANNED = auto()  # its inputs are known, and it is put off
    BUILT = auto()  # as a graph, which MLX does not have yet
    LAUNCHED = auto()  # MLX has it
    OVER = auto()  # its tokens are computed, here; no other rank knows them


@dataclass
class Step:
    """The step whose tokens are to be shared next. rows: those that it has a token for, newcomers
    included, which have theirs from their prompt. mine: this rank's part of their tokens, [P]
    int32, in pieces. inputs: of a planned one, the tokens that it goes on from, by row. drafts:
    those behind the inputs, of rows that have some: so many more places P. parts: of a built one,
    what MLX is given, one after another. width: as a Turn has it."""

    phase: Phase
    rows: list[Row] = field(default_factory=list)
    mine: list[mx.array] = field(default_factory=list)
    inputs: dict[Row, int] = field(default_factory=dict)
    drafts: dict[Row, Drafts] = field(default_factory=dict)
    width: int = 0
    parts: list[list[mx.array]] = field(default_factory=list)
    launched: float = 0.0  # when MLX had it; 0 as long as nobody waits for it
    over: float = 0.0  # when it was over, if that was seen

    @property
    def seconds(self) -> float:
        """From handing it to MLX to its tokens, which are there now; 0 if nobody waits for it."""
        return (self.over or time.monotonic()) - self.launched if self.launched else 0.0

    def of(self, rows: list[Row]) -> mx.array:
        """This rank's part of the tokens of these rows."""
        mine = self.mine[0] if len(self.mine) == 1 else mx.concatenate(self.mine)
        if rows == self.rows:
            return mine
        places, count = {}, 0
        for row in self.rows:
            places[row] = range(count, count + 1 + len(self.drafts.get(row, ())))
            count = places[row].stop
        return mine[mx.array([place for row in rows for place in places[row]])]
