"""Decoding rows, and the steps that give each of them its next token.

Runs on the main thread of every rank. A step is made while the last one runs, its tokens are handed
out as soon as they are known, and a row that leaves does so at the next step. Where rank 0 drafts,
a step is made when the last one's tokens are known: rows go on with their drafts behind them, and
what was drafted wrongly is cut off again (sampling/drafts.py).
"""

import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import mlx.core as mx

from server.engine import rewind
from server.engine.batch_caches import BatchCaches, Caches, states, trimmed
from server.engine.last_logits import LastLogits
from server.engine.prompts import Ended
from server.engine.quantised_kv import next_caches
from server.engine.row import Row
from server.engine.step import Decoded, Phase, Step, Stepped
from server.protocol.failures import is_shared
from server.protocol.row_lengths import SLACK
from server.sampling.choosers import Step as Sampling
from server.sampling.drafts import Drafts, split
from server.wire.mailbox import Header

log = logging.getLogger(__name__)

STEPS_BETWEEN_SWEEPS = 512  # then MLX gives back what it keeps for reuse
STEPS_SPREAD = 64  # without drafts, until rows that had some share arrays again
NO_DRAFTS: Mapping[Row, Drafts] = {}


class Decoding:
    """slack: tokens by which rows of one shelf may differ at any length."""

    def __init__(self, model: LastLogits, sampling: Sampling, *, slack: int = SLACK) -> None:
        self.model = model.model
        self._last = model
        self.room = 0  # for drafts behind the next header, as the last one told
        self.rows: list[Row] = []  # in the order of every array; some may be gone
        self.step: Step | None = None
        self._sampling = sampling
        self._ways = ways = model.ways
        self.caches = BatchCaches(ways, slack)
        self._first: dict[Row, int] = {}  # tokens of newcomers, not handed out yet
        self._launch_s = 0.0  # how long MLX took to take the last one in
        self._steps = 0
        self._since_drafts = STEPS_SPREAD  # steps

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
        return self._hand_out({row: [token] for row, token in tokens.items()})

    def launch(self) -> None:
        """Hands the next step to MLX, if that has not been done; first makes one put off."""
        step = self.step
        if step is None:
            return
        if step.phase is Phase.PLANNED:
            self._drop_gone()
            self._bring_back()
            for row in self.rows:
                row.ahead = False
            tokens = [step.inputs[row] for row in self.rows]
            drafts, width = self._bearable(step.drafts), 1
            if drafts or any(row.owing for row in self.rows):
                width = self._build_wide(tokens, drafts or [()] * len(tokens))
            else:
                self._build(mx.array(tokens, dtype=mx.int32))
            self._append(tokens)
            self.step.width = step.width and width
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
        step = self.step
        if self.room or step.drafts:
            return self._next_looking(late)
        self._bring_back()
        rows = self.rows
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
        newest = [[token] for token in tokens]
        step_s, waiting = step.seconds, _waiting(rows, newest)
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
        return Stepped(decoded, header, step_s, self._launch_s, lost, error, step.width)

    def _next_looking(self, late: bool) -> Stepped:
        """The same where there are drafts, or may be in the next step, which is made when the
        tokens of this one are known."""
        step, rows = self.step, self.rows
        offered = [step.drafts.get(row, ()) for row in rows]
        left = [row.limit - row.generated + row.ahead for row in rows]
        states_, mine = [row.state for row in rows], step.of(rows)
        drafts = self._sampling.draft(mine, states_, offered, left, self.room)
        shared = self._sampling.share(mine, drafts)
        mx.async_eval(shared.sealed.total)
        tokens, behind = shared.read()
        step_s = step.seconds
        newest = split(tokens, offered)
        told = self._sampling.drafts(behind[Header.SIZE :], len(rows))
        plan = Step(Phase.PLANNED, width=1)
        for i, (row, own) in enumerate(zip(rows, newest, strict=True)):
            row.state.settle(offered[i], own)
            row.tokens += own[:-1]
            self._cut(i, 1 + len(offered[i]) - len(own))
            plan.inputs[row] = own[-1]
            if fits := _before_stop(told[i][: max(0, left[i] - len(own) - 1)], row.stops):
                plan.drafts[row] = fits
        waiting = _waiting(rows, newest)
        self.step = plan
        decoded = self._hand_out(waiting, step.drafts)
        error = None if late or self.step is None else self._try(self.launch)
        lost = [] if error is None else self.lose()
        header = behind[: Header.SIZE]
        return Stepped(decoded, header, step_s, self._launch_s, lost, error, step.width)

    def extract(self, row: Row) -> Caches | None:
        """A copy of a row's caches, lazy: those of the batch go on. None where it cannot be had."""
        # Of a step that runs, nobody knows yet which drafts are right.
        running = self.step is not None and self.step.phase is not Phase.PLANNED
        beyond = len(self.step.drafts.get(row, ())) if running else 0
        try:
            if row.caches is not None:
                return rewind.copied(row, beyond, self._compute)
            return trimmed(self.caches.extract(self.rows.index(row) - self._apart), beyond)
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
        error = self._try(self._build, inputs)
        return error if error is not None or late else self._try(self.launch)

    def _try(self, act: Callable, *arguments: Any) -> Exception | None:
        """What fails on every rank alike is returned."""
        try:
            act(*arguments)
        except Exception as error:
            if not is_shared(error):
                raise
            return error
        return None

    def _build(self, inputs: mx.array) -> None:
        """The next step, lazy. inputs: the rows' last tokens, [B] int32."""
        rows, model, count = list(self.rows), self.model, self._apart
        self._rest()
        self._quantise(rows[:count])
        # Handed to MLX one by one: in a pipeline nothing else orders what ranks receive.
        apart = [
            model(inputs[i : i + 1, None], cache=row.caches)[:, -1, :]
            for i, row in enumerate(rows[:count])
        ]
        together = []
        if count < len(rows):
            logits = self.caches.step(
                lambda caches: model(inputs[count:, None], cache=caches), [1] * (len(rows) - count)
            )
            together = [logits[:, -1, :]]
        logits = mx.concatenate([*apart, *together])
        states_, alone = [row.state for row in rows], self.room > 0
        mine, extras = self._sampling.propose(logits, states_, inputs, alone=alone)
        parts = [*([one] for one in apart), [mine, *extras]]
        self.step = Step(Phase.BUILT, rows, [mine], parts=parts)

    def _build_wide(self, inputs: list[int], drafts: list[Drafts]) -> int:
        """The same with drafts, by row, and with what rows owe. Returns the most places of one."""
        rows = list(self.rows)
        texts = [[token, *own] for token, own in zip(inputs, drafts, strict=True)]
        widths = [row.owing + len(text) for row, text in zip(rows, texts, strict=True)]
        if any(drafts):
            self._since_drafts = 0
        apart: list[mx.array] = []
        if self._apart:
            if self._ways.quantised is not None:
                for row in rows:
                    rewind.catch_up(row, self._compute)  # as what comes next has to see it
            self._quantise(rows)
            for row, (token, *own) in zip(rows, texts, strict=True):
                text = rewind.begin(row, token, own)
                logits = self.model(mx.array([text]), cache=row.caches)
                apart.append(logits[0, len(text) - 1 - len(own) :])
            logits = mx.concatenate(apart)
        else:
            padded = mx.array([text + [0] * (max(widths) - len(text)) for text in texts])
            at = [(i, place) for i, width in enumerate(widths) for place in range(width)]
            self._last.want(*map(list, zip(*at, strict=True)))
            self.caches.step(lambda caches: self._last(padded, caches), widths)
            logits = self._last.take()
        states_, flat = [row.state for row in rows], mx.array(sum(texts, []))
        mine, extras = self._sampling.propose(logits, states_, flat, drafts, alone=True)
        parts = [*([one] for one in apart), [mine, *extras]]
        behind = {row: own for row, own in zip(rows, drafts, strict=True) if own}
        self.step = Step(Phase.BUILT, rows, [mine], drafts=behind, parts=parts)
        return max(widths)

    def _quantise(self, rows: list[Row]) -> None:
        """Rows apart have their caches as they are for their next tokens; the batch sees to its."""
        for row in rows:
            row.caches = next_caches(self._ways.quantised, row.caches)

    def _bearable(self, drafts: dict[Row, Drafts]) -> list[Drafts]:
        """The drafts that the next step has, by row; empty where no row has any."""
        if (quantised := self._ways.quantised) is not None:
            # What comes after the token at which a row's caches are quantised must see that.
            drafts = {
                row: own[: quantised.within(len(row.tokens), 1 + len(own)) - 1]
                for row, own in drafts.items()
            }
        wanted = [i for i, row in enumerate(self.rows) if drafts.get(row)]
        if not wanted:
            return []
        if len(self.rows) == 1 and not self._apart and not self.caches.cuttable:
            self._take_apart()
        if self._apart:
            can = {i for i in wanted if rewind.bears(self.rows[i])}
        elif len(self.rows) > 1 and not (self.caches.cuttable and self._ways.bear_widths):
            can = set()
        else:
            can = self.caches.spread(wanted)
        if not can:
            return []
        return [drafts.get(row, ()) if i in can else () for i, row in enumerate(self.rows)]

    def _rest(self) -> None:
        """A step without drafts. After many of them rows share arrays again."""
        self._since_drafts += 1
        if self._since_drafts == STEPS_SPREAD and not self._ways.rows_apart:
            self.caches.gather()

    def _cut(self, place: int, tokens: int) -> None:
        """A row gives up the last tokens in its caches."""
        row = self.rows[place]
        if row.caches is not None:
            rewind.settle(row, tokens)
        elif tokens:
            self.caches.cut(place - self._apart, tokens)

    @property
    def _apart(self) -> int:
        """Rows that have caches of their own: the first ones, and all where there are drafts."""
        return sum(row.caches is not None for row in self.rows)

    def _take_apart(self) -> None:
        """The only row gets caches of its own, which can go back after a step with drafts."""
        self.rows[0].caches = self.caches.extract(0)
        self.caches.clear()

    def _bring_back(self) -> None:
        """A row that has company comes into the batch, since it has no drafts then."""
        if self._ways.rows_apart or len(self.rows) == 1:
            return
        for row in self.rows[: self._apart]:
            rewind.catch_up(row, self._compute)
            self.caches.join([row.caches])
            row.caches = None
            self.rows = [*(other for other in self.rows if other is not row), row]

    def _compute(self, tokens: Sequence[int], caches: Caches) -> None:
        """Puts tokens into a row's caches, of which nobody wants to know what comes next. It goes
        to MLX at once: in a pipeline nothing else orders what ranks receive."""
        self.model(mx.array([list(tokens)]), cache=caches)
        mx.async_eval(states(caches))

    def _append(self, tokens: list[int]) -> None:
        for row, token in zip(self.rows, tokens, strict=True):
            row.tokens.append(token)  # the next step puts it into the cache

    def _drop_gone(self) -> None:
        """Takes the rows that have left out of the arrays. Steps find their own ones."""
        if any(row.gone for row in self.rows):
            stay = [i for i, row in enumerate(self.rows[self._apart :]) if not row.gone]
            together = len(self.rows) > self._apart
            self.rows = [row for row in self.rows if not row.gone]
            if together:
                self.caches.keep(stay)

    def _hand_out(
        self, tokens: dict[Row, list[int]], drafts: Mapping[Row, Drafts] = NO_DRAFTS
    ) -> list[Decoded]:
        """The next tokens of rows, some of which were drafted. Rows that end with them leave."""
        decoded, finished = [], []
        for row, own in tokens.items():
            wrong = 1 + len(drafts.get(row, ())) - len(own)
            for place, token in enumerate(own, 1):
                finish, caches = row.take(token), None
                if finish is not None:
                    finished.append(row)
                    caches = self.extract(row) if row.store else None
                right, last = place < len(own), place == len(own)
                decoded.append(Decoded(row, token, finish, caches, right, wrong if last else 0))
        self.leave(finished)
        return decoded


def _waiting(rows: list[Row], newest: list[list[int]]) -> dict[Row, list[int]]:
    """The newest tokens of those that wait for them; the others have had theirs already."""
    waiting = {row: own for row, own in zip(rows, newest, strict=True) if not row.ahead}
    for row in rows:
        row.ahead = False
    return waiting


def _before_stop(drafts: Drafts, stops: Collection[int]) -> Drafts:
    """Nothing comes after a token that ends an answer."""
    return tuple(itertools.takewhile(lambda token: token not in stops, drafts))
