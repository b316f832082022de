"""Rank 0's drafts: whose next tokens are drafted, how many, and whether any are.

Rank 0's main thread alone. What a row is likely to go on with comes from its grammar, from its own
text (guesses.py), or from a draft model (model_drafts.py), in this order; what a step costs from
the clock (step_costs.py). Of the widths that a step may have the one is taken that brings most
tokens a second, by these; that is one place a row as soon as drafts are seldom right, or rows are
many. Then steps are made ahead again, and nothing is spent but the look at each token.

What is expected may be wrong for long, in a text that nearly repeats itself. So there is an account
of what drafts have brought and cost in truth: each step without them pays in a little, and where
it is empty there are none. No text is slower by more than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.turn import Turn
from server.observe.views import DraftUse
from server.protocol.events import Token
from server.protocol.failures import is_shared
from server.protocol.requests import Common
from server.sampling.choosers import Wanting
from server.sampling.row_state import Row
from server.scheduler.guesses import Guess, Offer
from server.scheduler.model_drafts import Ask, ModelDrafts
from server.scheduler.pacing import PrefillPace
from server.scheduler.step_costs import AHEAD, StepCosts

WIDTHS = (2, 3, 4, 6, 8, 12, 16)  # places of a row: few, as each is a cost of its own to learn
MOST_ROWS = 8  # beside each other: beyond, no model gains by drafts
WORTH = 1.05  # times the tokens a second without, or the guesses are not worth their risk
SETTLED = 8  # steps without drafts that are measured before any is made
WEIGHT = 0.1  # of the newest step in what drafts would have brought lately
# The account, in steps without drafts: what is in it at first, and what each of these pays in, up
# to that; the most that may be in it, from steps with drafts that brought more than they took.
FIRST, SHARE, WON_MOST = 1.0, 0.01, 8.0
# What a step without drafts takes changes, too: after so many with them some are made ahead.
OPEN_MOST, AGAIN = 256, 4


class Speculation:
    """costs: None for no drafts at all. several: whether a step may have other rows beside one with
    drafts. model: asks a draft model, where there is one."""

    def __init__(
        self,
        costs: StepCosts | None = None,
        several: bool = True,
        model: ModelDrafts | None = None,
    ) -> None:
        self._costs = costs
        self._model = model or ModelDrafts(None, PrefillPace(0, 1))
        self._most_rows = MOST_ROWS if several else 1
        self._gain = self._price = 1.0  # lately: of a step with drafts, as parts of one without
        self._account = FIRST
        self._open = 0  # steps since they were made ahead
        self._ahead = 0  # steps since they were not
        self._last: float | None = None  # when a step was over, and nothing came between
        self.drafted = self.right = 0  # tokens
        self.steps = 0  # that had drafts

    @property
    def most(self) -> int:
        """Tokens by which a row's caches may be ahead of what is known of it."""
        return WIDTHS[-1] if self._costs else 0

    def look(self) -> DraftUse:
        """What there was so far."""
        return DraftUse(self.drafted, self.right, self.steps)

    def guess(self, common: Common, prompt: Sequence[int]) -> Guess | None:
        """For a new request; None for one that gets no drafts."""
        return Guess(prompt, self._model.rate) if self._costs and common.speculate else None

    def observe(self, turn: Turn, now: float) -> None:
        """A chunk or a step is over. now: by time.monotonic()."""
        if self._costs is None:
            return
        if turn.header is None:
            self._last = None  # the step that comes has waited for a chunk
            return
        tokens = [event for _, event in turn.events if isinstance(event, Token)]
        rows = len({uid for uid, _ in turn.events})
        self._ahead = 0 if turn.width else self._ahead + 1
        self.steps += turn.width > 1
        self.right += sum(token.drafted for token in tokens)
        self.drafted += sum(token.drafted + token.wrong for token in tokens)
        drafting_s = self._model.spent_s()
        if rows:
            if self._last is not None and turn.interrupted:
                self._costs.pass_over(rows, turn.width)
            elif self._last is not None:
                self._costs.observe(rows, turn.width, now - self._last - drafting_s)
            self._settle(rows, turn.width, len(tokens), drafting_s)
        self._last = now

    def room(self, decoding: Sequence[Row]) -> int:
        """How many drafts of these rows are to be sent behind the header after the next one. 0: the
        steps are made ahead."""
        self._model.keep(decoding)
        room = self._room(decoding)
        self._open = self._open + 1 if room else 0
        return room

    def draft(self, wanting: list[Wanting], most: int) -> list[Sequence[int]]:
        """The drafts of the next step."""
        rows = len(wanting)
        if self._costs is None or not 0 < rows <= self._most_rows:
            return [()] * rows
        known = [Offer(likely, tokens) for tokens, likely in map(self._expect, wanting)]
        asked = [self._model_offer(one.row, one.drawn, one.left) for one in wanting]
        plan = self._plan(known, asked)
        share = min(plan.width - 1, most // rows)
        drafts = [() if one.tokens is None else one.tokens[:share] for one in plan.offers]
        asks = {
            i: Ask(wanting[i].row, wanting[i].drawn, count)
            for i, one in enumerate(plan.offers)
            if one.tokens is None and (count := min(share, len(one.likely)))
        }
        made = self._model.draft(list(asks.values()), reads=self._reads)
        for i, tokens in zip(asks, made, strict=True):
            drafts[i] = self._allowed(wanting[i].row, tokens)
        return drafts

    def _settle(self, rows: int, width: int, tokens: int, drafting_s: float) -> None:
        """What a step has brought of tokens, and taken of time as steps of its kind do: the clock
        of one step says little. drafting_s: seconds of a draft model. One that read a text instead
        has brought no drafts yet; that is weighed before it is asked."""
        if width == AHEAD:
            self._account = max(self._account, min(FIRST, self._account + SHARE))
            return
        seconds = self._costs.of(rows, width) + (drafting_s if width > 1 else 0.0)
        price = seconds / self._costs.of(rows, AHEAD)
        self._account = min(WON_MOST, self._account + tokens / rows - price)

    def _room(self, decoding: Sequence[Row]) -> int:
        rows = len(decoding)
        if self._costs is None or not 0 < rows <= self._most_rows:
            return 0
        measured = self._costs.measured.get(rows, 0) >= SETTLED
        if (
            not measured
            or self._account <= 0
            or self._open >= OPEN_MOST
            or (not self._open and self._ahead < AGAIN)
        ):
            return 0
        known = [Offer(self._look_at(row)) for row in decoding]
        asked = [self._model_offer(row, None, WIDTHS[-1]) for row in decoding]
        plan = self._plan(known, asked)
        gain, price = plan.tokens / rows, plan.seconds / self._costs.of(rows, AHEAD)
        self._gain += WEIGHT * (gain - self._gain)
        self._price += WEIGHT * (price - self._price)
        pays = gain > WORTH * price or self._gain > WORTH * self._price
        return rows * (WIDTHS[-1] - 1) if pays else 0

    def _look_at(self, row: Row) -> list[float]:
        """How likely what is expected of a row is, at all places that a step may have."""
        guess = row.guess
        if guess is None or not row.looks_ahead:
            return []
        try:
            if row.constrained and not guess.is_forced:
                guess.force(row.forced_after(guess.generated))
        except Exception as error:
            if not is_shared(error):
                raise
            return []  # its next step fails for it, and says so
        return guess.expect(WIDTHS[-1] - 1)[1]

    def _expect(self, one: Wanting) -> tuple[list[int], list[float]]:
        """The tokens that may be drafted for a row, and how likely they are."""
        row, guess = one.row, one.row.guess
        if guess is None or not guess.hear(one.newest, one.drawn) or not row.looks_ahead:
            return [], []
        try:
            if row.constrained:
                guess.force(row.foresee(one.newest, one.drawn))
            tokens, likely = guess.expect(max(0, min(one.left, WIDTHS[-1]) - 1))
            allowed = row.allowed(tokens) if tokens else 0
        except Exception as error:
            if not is_shared(error):
                raise
            return [], []  # as above
        return tokens[:allowed], likely[:allowed]

    @property
    def _reads(self) -> bool:
        """Whether a draft model may read a piece of a text. Prompts go first: a step that has
        waited for a chunk does not wait for that."""
        return self._last is not None

    def _model_offer(self, row: Row, drawn: int | None, left: int) -> Offer | None:
        """What a draft model may draft for a row that has drawn so many tokens, if all of them were
        heard. Not where a grammar forces what comes: that is right, and costs nothing."""
        guess = row.guess
        if guess is None or not row.looks_ahead or drawn not in (None, guess.generated):
            return None
        if row.constrained and guess.is_forced:
            return None
        return self._model.offer(row, min(left, WIDTHS[-1]) - 1, reads=self._reads)

    def _allowed(self, row: Row, tokens: list[int]) -> list[int]:
        """As many of these as its grammar allows."""
        try:
            return tokens[: row.allowed(tokens)] if tokens else tokens
        except Exception as error:
            if not is_shared(error):
                raise
            return []  # as above

    def _plan(self, known: list[Offer], asked: list[Offer | None]) -> "_Plan":
        """What brings most tokens a second: of what is known, or with a draft model's where it is
        likelier to be right. asked: its, by row."""
        plan = self._choose(known)
        pace = plan.tokens / plan.seconds
        worth = [one and one.worth(pace) for one in asked]
        better = [
            one if one is not None and one.brings(2) > own.brings(2) else own
            for own, one in zip(known, worth, strict=True)
        ]
        if all(one is own for own, one in zip(known, better, strict=True)):
            return plan
        return max(plan, self._choose(better), key=lambda one: one.tokens / one.seconds)

    def _choose(self, offers: list[Offer]) -> "_Plan":
        """The width that brings most of these."""
        rows = len(offers)
        best = _Plan(1, float(rows), self._costs.of(rows, 1), offers)
        for width in WIDTHS:
            tokens = sum(one.brings(width) for one in offers)
            seconds = self._costs.of(rows, width) + sum(one.takes_s(width) for one in offers)
            if tokens * best.seconds > best.tokens * seconds:
                best = _Plan(width, tokens, seconds, offers)
            if all(len(one.likely) < width for one in offers):
                break  # more places than there are drafts
        return best


@dataclass(frozen=True)
class _Plan:
    """A step: the places of a row, the tokens to be expected of it, and its seconds."""

    width: int
    tokens: float
    seconds: float
    offers: list[Offer]
