"""Prompts that are not done: which of them a chunk has, and how much of each.

Runs on the main thread of every rank. A turn's chunk has a size that the caller sets, is shared by
the prompts, and gives a prompt that ends in it its first token, or its hidden state.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from server.engine.batch_caches import ChunkCaches, states
from server.engine.last_logits import LastLogits
from server.engine.quantised_kv import next_caches
from server.engine.row import Row
from server.protocol.row_lengths import are_alike
from server.sampling.choosers import Step
from server.sampling.row_assignment import pick

PROMPTS_TOGETHER = 8  # share a chunk at most; each is padded to the widest
LEAST_SHARE = 16  # tokens of a chunk for each of them
STRETCH = 1.25  # a chunk grows so much rather than leave a prompt's last tokens for the next


@dataclass(frozen=True)
class Done:
    """What a chunk did for one prompt. at_end: one of its segments is done."""

    row: Row
    progress: tuple[int, int]
    at_end: bool


@dataclass(frozen=True)
class Ended:
    """Prompts that a chunk has ended: mine is this rank's part of their first tokens, [W] int32,
    and tokens are these."""

    rows: list[Row]
    mine: mx.array
    tokens: list[int]


@dataclass(frozen=True)
class Taken:
    """Of the prompts that a chunk has ended, in order: logits of those that go on, [., V], and the
    hidden states of those that are embedded, [., H]. Lazy; of none an empty list."""

    logits: list[mx.array]
    hidden: list[mx.array]


@dataclass(frozen=True)
class Chunk:
    """What a turn has computed: how far each of its prompts has come, those that have ended in it,
    the hidden states of those that were to be embedded, and the tokens computed, padding
    included."""

    done: Sequence[Done] = ()
    ended: Ended | None = None
    embedded: Sequence[tuple[Row, np.ndarray]] = ()
    computed: int = 0


class Prompts:
    """model: computes no logits but those that are asked for. full: tokens of a full chunk."""

    def __init__(self, model: LastLogits, step: Step, *, most: int, full: int) -> None:
        self.model = model
        self.waiting: deque[Row] = deque()
        self.begun: list[Row] = []  # are in every chunk, until they are done
        self._step = step
        self._most = min(PROMPTS_TOGETHER, most)
        self._full = full
        self._chunk: list[Row] = []  # the rows of the last one

    def __len__(self) -> int:
        return len(self.begun) + len(self.waiting)

    @property
    def newcomers(self) -> int:
        """Those that will decode."""
        return sum(not row.embed for row in (*self.begun, *self.waiting))

    def put(self, row: Row) -> None:
        """One more, behind the others."""
        self.waiting.append(row)

    def remove(self, row: Row) -> None:
        """Drops a prompt, if it is here."""
        self.begun = [one for one in self.begun if one is not row]
        if row in self.waiting:
            self.waiting.remove(row)

    def lose(self) -> list[Row]:
        """Gives up the prompts of the last chunk, which has failed. Returns them."""
        lost, self._chunk, self.begun = self._chunk, [], []
        return lost

    def compute(self, tokens: int) -> Chunk:
        """One chunk of about that many tokens."""
        self._chunk = list(self.begun)
        self._gather(tokens)
        rows = self.begun
        if not rows:
            return Chunk()
        share = _share(tokens, len(rows))
        most = min(share * STRETCH, self._full)
        parts, done, quantised = [], [], self.model.ways.quantised
        for row in rows:
            length = len(row.segments[0])
            size = share if length > most else length
            segments = len(row.segments)
            if quantised is not None:
                size = quantised.within(len(row.tokens), size)
            row.caches = next_caches(quantised, row.caches)
            parts.append(row.cut(self._full if self.model.ways.whole else size))
            done.append(Done(row, (row.done, row.total), len(row.segments) < segments))
        ends = [i for i, row in enumerate(rows) if not row.segments]
        together = len(rows) > 1 and self._bear_company(rows)
        taken = (self._together if together else self._apart)(rows, parts, ends)
        embedded = _read([rows[i] for i in ends if rows[i].embed], taken.hidden)
        on = [i for i in ends if not rows[i].embed]
        ended = self._choose([rows[i] for i in on], [parts[i][-1] for i in on], taken.logits)
        self.begun = [row for row in rows if row.segments]
        lengths = list(map(len, parts))
        computed = len(parts) * max(lengths) if together else sum(lengths)
        return Chunk(done, ended, embedded, computed)

    def _gather(self, tokens: int) -> None:
        """Adds waiting prompts to those that are begun.

        In order, and one long prompt at a time; a prompt that would be done in this very chunk
        joins, wherever it stands. So a long one holds up no short ones, and they can't starve it.
        """
        widest = 0
        for row in list(self.waiting):
            count, length = len(self.begun), row.left
            if count == self._most:
                break
            if count == 0 or max(widest, length) <= _share(tokens, count + 1) * STRETCH:
                self.waiting.remove(row)
                self.begun.append(row)
                self._chunk.append(row)
                if length <= tokens * STRETCH:
                    widest = max(widest, length)

    def _apart(self, rows: Sequence[Row], parts: list[list[int]], ends: list[int]) -> Taken:
        """The chunk, a part of each row's prompt, one after another. Returns what there is to take
        of the rows at `ends`."""
        logits, hidden = [], []
        for i, (row, part) in enumerate(zip(rows, parts, strict=True)):
            self.model.want([0] if i in ends else [], [len(part) - 1])
            self.model(mx.array([part]), row.caches)
            row.tokens += part
            one = self._take([row] if i in ends else [])
            mx.eval(states(row.caches), one.logits, one.hidden)
            mx.clear_cache()
            logits += one.logits
            hidden += one.hidden
        return Taken(logits, hidden)

    def _bear_company(self, rows: Sequence[Row]) -> bool:
        """Whether these are computed in one pass."""
        ways, lengths = self.model.ways, [len(row.tokens) for row in rows]
        if ways.prompts_apart:
            return False
        # Where their keys are in one array, that is as long as the longest.
        apart = ways.shelves and (ways.by_shelf or not ways.latent)
        return apart or are_alike(min(lengths), max(lengths))

    def _together(self, rows: Sequence[Row], parts: list[list[int]], ends: list[int]) -> Taken:
        """The same in one pass."""
        widths = list(map(len, parts))
        caches = ChunkCaches([row.caches for row in rows], widths, self.model.ways)
        self.model.want(ends, [widths[i] - 1 for i in ends])
        padded = [part + [0] * (max(widths) - len(part)) for part in parts]
        self.model(mx.array(padded), caches.layers)
        for row, part in zip(rows, parts, strict=True):
            row.tokens += part
        mx.eval(states(caches.layers))
        mx.clear_cache()
        caches.finish()
        return self._take([rows[i] for i in ends])

    def _take(self, rows: list[Row]) -> Taken:
        """Of the model's last pass, for the rows that have ended in it."""
        on = [i for i, row in enumerate(rows) if not row.embed]
        embed = [i for i, row in enumerate(rows) if row.embed]
        return Taken(
            [pick(self.model.take(), on)] if on else [],
            [pick(self.model.take_hidden(), embed)] if embed else [],
        )

    def _choose(self, rows: list[Row], inputs: list[int], logits: list[mx.array]) -> Ended | None:
        if not rows:
            return None
        states_ = [row.state for row in rows]
        mine, extras = self._step.propose(mx.concatenate(logits), states_, mx.array(inputs))
        # By themselves, as the step that would carry them takes long.
        first = self._step.share_first(mine)
        mx.eval(first.sealed.total, mine, *extras)
        return Ended(rows, mine, first.read()[0])


def _read(rows: list[Row], hidden: list[mx.array]) -> list[tuple[Row, np.ndarray]]:
    """Waits for hidden states. Every rank does: in a pipeline and where the layers are split, each
    computes a part of all that lies behind them."""
    vectors = [np.array(one.astype(mx.float32)) for one in hidden]
    return list(zip(rows, np.concatenate(vectors), strict=True)) if rows else []


def _share(tokens: int, prompts: int) -> int:
    """Tokens of a chunk for each of its prompts."""
    return max(LEAST_SHARE, tokens // prompts)
