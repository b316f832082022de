"""Decoding rows, and the steps that give each of them its next token.

Runs on the main thread of every rank. A step is made while the last one runs, its tokens are handed
out as soon as they are known, and a row that leaves does so at the next step.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import mlx.core as mx

from server.engine.batch_caches import BatchCaches, Caches, snapshot
from server.engine.prompts import Ended
from server.engine.quantised_kv import next_caches
from server.engine.row import Row
from server.engine.rows_apart import Ways
from server.protocol.failures import is_shared
from server.protocol.row_lengths import SLACK
from server.sampling.choosers import Step as Sampling

log = logging.getLogger(__name__)

STEPS_BETWEEN_SWEEPS = 512  # then MLX gives back what it keeps for reuse


@dataclass(frozen=True)
class Decoded:
    """One row's next token. finish is None, "stop" or "length". caches: of a finished row that is
    to be kept, a copy of its own."""

    row: Row
    token: int
    finish: str | None
    caches: Caches | None = None


@dataclass(frozen=True)
class Stepped:
    """A decode step: the next tokens of rows, and the header that came with them. step_s: seconds
    from handing it to MLX to its tokens, chunks of prompts between them left out; 0 if no row had
    to wait for it. launch_s: those that MLX took to take in a step. lost: rows that are no more,
    as the step after it cannot be computed, for that error."""

    rows: list[Decoded]
    header: list[int]
    step_s: float
    launch_s: float
    lost: Sequence[Row] = ()
    error: Exception | None = None


class Phase(Enum):
    """Of a step, in this order."""

    PLANNED = auto()  # its inputs are known, and it is put off
    BUILT = auto()  # as a graph, which MLX does not have yet
    LAUNCHED = auto()  # MLX has it
    OVER = auto()  # its tokens are computed, here; no other rank knows them


@dataclass
class Step:
    """The step whose tokens are to be shared next. rows: those that it has a token for, newcomers
    included, which have theirs from their prompt. mine: this rank's part of their tokens, [B]
    int32, in pieces. inputs: of a planned one, the tokens that it goes on from, by row. parts: of
    a built one, what MLX is given, one after another."""

    phase: Phase
    rows: list[Row] = field(default_factory=list)
    mine: list[mx.array] = field(default_factory=list)
    inputs: dict[Row, int] = field(default_factory=dict)
    parts: list[list[mx.array]] = field(default_factory=list)
    launched: float = 0.0  # when MLX had it; 0 as long as nobody waits for it
    over: float = 0.0  # when it was over, if that was seen

    def of(self, rows: list[Row]) -> mx.array:
        """This rank's part of the tokens of these rows, which are in the step's order."""
        mine = self.mine[0] if len(self.mine) == 1 else mx.concatenate(self.mine)
        if len(rows) == len(self.rows):
            return mine
        places = {row: i for i, row in enumerate(self.rows)}
        return mine[mx.array([places[row] for row in rows])]


class Decoding:
    """slack: tokens by which rows of one shelf may differ at any length."""

    def __init__(self, model: Any, sampling: Sampling, ways: Ways, *, slack: int = SLACK) -> None:
        self.model = model
        self.rows: list[Row] = []  # in the order of every array; some may be gone
        self.step: Step | None = None
        self._sampling = sampling
        self._ways = ways
        self.caches = BatchCaches(ways, slack)
        self._first: dict[Row, int] = {}  # tokens of newcomers, not handed out yet
        self._launch_s = 0.0  # how long MLX took to take the last one in
        self._steps = 0

    @property
    def live(self) -> int:
        """Rows that go on."""
        return sum(not row.gone for row in self.rows)

    def join(self, ended: Ended) -> None:
        """Rows whose prompts are done, but for those that are gone."""
        self._drop_gone()  # their places are free then
        rows = ended.rows
        self.rows += rows
        if self.step is None:
            self.step = Step(Phase.OVER)
        self.step.rows = [*self.step.rows, *rows]
        self.step.mine.append(ended.mine)
        first = zip(rows, ended.tokens, strict=True)
        self._first |= {row: token for row, token in first if not row.gone}
        if not self._ways.rows_apart:
            self.caches.join([row.caches for row in rows])
            for row in rows:
                row.caches = None
        self.leave([])

    def newcomers(self) -> list[Decoded]:
        """The first tokens of rows that have joined since the last call."""
        tokens, self._first = self._first, {}
        if self.step is not None and self.step.phase is Phase.PLANNED:
            self.step.inputs |= tokens
        for row in tokens:
            row.ahead = True
        return self._hand_out(tokens)

    def launch(self) -> None:
        """Hands the next step to MLX, if that has not been done; first makes one put off."""
        step = self.step
        if step is None:
            return
        if step.phase is Phase.PLANNED:
            self._drop_gone()
            for row in self.rows:
                row.ahead = False
            tokens = [step.inputs[row] for row in self.rows]
            self._build(mx.array(tokens, dtype=mx.int32))
            self._append(tokens)
            step = self.step
        if step.phase is Phase.BUILT:
            step.phase, step.launched = Phase.LAUNCHED, time.monotonic()
            for part in step.parts:
                mx.async_eval(*part)
            self._launch_s = time.monotonic() - step.launched
            step.parts = []

    def settle(self) -> None:
        """Waits for the running step, if there is one."""
        step = self.step
        if step is not None and step.launched:
            mx.eval(step.mine)
            step.phase, step.over = Phase.OVER, time.monotonic()

    def next(self, late: bool, more: bool) -> Stepped:
        """One token for every row that has not had it yet, and the header. late: the step after
        it is not handed to MLX; launch() does that. more: prompts are waiting."""
        self._steps += 1
        if self._steps % STEPS_BETWEEN_SWEEPS == 0:
            mx.clear_cache()
        self._drop_gone()
        step, rows = self.step, self.rows
        goes_on = any(row.generated + (not row.ahead) < row.limit for row in rows)
        # Where every row has reached its limit, nobody would read what a further step makes, and
        # the next request would wait for it.
        shared = self._sampling.share(step.of(rows))
        # First on every rank: in a pipeline a rank's recv depends on nothing, and could overtake.
        mx.async_eval(shared.sealed.total)
        # The next step is made while this one runs. But prompts that are computed before it is
        # launched should be part of it, and while nothing runs, nothing is lost by looking first
        # whether there is news.
        hold = goes_on and late and (more or not step.launched)
        build = goes_on and not hold
        error = self._begin(shared.inputs, late) if build else None
        # Nothing is done with them before this has seen that they are whole.
        tokens, header = shared.read()
        step_s = (step.over or time.monotonic()) - step.launched if step.launched else 0.0
        waiting = {row: token for row, token in zip(rows, tokens, strict=True) if not row.ahead}
        for row in rows:
            row.ahead = False
        if hold:
            self.step = Step(Phase.PLANNED, inputs=dict(zip(rows, tokens, strict=True)))
        elif not goes_on:
            self.step = None
        if build:
            self._append(tokens)
        if error is not None:
            for row in rows:
                row.store = False  # their caches are not what they were
        decoded = self._hand_out(waiting)
        lost = [] if error is None else self.lose()
        return Stepped(decoded, header, step_s, self._launch_s, lost, error)

    def extract(self, row: Row) -> Caches | None:
        """A copy of a row's caches, lazy: those of the batch go on. None where it cannot be had."""
        try:
            if self._ways.rows_apart:
                return snapshot(row.caches)
            return self.caches.extract(self.rows.index(row))
        except Exception as error:
            if not is_shared(error):
                raise
            log.warning("a row's cache cannot be kept: %s: %s", type(error).__name__, error)
            return None

    def leave(self, rows: list[Row]) -> None:
        """Takes rows out: at the next step, since to take them out of the caches may wait for the
        step that is running, and the tokens of the last one should be on their way meanwhile."""
        for row in rows:
            row.gone = True
            self._first.pop(row, None)
        if not self.live:
            self.rows, self._first, self.step = [], {}, None
            self.caches.clear()

    def lose(self) -> list[Row]:
        """Gives up all rows, whatever state they are in. Returns them."""
        lost = [row for row in self.rows if not row.gone]
        self.leave(lost)
        return lost

    def _begin(self, inputs: mx.array, late: bool) -> Exception | None:
        """Makes the next step, and launches it. Returns what stands against it: this step's tokens,
        and the header with them, are on their way, and have to be read all the same."""
        try:
            self._build(inputs)
            if not late:
                self.launch()
        except Exception as error:
            if not is_shared(error):
                raise
            return error
        return None

    def _build(self, inputs: mx.array) -> None:
        """The next step, lazy. inputs: the rows' last tokens, [B] int32."""
        rows = list(self.rows)
        apart: list[mx.array] = []
        if self._ways.rows_apart:
            for row in rows:
                row.caches = next_caches(self._ways.quantised, row.caches)
            # Handed to MLX one by one: in a pipeline nothing else orders what ranks receive.
            apart = [
                self.model(inputs[i : i + 1, None], cache=row.caches)[:, -1, :]
                for i, row in enumerate(rows)
            ]
            logits = mx.concatenate(apart)
        else:
            logits = self.caches.step(lambda caches: self.model(inputs[:, None], cache=caches))
            logits = logits[:, -1, :]
        mine, extras = self._sampling.propose(logits, [row.state for row in rows], inputs)
        parts = [*([one] for one in apart), [mine, *extras]]
        self.step = Step(Phase.BUILT, rows, [mine], parts=parts)

    def _append(self, tokens: list[int]) -> None:
        for row, token in zip(self.rows, tokens, strict=True):
            row.tokens.append(token)  # the next step puts it into the cache

    def _drop_gone(self) -> None:
        """Takes the rows that have left out of the arrays. Steps find their own ones."""
        if any(row.gone for row in self.rows):
            stay = [i for i, row in enumerate(self.rows) if not row.gone]
            self.rows = [self.rows[i] for i in stay]
            if not self._ways.rows_apart:
                self.caches.keep(stay)

    def _hand_out(self, tokens: dict[Row, int]) -> list[Decoded]:
        """The next tokens of rows. Rows that end with them leave."""
        decoded, finished = [], []
        for row, token in tokens.items():
            finish, caches = row.take(token), None
            if finish is not None:
                finished.append(row)
                caches = self.extract(row) if row.store else None
            decoded.append(Decoded(row, token, finish, caches))
        self.leave(finished)
        return decoded
