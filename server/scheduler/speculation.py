"""Rank 0's drafts: whose next tokens are drafted, how many, and whether any are.

Rank 0's main thread alone; knows no model. What a row is likely to go on with comes from its own
text and its grammar (guesses.py), what a step costs from the clock (step_costs.py). Of the widths
that a step may have the one is taken that brings most tokens a second, by these two; that is one
place a row as soon as drafts are seldom right, or rows are many. Then steps are made ahead again,
and nothing is spent but the look at each token.

What is expected may be wrong for long, in a text that nearly repeats itself. So there is an account
of what drafts have brought and cost in truth: each step without them pays in a little, and where
it is empty there are none. No text is slower by more than that.
"""

from collections.abc import Sequence

from server.engine.turn import Turn
from server.observe.views import DraftUse
from server.protocol.events import Token
from server.protocol.failures import is_shared
from server.protocol.requests import Common
from server.sampling.choosers import Wanting
from server.sampling.row_state import Row
from server.scheduler.guesses import Guess
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
    drafts."""

    def __init__(self, costs: StepCosts | None = None, several: bool = True) -> None:
        self._costs = costs
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
        return Guess(prompt) if self._costs and common.speculate else None

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
        if rows:
            if self._last is not None and turn.interrupted:
                self._costs.pass_over(rows, turn.width)
            elif self._last is not None:
                self._costs.observe(rows, turn.width, now - self._last)
            self._settle(rows, turn.width, len(tokens))
        self._last = now

    def room(self, decoding: Sequence[Row]) -> int:
        """How many drafts of these rows are to be sent behind the header after the next one. 0: the
        steps are made ahead."""
        room = self._room(decoding)
        self._open = self._open + 1 if room else 0
        return room

    def draft(self, wanting: list[Wanting], most: int) -> list[Sequence[int]]:
        """The drafts of the next step."""
        rows = len(wanting)
        if self._costs is None or not 0 < rows <= self._most_rows:
            return [()] * rows
        expected = [self._expect(one) for one in wanting]
        width, _ = self._choose(rows, [likely for _, likely in expected])
        share = min(width - 1, most // rows)
        return [tokens[:share] for tokens, _ in expected]

    def _settle(self, rows: int, width: int, tokens: int) -> None:
        """What a step has brought of tokens, and taken of time as steps of its kind do: the clock
        of one step says little."""
        if width == AHEAD:
            self._account = max(self._account, min(FIRST, self._account + SHARE))
            return
        price = self._costs.of(rows, width) / self._costs.of(rows, AHEAD)
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
        likely = [self._look_at(row) for row in decoding]
        width, tokens = self._choose(rows, likely)
        gain, price = tokens / rows, self._costs.of(rows, width) / self._costs.of(rows, AHEAD)
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

    def _choose(self, rows: int, likely: Sequence[list[float]]) -> tuple[int, float]:
        """The width of a step that brings most, and the tokens to be expected of it."""
        best, brings = 1, float(rows)
        for width in WIDTHS:
            tokens = rows + sum(sum(own[: width - 1]) for own in likely)
            if tokens * self._costs.of(rows, best) > brings * self._costs.of(rows, width):
                best, brings = width, tokens
            if all(len(own) < width for own in likely):
                break  # more places than there are drafts
        return best, brings
