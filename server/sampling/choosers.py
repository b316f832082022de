"""Who picks the next tokens of a step, and how they reach every rank.

Runs on the main thread of every rank. If each rank sampled every row for itself, ranks that round
differently would part ways and hang. Here each row has one chooser: rank 0, or where rank 0 has
told all ranks how to draw for it, the one it is assigned to (row_assignment.py), lest the others
wait while rank 0 draws for all. One all_sum carries the tokens to every rank, with the mailbox's
header behind them: the only collective that a step costs beyond the model's own. It opens the step
that the tokens go into, rather than close the one that they come from, because rank 0 has newer
news by then.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from server.protocol.failures import is_shared
from server.sampling.drafts import Drafts, pack, split, unpack
from server.sampling.filters import draw
from server.sampling.random_state import RandomState
from server.sampling.row_assignment import assign, part, pick
from server.sampling.row_state import Row
from server.sampling.sampler import sample, score_tokens
from server.wire.link import Link, Sealed
from server.wire.mailbox import Header
from server.wire.messages import Draw
from server.wire.seal import Garbled

log = logging.getLogger(__name__)


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

    def draft(
        self,
        tokens: mx.array,
        rows: list[RandomState],
        offered: list[Drafts],
        left: list[int],
        most: int,
    ) -> list[Drafts]:
        """Rank 0's drafts for the step after this one, a list a row; nothing from a worker.

        tokens: this rank's part of the step's, at all places; offered: the drafts that the rows
        have in it; left: how many tokens each may still get, this step's included; most: tokens of
        drafts in all.
        """
        ...

    def score(self, uid: int, logits: mx.array, tokens: list[int]) -> list[mx.array]:
        """Notes the log-probabilities of a prompt's tokens; returns arrays to evaluate.

        logits: [T, V], those from which the tokens, T of them, would have been chosen.
        """
        ...


@dataclass(frozen=True)
class Wanting:
    """A row that drafts are wanted for. newest: its tokens of the step that is over; drawn: how
    many it has, these included; left: how many more it may get."""

    row: Row
    newest: list[int]
    drawn: int
    left: int


Drafter = Callable[[list[Wanting], int], list[Drafts]]


def no_drafts(rows: list[Wanting], most: int) -> list[Drafts]:
    """Of a rank 0 that makes none."""
    return [()] * len(rows)


class ChoosesForAll:
    """Rank 0: chooses for all rows that are not assigned to others. A row whose sampling fails
    is reported through on_failure and gets a token all the same, so that every rank's shapes stay
    equal until the request is dropped. drafter makes drafts of rows, so many in all at most."""

    def __init__(
        self,
        make_row: Callable[[int], Row],
        header: Callable[[], list[int]],
        on_failure: Callable[[Row, Exception], None],
        drafter: Drafter = no_drafts,
    ) -> None:
        self._make_row = make_row
        self.header = header
        self._on_failure = on_failure
        self._drafter = drafter

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
                self._on_failure(row.origin, error)
                token = mx.argmax(logits[one], axis=-1).astype(mx.int32)
            tokens.append(token)
        return mx.concatenate(tokens), extras

    def draft(
        self, tokens: mx.array, rows: list[Row], offered: list[Drafts], left: list[int], most: int
    ) -> list[Drafts]:
        newest = split(tokens.tolist(), offered)
        # Of a row that another rank has chosen for, nothing is known before the sum.
        known = [i for i, row in enumerate(rows) if row.chooser == 0]
        asked = [
            Wanting(
                rows[i],
                newest[i],
                rows[i].drawn - 1 - len(offered[i]) + len(newest[i]),
                left[i] - len(newest[i]),
            )
            for i in known
        ]
        drafts: list[Drafts] = [()] * len(rows)
        try:
            for i, made in zip(known, self._drafter(asked, most), strict=True):
                drafts[i] = made
        except Exception as error:
            # Rank 0's alone, while the others wait for its part of the step: it can do without.
            if not is_shared(error):
                raise
            log.exception("no drafts for a step")
        return drafts

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

    def draft(
        self,
        tokens: mx.array,
        rows: list[RandomState],
        offered: list[Drafts],
        left: list[int],
        most: int,
    ) -> list[Drafts]:
        return []

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
        """The tokens, and what came behind them: the header, and drafts. Waits; raises Garbled."""
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
        self,
        logits: mx.array,
        rows: list[RandomState],
        inputs: mx.array,
        drafts: Sequence[Drafts] = (),
        *,
        alone: bool = False,
    ) -> tuple[mx.array, list[mx.array]]:
        """This rank's part of the next tokens, as Chooser.propose; the rows' positions advance.

        drafts: by row, if there are any; logits and inputs are those of all places then. alone:
        rank 0 chooses for all rows, since it has to know the tokens before the others do.
        """
        self._vocab = logits.shape[-1]
        drafts = drafts or [()] * len(rows)
        choosers = [0] * len(rows) if alone else assign(rows, self._link.size)
        places, mine = [], []
        for row, own, rank in zip(rows, drafts, choosers, strict=True):
            row.chooser = rank
            if rank == self._link.rank:
                mine += range(len(places), len(places) + 1 + len(own))
            places += row.places(own)
        proposed = self._chooser.propose(logits, places, inputs, mine)
        # Here for all rows, whoever chose: a position decides what is drawn next, on any rank.
        for row, own in zip(rows, drafts, strict=True):
            row.drawn += 1 + len(own)
        return proposed

    def draft(
        self,
        mine: mx.array,
        rows: list[RandomState],
        offered: list[Drafts],
        left: list[int],
        room: int,
    ) -> list[int]:
        """What to send behind the header of this step, which has room for so many drafts: rank 0
        waits for the step's tokens, and drafts those of the next."""
        if not room:
            return []
        return pack(self._chooser.draft(mine, rows, offered, left, room) or [()] * len(rows), room)

    def drafts(self, told: Sequence[int], rows: int) -> list[tuple[int, ...]]:
        """What came behind a header, by row. Raises Garbled."""
        return unpack(told, rows, self._vocab) if told else [()] * rows

    def share_first(self, mine: mx.array) -> Shared:
        """All ranks' parts of the first tokens of W prompts, [W] int32."""
        return Shared(self._link.seal("first tokens", [], mine), len(mine), self._vocab)

    def share(self, mine: mx.array, drafts: Sequence[int] = ()) -> Shared:
        """All ranks' parts of the tokens, [P] int32, the header behind them, and drafts."""
        sealed = self._link.seal("step", [*self._chooser.header(), *drafts], mine)
        return Shared(sealed, len(mine), self._vocab)
