"""What has happened to the requests of one model, or of all, in numbers.

Kept by the Recorder, which also says who writes: rank 0's main thread, without a lock, what the
engine does; HTTP threads, under the Recorder's lock, what became of requests. Imports no mlx.
"""

from collections import Counter

from server.observe.account import ANSWERED, Account, Timed
from server.observe.finished import GAPS, WHOLE, Finished
from server.observe.histogram import Histogram
from server.observe.usage import Tokens

# Seconds, for what takes from an instant to minutes.
WAITS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024)


class ModelRecord:
    """all: the one of all models, which hears the same."""

    def __init__(self, all: "ModelRecord | None" = None) -> None:
        self._all = all
        # The main thread's.
        self.time_to_first_token = Histogram(WAITS)
        self.inter_token = Histogram(GAPS)
        self.queue_wait = Histogram(WAITS)
        self.batch_size = Histogram(ROWS)
        self.step_seconds = Histogram(GAPS)
        self.prefill_seconds = Histogram(WAITS)
        self.prefilled_tokens = 0
        self.pauses = 0
        # The HTTP threads'.
        self.closed_by: Counter = Counter()  # (method, route, code, outcome)
        self.finishes: Counter = Counter()
        self.whole = Histogram(WHOLE)
        self.finished_by = Finished()
        self.ended = Tokens()

    # The main thread of rank 0.

    def started(self, ticket: Timed, now: float) -> None:
        """The ranks begin on a ticket, or on its rest after a pause."""
        if not ticket.started:
            self.waited(now - ticket.accepted)
            ticket.started = now

    def token(self, ticket: Timed, now: float) -> None:
        """A ticket got a token. Called for every token."""
        if ticket.first_token:
            self.gap(now - ticket.last_token)
        else:
            ticket.first_token = now
            self.first(now - ticket.accepted)
        ticket.last_token = now

    def waited(self, seconds: float) -> None:
        """A ticket has waited so long for the ranks to begin on it."""
        self.queue_wait.observe(seconds)
        if self._all is not None:
            self._all.waited(seconds)

    def gap(self, seconds: float) -> None:
        """So long was between two tokens of a ticket."""
        self.inter_token.observe(seconds)
        if self._all is not None:
            self._all.gap(seconds)

    def first(self, seconds: float) -> None:
        """So long a ticket has waited for its first token."""
        self.time_to_first_token.observe(seconds)
        if self._all is not None:
            self._all.first(seconds)

    def paused(self) -> None:
        """A running ticket went back to the queue for want of memory."""
        self.pauses += 1
        if self._all is not None:
            self._all.paused()

    def turn(self, rows: int, computed: int, chunk_s: float, step_s: float) -> None:
        """A chunk of prompts, with its tokens and seconds, or a decode step with its seconds and
        the rows that got a token. 0 for what was not."""
        if computed:
            self.prefilled_tokens += computed
            self.prefill_seconds.observe(chunk_s)
        if step_s:
            self.batch_size.observe(rows)
            self.step_seconds.observe(step_s)
        if self._all is not None:
            self._all.turn(rows, computed, chunk_s, step_s)

    # HTTP threads, under the Recorder's lock.

    def end(self, account: Account) -> None:
        """A request is over, whatever its end."""
        outcome, generation = account.outcome, account.generation
        self.closed_by[account.method, account.route, account.code or 0, outcome] += 1
        if generation is not None:
            self.ended.add(account)
            if outcome == ANSWERED:
                self.finished_by.add(generation)
                self.whole.observe(account.seconds)
                self.finishes.update(filter(None, generation.finish_reasons()))
