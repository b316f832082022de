"""Rank 0's decisions: which request starts, which is dropped, and who gets which token.

Lives on rank 0's main thread, between the Line of tickets and the lockstep loop. It never touches
MLX: it composes messages that every rank, rank 0 included, then carries out. A worker has a
Spectator in its place, so the loop holds no test of the rank.
"""

import collections
import logging
import time

from server.errors import ApiError, engine_failed
from server.messages import Cancel, Message, Shutdown, Submit
from server.sampling import Row
from server.status import Status
from server.tickets import Failed, Line, Prefilled, Ticket, Token

# Idle ranks nap between two meetings: the first milliseconds after work are likely to bring more.
NAP_FIRST_MS = 1
NAP_LAST_MS = 30
SMOOTHING = 0.1  # weight of the newest measurement in running averages

log = logging.getLogger(__name__)


class Director:
    """vocab: size of the logits' last axis, for sampling state."""

    def __init__(self, line: Line, status: Status, vocab: int) -> None:
        self._line = line
        self._status = status
        self._vocab = vocab
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._running: dict[int, Ticket] = {}
        self._rows: dict[int, Row] = {}
        self._produced: dict[int, int] = {}
        self._shutdown: str | None = None
        self._broken: list[int] = []
        self._idle_ms = NAP_FIRST_MS
        self._step_s = 0.05  # running averages, for Retry-After
        self._answer_tokens = 128.0
        self._last_step = 0.0
        line.estimate_wait = self._estimate_wait

    # What the loop asks of it.

    def compose(self) -> list[Message]:
        """The next messages to every rank: drops first, so that their slots are free."""
        self._line.arrived.clear()
        self._waiting.extend(self._line.take())
        messages: list[Message] = [Cancel(uid) for uid in self._drop()]
        while self._waiting and len(self._running) < self._line.max_running:
            ticket = self._waiting.popleft()
            self._running[ticket.uid] = ticket
            self._rows[ticket.uid] = Row(ticket.sampling, ticket.prompt, self._vocab)
            self._produced[ticket.uid] = 0
            messages.append(Submit(ticket.uid, ticket.prompt, ticket.max_tokens, ticket.ignore_eos))
        if self._shutdown is not None:
            messages.append(Shutdown(self._shutdown))
        if messages:
            self._idle_ms = NAP_FIRST_MS
        self._count()
        return messages

    def deliver(self, events: list[tuple[int, Token | Prefilled]]) -> None:
        """Hands tokens to their tickets. A uid that was dropped meanwhile is skipped."""
        now = time.monotonic()
        if events:
            if self._running and self._last_step:
                self._step_s += SMOOTHING * (min(now - self._last_step, 5.0) - self._step_s)
            self._last_step = now
        for uid, event in events:
            ticket = self._running.get(uid)
            if ticket is None:
                continue
            if isinstance(event, Token):
                self._produced[uid] += 1
                if event.finish is not None:
                    self._answer_tokens += SMOOTHING * (self._produced[uid] - self._answer_tokens)
                    self._forget(ticket)
            ticket.put(event)
        self._count()

    def nap_ms(self) -> int:
        """How long all ranks nap after the coming meeting; grows while nothing happens."""
        if self._running or self._waiting or self._line.arrived.is_set():
            self._last_step = 0.0 if not self._running else self._last_step
            return 0
        self._last_step = 0.0
        self._idle_ms = min(self._idle_ms * 2, NAP_LAST_MS)
        return self._idle_ms

    def nap(self, ms: int) -> None:
        """Naps, but looks up when a ticket arrives."""
        self._line.arrived.wait(ms / 1000)

    # What the engine's sampler asks of it.

    def row(self, uid: int) -> Row:
        """The sampling state of a request that compose() started."""
        return self._rows[uid]

    def failed(self, row: Row, error: Exception) -> None:
        """Sampling failed for one row: that request ends with an error, the others go on."""
        for uid, candidate in self._rows.items():
            if candidate is row and uid not in self._broken:
                log.error("request %d failed in sampling: %r", uid, error)
                self._running[uid].put(Failed(engine_failed(f"Sampling failed: {error}")))
                self._broken.append(uid)

    # What ends it.

    def stop(self, reason: str) -> None:
        """Thread-safe: the next bundle tells every rank to leave the loop."""
        self._shutdown = reason
        self._line.arrived.set()

    def fail_all(self, error: ApiError) -> None:
        """Answers everything held with error. For the end of the process; thread-safe."""
        self._line.fail_all(error)

    def _drop(self) -> list[int]:
        """Removes cancelled and broken requests; returns the uids that ranks must drop."""
        for ticket in [t for t in self._waiting if t.cancelled.is_set()]:
            self._waiting.remove(ticket)
            self._line.release(ticket)
        gone = [t for t in self._running.values() if t.cancelled.is_set() or t.uid in self._broken]
        self._broken.clear()
        for ticket in gone:
            self._forget(ticket)
        return [ticket.uid for ticket in gone]

    def _forget(self, ticket: Ticket) -> None:
        del self._running[ticket.uid], self._rows[ticket.uid], self._produced[ticket.uid]
        self._line.release(ticket)

    def _estimate_wait(self) -> float:
        """Seconds until a slot is likely to be free, from what is running. Any thread."""
        running = list(self._running.values())
        if not running:
            return self._step_s
        left = min(
            max(1.0, min(t.max_tokens, self._answer_tokens) - self._produced.get(t.uid, 0))
            for t in running
        )
        return left * self._step_s

    def _count(self) -> None:
        self._status.running = len(self._running)
        self._status.waiting = max(0, self._line.held() - len(self._running))


class Spectator:
    """A worker's director: decides nothing, delivers nothing, naps as told."""

    def compose(self) -> list[Message]:
        return []

    def deliver(self, events: list[tuple[int, Token | Prefilled]]) -> None:
        pass

    def nap_ms(self) -> int:
        return 0

    def nap(self, ms: int) -> None:
        time.sleep(ms / 1000)
