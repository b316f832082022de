"""What has happened since this process started, in numbers: for /cluster, /metrics and the log.

Two kinds of writers, which share nothing. Rank 0's main thread feeds what the engine does, without
a lock, because it does so for every token. HTTP threads open and close requests, under a lock.
Tokens of running requests are not counted one by one: each request counts its own anyway, and
whoever asks adds them up. Imports no mlx, keeps no text.
"""

import collections
import threading
import time
from collections.abc import Iterable

from server.observe.account import ANSWERED, Account, Timed
from server.observe.finished import GAPS, WHOLE, Finished
from server.observe.histogram import Histogram, Snapshot
from server.observe.usage import Tokens, Usage, Usages

# Seconds, for what takes from an instant to minutes.
WAITS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024)
TINY = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1, 10)


class Recorder:
    """Counters and histograms of one server process."""

    def __init__(self) -> None:
        # The main thread's.
        self.time_to_first_token = Histogram(WAITS)
        self.inter_token = Histogram(GAPS)
        self.queue_wait = Histogram(WAITS)
        self.batch_size = Histogram(ROWS)
        self.step_seconds = Histogram(GAPS)
        self.prefill_seconds = Histogram(WAITS)
        self.meeting_seconds = Histogram(TINY)
        self.bundle_seconds = Histogram(TINY)
        self.prefilled_tokens = 0
        self.pauses = 0
        self.canary_seconds: tuple[float, float] | None = None  # the last one, and what is usual
        self.first_tokens: collections.deque[float] = collections.deque(maxlen=4096)  # newest waits
        # The HTTP threads', under the lock.
        self._lock = threading.Lock()
        self._received: collections.Counter = collections.Counter()
        self._closed: collections.Counter = collections.Counter()
        self._finishes: collections.Counter = collections.Counter()
        self._whole = Histogram(WHOLE)
        self._finished = Finished()
        self._live: dict[int, Account] = {}  # by identity; admitted and not closed
        self._ended = Tokens()
        self._usages = Usages()
        self.connections_refused = 0  # the accepting thread's
        self.log_lines_dropped = 0  # under the lock, too

    # The main thread of rank 0.

    def started(self, ticket: Timed, now: float) -> None:
        """The ranks begin on a ticket, or on its rest after a pause."""
        if not ticket.started:
            ticket.started = now
            self.queue_wait.observe(now - ticket.accepted)

    def token(self, ticket: Timed, now: float) -> None:
        """A ticket got a token. Called for every token."""
        if ticket.first_token:
            self.inter_token.observe(now - ticket.last_token)
        else:
            ticket.first_token = now
            self.time_to_first_token.observe(now - ticket.accepted)
            self.first_tokens.append(now - ticket.accepted)
        ticket.last_token = now

    def paused(self) -> None:
        """A running ticket went back to the queue for want of memory."""
        self.pauses += 1

    def canary(self, seconds: float, usual: float) -> None:
        """A canary has ended well, in so many seconds."""
        self.canary_seconds = (seconds, usual)

    def turn(self, rows: int, computed: int, chunk_s: float, step_s: float) -> None:
        """A chunk of prompts, with its tokens and seconds, or a decode step with its seconds and
        the rows that got a token. 0 for what was not."""
        if computed:
            self.prefilled_tokens += computed
            self.prefill_seconds.observe(chunk_s)
        if step_s:
            self.batch_size.observe(rows)
            self.step_seconds.observe(step_s)

    # HTTP threads.

    def expect_keys(self, labels: Iterable[str]) -> None:
        """The labels of these keys are shown from the start."""
        with self._lock:
            self._usages.expect(labels)

    def received(self, account: Account) -> None:
        """A request has reached its route."""
        with self._lock:
            self._received[account.method, account.route] += 1

    def admitted(self, account: Account) -> None:
        """A request got its place in the line."""
        with self._lock:
            self._live[id(account)] = account

    def closed(self, account: Account) -> None:
        """A request is over, whatever its end."""
        account.seconds = time.monotonic() - account.started
        outcome, generation = account.outcome, account.generation
        with self._lock:
            self._closed[account.method, account.route, account.code or 0, outcome] += 1
            self._usages.end(account)
            if generation is not None:
                self._live.pop(id(account), None)
                self._ended.add(account)
                if outcome == ANSWERED:
                    self._finished.add(generation)
                    self._whole.observe(account.seconds)
                    self._finishes.update(filter(None, generation.finish_reasons()))

    def connection_refused(self) -> None:
        """One more than can be open. By the accepting thread alone."""
        self.connections_refused += 1

    def line_dropped(self) -> None:
        """The request log has lost a line."""
        with self._lock:
            self.log_lines_dropped += 1

    # Any thread, to show it.

    def tokens(self) -> Tokens:
        """Of all requests so far, the running ones included."""
        with self._lock:
            total = Tokens(self._ended.prompt, self._ended.cached, self._ended.generated)
            for account in self._live.values():
                total.add(account)
        return total

    def usages(self) -> dict[str, Usage]:
        """By the labels of keys, the running requests' tokens included."""
        with self._lock:
            return self._usages.with_running([*self._live.values()])

    def live(self) -> list[Account]:
        """Requests that have their place in the line and are not over, in the order they came."""
        with self._lock:
            return [*self._live.values()]

    def requests(self) -> tuple[collections.Counter, collections.Counter]:
        """Received, by (method, route), and closed, by (method, route, code, outcome); code 0:
        nothing was sent."""
        with self._lock:
            return self._received.copy(), self._closed.copy()

    def finished(self) -> dict[str, Snapshot]:
        """The histograms of answered requests, by name."""
        with self._lock:
            return self._finished.snapshots()

    def answers(self) -> tuple[collections.Counter, Snapshot]:
        """Choices of answered requests by finish reason, and how long the requests took."""
        with self._lock:
            return self._finishes.copy(), self._whole.snapshot()
