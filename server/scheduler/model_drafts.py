"""Drafts of a draft model: of which rows it is asked, what that costs, and what when it fails.

Rank 0's main thread alone, while the other ranks wait for its part of a step. It is asked last:
what a grammar forces and what a text says again costs microseconds, and a draft of the model a
forward pass; so it is asked where it is likelier to be right than they are, and pays by its own
clock. A text has to be read first, in pieces that hold the others up no longer than a chunk of a
prompt does. Rows are asked one after another: drafts pay where few rows run.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.draft_model import DraftModel
from server.sampling.random_state import RandomState
from server.sampling.row_state import Row
from server.scheduler.guesses import Guess, Offer, Rate
from server.scheduler.pacing import PrefillPace

AT_ONCE = 32  # tokens that are not known yet, beyond which they are read apart
LEAST_REST = 64  # tokens that an answer is expected to go on for; else as many as it has
WEIGHT = 0.1  # of the newest measurement of its times
OUTLIER = 3.0  # times what was expected: a stall says nothing of a draft
FAILURES_MOST = 3  # in a row, until nobody asks it again
SHARED_WEIGHT = 0.02  # of the newest draft in what new rows begin with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """For so many drafts behind the newest of a row's tokens, of which it has drawn so many."""

    row: Row
    drawn: int
    most: int


class ModelDrafts:
    """model: None for none. pace: how much it reads at once."""

    def __init__(self, model: DraftModel | None, pace: PrefillPace) -> None:
        self._model, self._pace = model, pace
        self._draft_s, self._read_s = (model.draft_s, model.read_s) if model else (0.0, 0.0)
        self._failures = 0
        self._spent_s = 0.0
        self.rate = Rate(weight=SHARED_WEIGHT)

    def keep(self, rows: Sequence[Row]) -> None:
        """These go on, and no others: what there is of those is given up."""
        if self._model is not None:
            self._model.begin([row.guess for row in rows if row.guess is not None])

    def offer(self, row: Row, most: int, *, reads: bool = True) -> Offer | None:
        """What it would draft for a row, so many tokens at most. None where nothing. reads: as
        draft() has it."""
        guess: Guess | None = row.guess
        if self._model is None or guess is None or most < 1 or not guess.tries_model:
            return None
        if not self._model.has_room(guess, guess.length + most):
            return None
        unread = guess.length - self._model.known(guess)
        if unread > AT_ONCE and not reads:
            return None
        # How long an answer goes on nobody knows; half of all that is to come, as a rule.
        text_s = unread * self._read_s / max(LEAST_REST, guess.generated)
        return Offer(guess.model_likely(most), None, self._draft_s, text_s)

    def draft(self, asked: Sequence[Ask], *, reads: bool) -> list[list[int]]:
        """The drafts of rows that it has made an offer for. reads: there is time to read a piece of
        a text; of one, the others wait."""
        began, made = time.monotonic(), []
        for ask in asked:
            guess = ask.row.guess
            try:
                unread = guess.length - self._model.known(guess) if self._model else 0
                if self._model is None or (unread > AT_ONCE and not reads):
                    made.append([])
                elif unread > AT_ONCE:
                    reads = False
                    self._read(guess)
                    made.append([])
                else:
                    made.append(self._draft(guess, ask))
                    self._failures = 0
            except Exception as error:  # nobody's but this model's, whatever it is
                self._give_up(guess, error)
                made.append([])
        self._spent_s += time.monotonic() - began
        return made

    def spent_s(self) -> float:
        """Seconds that it took since the last call."""
        spent, self._spent_s = self._spent_s, 0.0
        return spent

    def _read(self, guess: Guess) -> None:
        text = guess.text(self._model.known(guess), self._pace.tokens)
        began = time.monotonic()
        self._model.read(guess, text)
        took = time.monotonic() - began
        self._pace.observe(len(text), took, 0.0)
        self._read_s = _nearer(self._read_s, took / len(text))

    def _draft(self, guess: Guess, ask: Ask) -> list[int]:
        text = guess.text(self._model.known(guess))
        row = ask.row
        states = [RandomState(row.sampling, row.seed, ask.drawn + n) for n in range(ask.most)]
        began = time.monotonic()
        drafts = self._model.draft(guess, text, states)
        self._draft_s = _nearer(self._draft_s, (time.monotonic() - began) / len(drafts))
        guess.try_model(drafts)
        return drafts

    def _give_up(self, guess: Guess, error: Exception) -> None:
        """On it, for a row; when that happens again and again, for all."""
        self._failures += 1
        guess.tries_model = False
        if self._model is not None:
            self._model.drop(guess)
        said = f"{type(error).__name__}: {error}"
        if self._failures < FAILURES_MOST:
            log.warning("the draft model drafts no more for a request: %s", said)
        elif self._model is not None:
            self._model = None
            log.error("the draft model drafts no more until the next start: %s", said)


def _nearer(before: float, now: float) -> float:
    """A running average with one measurement more."""
    return before + WEIGHT * (min(now, OUTLIER * max(before, 1e-4)) - before)
