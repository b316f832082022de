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

from server.observe.account import Account
from server.observe.histogram import Histogram, Snapshot
from server.observe.model_record import ModelRecord
from server.observe.usage import Tokens, Usage, Usages

TINY = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1, 10)


class Recorder(ModelRecord):
    """Counters and histograms of one server process: of all models, and of each."""

    def __init__(self) -> None:
        super().__init__()
        # The main thread's.
        self.meeting_seconds = Histogram(TINY)
        self.bundle_seconds = Histogram(TINY)
        self.canary_seconds: tuple[float, float] | None = None  # the last one, and what is usual
        self.first_tokens: collections.deque[float] = collections.deque(maxlen=4096)  # newest waits
        # The HTTP threads', under the lock.
        self._lock = threading.Lock()
        self._models: dict[str, ModelRecord] = {}
        self._first = ""  # the model that is meant where none is named
        self._received: collections.Counter = collections.Counter()
        self._live: dict[int, Account] = {}  # by identity; admitted and not closed
        self._usages = Usages()
        self.connections_refused = 0  # the accepting thread's
        self.log_lines_dropped = 0  # under the lock, too

    # The main thread of rank 0.

    def first(self, seconds: float) -> None:
        super().first(seconds)
        self.first_tokens.append(seconds)

    def canary(self, seconds: float, usual: float) -> None:
        """A canary has ended well, in so many seconds."""
        self.canary_seconds = (seconds, usual)

    # Any thread.

    def model(self, name: str) -> ModelRecord:
        """What happens to one of the models that are served."""
        with self._lock:
            return self._model(name)

    def _model(self, name: str) -> ModelRecord:
        return self._models.setdefault(name or self._first, ModelRecord(self))

    # HTTP threads.

    def expect_model(self, name: str) -> None:
        """The first of the models."""
        with self._lock:
            self._first = name

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
        with self._lock:
            self.end(account)
            self._model(account.model).end(account)
            self._usages.end(account)
            self._live.pop(id(account), None)

    def connection_refused(self) -> None:
        """One more than can be open. By the accepting thread alone."""
        self.connections_refused += 1

    def line_dropped(self) -> None:
        """The request log has lost a line."""
        with self._lock:
            self.log_lines_dropped += 1

    # Any thread, to show it.

    def tokens(self, model: str | None = None) -> Tokens:
        """Of all requests so far, the running ones included; model: of those for one."""
        with self._lock:
            ended = self.ended if model is None else self._model(model).ended
            total = Tokens(ended.prompt, ended.cached, ended.generated)
            for account in self._live.values():
                if model is None or (account.model or self._first) == model:
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

    def requests(self, model: str | None = None) -> tuple[collections.Counter, collections.Counter]:
        """Received, by (method, route), and closed, by (method, route, code, outcome); code 0:
        nothing was sent. model: closed ones for one of the models alone."""
        with self._lock:
            closed = self.closed_by if model is None else self._model(model).closed_by
            return self._received.copy(), closed.copy()

    def finished(self, model: str) -> dict[str, Snapshot]:
        """The histograms of answered requests, by name."""
        with self._lock:
            return self._model(model).finished_by.snapshots()

    def answers(self, model: str) -> tuple[collections.Counter, Snapshot]:
        """Choices of answered requests by finish reason, and how long the requests took."""
        with self._lock:
            one = self._model(model)
            return one.finishes.copy(), one.whole.snapshot()

    def names(self) -> list[str]:
        """The models to which anything has happened."""
        with self._lock:
            return list(self._models)
