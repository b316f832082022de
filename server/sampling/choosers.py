"""Who picks the next tokens of a step, and how they reach every rank.

Runs on the main thread of every rank. If each rank sampled every row for itself, ranks that round
differently would part ways and hang. Here each row has one chooser: rank 0, or where rank 0 has
told all ranks how to draw for it, the one it is assigned to (row_assignment.py), lest the others
wait while rank 0 draws for all. One all_sum carries the tokens to every rank, with the mailbox's
header behind them: the only collective that a step costs beyond the model's own. It opens the step
that the tokens go into, rather than close the one that they come from, because rank 0 has newer
news by then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from server.protocol.failures import is_shared
from server.sampling.filters import draw
from server.sampling.random_state import RandomState
from server.sampling.row_assignment import assign, part, pick
from server.sampling.row_state import Row
from server.sampling.sampler import sample, score_tokens
from server.wire.link import Link, Sealed
from server.wire.mailbox import Header
from server.wire.messages import Draw
from server.wire.seal import Garbled


class Chooser(Protocol):
    """This rank's part of a step, and of the look at a prompt."""

    def row(self, uid: int, draw: Draw | None) -> RandomState:
        """What this rank knows of a row. draw: how any rank may draw for it, if any may."""
        ...

    def header(self) -> list[int]:
        """Rank 0's news for the other ranks; zeros from a worker."""
        ...

    def propose(
        self, logits: mx.array, rows: list[RandomState], inputs: mx.array, mine: list[int]
    ) -> tuple[mx.array, list[mx.array]]:
        """This rank's part of the next tokens, [B] int32, and what else to evaluate with it.

        logits: [B, V]; inputs: [B], the tokens that they follow; mine: the places of the rows
        that this rank chooses for.
        """
        ...

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        """Notes the log-probabilities of a prompt's tokens; returns arrays to evaluate.

        logits: [T, V], those from which the tokens, T of them, would have been chosen.
        """
        ...


class ChoosesForAll:
    """Rank 0: chooses for all rows that are not assigned to others. A row whose sampling fails
    is reported through on_failure and gets a token all the same, so that every rank's shapes stay
    equal until the request is dropped."""

    def __init__(
        self,
        make_row: Callable[[int], Row],
        header: Callable[[], list[int]],
        on_failure: Callable[[Row, Exception], None],
    ) -> None:
        self._make_row = make_row
        self.header = header
        self._on_failure = on_failure

    def row(self, uid: int, draw: Draw | None) -> Row:
        row = self._make_row(uid)
        # What the message says, and not what the row is like, or ranks could assign unlike.
        row.shared = draw is not None
        return row

    def propose(
        self, logits: mx.array, rows: list[Row], inputs: mx.array, mine: list[int]
    ) -> tuple[mx.array, list[mx.array]]:
        tokens, extras = None, []
        if mine:
            tokens, extras = self._sample(
                pick(logits, mine), [rows[i] for i in mine], pick(inputs, mine)
            )
        return part(tokens, mine, logits), extras

    def _sample(
        self, logits: mx.array, rows: list[Row], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        try:
            return sample(logits, rows, inputs.tolist)
        except Exception as error:
            if not is_shared(error):
                raise
            return self._sample_apart(logits, rows, inputs)

    def _sample_apart(self, logits: mx.array, rows: list[Row], inputs: mx.array):
        tokens, extras = [], []
        for i, row in enumerate(rows):
            one = slice(i, i + 1)
            try:
                token, more = sample(logits[one], [row], inputs[one].tolist)
                extras += more
            except Exception as error:
                if not is_shared(error):
                    raise
                self._on_failure(row, error)
                token = mx.argmax(logits[one], axis=-1).astype(mx.int32)
            tokens.append(token)
        return mx.concatenate(tokens), extras

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        row = self._make_row(uid)
        try:
            scores = score_tokens(logits, mx.array(tokens), row.logprobs or 0)
        except Exception as error:
            if not is_shared(error):
                raise
            self._on_failure(row, error)
            return [logits]
        row.prompt_scores.append(scores)
        return scores.arrays()


class Follows:
    """A worker: draws for the rows that are assigned to it, and adds zeros for the others."""

    def row(self, uid: int, draw: Draw | None) -> RandomState:
        return RandomState.told(draw)

    def header(self) -> list[int]:
        return [0] * Header.SIZE

    def propose(
        self, logits: mx.array, rows: list[RandomState], inputs: mx.array, mine: list[int]
    ) -> tuple[mx.array, list[mx.array]]:
        tokens = None
        if mine:
            tokens = draw(pick(logits, mine).astype(mx.float32), [rows[i] for i in mine])
        return part(tokens, mine, logits), []

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        # Rank 0 looks at the logits, so its last layer's collectives run; so must they here.
        return [logits]


@dataclass(frozen=True)
class Shared:
    """Tokens that all ranks have chosen, on their way, and what was sent behind them."""

    sealed: Sealed
    count: int  # of tokens
    vocab: int

    @property
    def inputs(self) -> mx.array:
        """The tokens, [B] int32, lazy, for the next step, which begins before anyone can look at
        them. So not even a garbled one may reach beyond the embedding: that is a crash."""
        return mx.remainder(self.sealed.values(0, self.count), self.vocab)

    def read(self) -> tuple[list[int], list[int]]:
        """The tokens, and what came behind them. Waits; raises Garbled."""
        values = self.sealed.read()
        tokens = values[: self.count]
        if not 0 <= min(tokens, default=0) <= max(tokens, default=0) < self.vocab:
            raise Garbled(
                self.sealed.what,
                f"token ids {tokens}, where the vocabulary ends at {self.vocab - 1}",
            )
        return tokens, values[self.count :]


class Step:
    """What a step does with its logits: each rank proposes tokens, and all learn the sum."""

    def __init__(self, link: Link, chooser: Chooser) -> None:
        self._link = link
        self._chooser = chooser
        self._vocab = 1  # known from the first logits

    def propose(
        self, logits: mx.array, rows: list[RandomState], inputs: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """This rank's part of the next tokens, as Chooser.propose; the rows' positions advance."""
        self._vocab = logits.shape[-1]
        choosers = assign(rows, self._link.size)
        mine = [i for i, rank in enumerate(choosers) if rank == self._link.rank]
        proposed = self._chooser.propose(logits, rows, inputs, mine)
        # Here for all rows, whoever chose: a position decides what is drawn next, on any rank.
        for row in rows:
            row.drawn += 1
        return proposed

    def share_first(self, mine: mx.array) -> Shared:
        """All ranks' parts of the first tokens of W prompts, [W] int32."""
        return Shared(self._link.seal("first tokens", [], mine), len(mine), self._vocab)

    def share(self, mine: mx.array) -> Shared:
        """All ranks' parts of the tokens, [B] int32, and the header behind them."""
        sealed = self._link.seal("step", self._chooser.header(), mine)
        return Shared(sealed, len(mine), self._vocab)
