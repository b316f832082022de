"""Tickets: an accepted request, and the bounded line in which it waits for the engine.

HTTP threads of rank 0 put tickets in and read their events; the main thread of rank 0 takes them
out and feeds events in. Nothing else is shared between the two sides. Imports no mlx.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import ApiError, queue_full
from server.requests import Sampling

DEFAULT_RETRY_S = 5.0


@dataclass(frozen=True)
class Token:
    """One generated token. finish is None, "stop" (end of text) or "length"."""

    id: int
    finish: str | None


@dataclass(frozen=True)
class Prefilled:
    """Progress of the prompt: tokens done, of total."""

    done: int
    total: int


@dataclass(frozen=True)
class Failed:
    """The request ended without an answer."""

    error: ApiError


Event = Token | Prefilled | Failed


class Ticket:
    """One request on its way through the engine.

    prompt: token ids. max_tokens: limit on generated tokens, already clamped to the context.
    """

    _ids = itertools.count(1)

    def __init__(
        self, prompt: list[int], max_tokens: int, sampling: Sampling, ignore_eos: bool = False
    ) -> None:
        self.uid = next(self._ids)
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.ignore_eos = ignore_eos
        self.accepted = time.monotonic()
        self.cancelled = threading.Event()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Called by the engine's side."""
        self._events.put(event)

    def get(self, timeout: float) -> Event | None:
        """The next event, or None after timeout seconds. Called by the HTTP side."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None


class Line:
    """The bounded queue between HTTP threads and the engine.

    A ticket counts from admit() to release(), so that at most max_running + max_waiting are held,
    however a burst falls between two turns of the engine.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.arrived = threading.Event()  # set when the engine's side has something to look at
        self.estimate_wait: Callable[[], float] = lambda: DEFAULT_RETRY_S
        self._queue: queue.Queue[Ticket] = queue.Queue(maxsize=max_running + max_waiting)
        self._lock = threading.Lock()
        self._held: dict[int, Ticket] = {}
        self._unanswered: set[int] = set()
        self._closed: ApiError | None = None

    def admit(self, ticket: Ticket) -> None:
        """Takes the ticket, or raises ApiError: 429 when full, the closing error when closed."""
        with self._lock:
            if self._closed is not None:
                # Raised many times over; each would add its frames to the traceback.
                raise self._closed.with_traceback(None)
            if len(self._held) >= self.max_running + self.max_waiting:
                running = min(len(self._held), self.max_running)
                raise queue_full(
                    len(self._held) - running, running, min(60.0, max(1.0, self.estimate_wait()))
                )
            self._held[ticket.uid] = ticket
            self._unanswered.add(ticket.uid)
        self._queue.put_nowait(ticket)
        self.arrived.set()

    def cancel(self, ticket: Ticket) -> None:
        """The client is gone, or has what it wanted: the engine drops it at its next turn."""
        ticket.cancelled.set()
        self.arrived.set()

    def take(self) -> list[Ticket]:
        """All tickets that arrived since the last call. Called by the engine's side."""
        tickets = []
        while True:
            try:
                tickets.append(self._queue.get_nowait())
            except queue.Empty:
                return tickets

    def release(self, ticket: Ticket) -> None:
        """The engine's side has finished with the ticket, whatever its end."""
        with self._lock:
            self._held.pop(ticket.uid, None)

    def close(self, error: ApiError) -> None:
        """From now on admit() raises error. Tickets already held go on."""
        with self._lock:
            self._closed = error
        self.arrived.set()

    def fail_all(self, error: ApiError) -> None:
        """Closes, and answers everything still held with error. Called before the process ends."""
        with self._lock:
            self._closed = error
            held = list(self._held.values())
            self._held.clear()
        for ticket in held:
            ticket.put(Failed(error))

    def answered(self, ticket: Ticket) -> None:
        """The HTTP side has sent its last byte, or has nobody left to send it to."""
        with self._lock:
            self._unanswered.discard(ticket.uid)

    def unanswered(self) -> int:
        """Admitted tickets whose answers are still being sent."""
        with self._lock:
            return len(self._unanswered)

    def held(self) -> int:
        """Tickets waiting or running."""
        with self._lock:
            return len(self._held)
