"""Tickets: an accepted request, and the bounded line in which it waits for the engine.

HTTP threads of rank 0 put tickets in and read their events; the main thread of rank 0 takes them
out and feeds events in. Nothing else is shared between the two sides. Imports no mlx.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from server.protocol.errors import ApiError, bad_request, queue_full
from server.protocol.events import Event, Failed
from server.protocol.requests import NOWHERE, Common, Places

DEFAULT_RETRY_S = 5.0


class Ticket:
    """One choice of one request on its way through the engine.

    prompt: token ids. max_tokens: limit on generated tokens, already clamped to the context.
    score_prompt: asks for the prompt's log-probabilities. grammar: a compiled server.grammar
    Grammar, or None. places: where others may part from the prompt. owner: who may go on from what
    is kept of it. model: its place in the list of models. Several choices of one request share
    `events`, and say by `choice` whose event it is; those of one prompt are `followers` of the
    first, whose prefill they share.

    inputs: a request for embeddings has these in the place of a prompt, and one ticket for all of
    them. While one of them is on the ranks it has a ticket of its own, which is `of` the request's.
    """

    _ids = itertools.count(1)

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        common: Common,
        *,
        choice: int = 0,
        score_prompt: bool = False,
        grammar: Any = None,
        places: Places = NOWHERE,
        owner: str = "",
        model: int = 0,
        events: "queue.SimpleQueue[tuple[int, Event]] | None" = None,
        inputs: Sequence[list[int]] = (),
    ) -> None:
        self.uid = next(self._ids)
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.common = common
        self.choice = choice
        self.score_prompt = score_prompt
        self.grammar = grammar
        self.places = places
        self.owner = owner
        self.inputs = inputs
        self.of: Ticket | None = None
        self.model = model
        self.followers: list[Ticket] = []
        self.accepted = time.monotonic()
        # By the engine's side, for the record: times as accepted's, 0 until then.
        self.started = self.first_token = self.last_token = 0.0
        self.cached = 0  # tokens of the prompt that need not be computed
        self.cancelled = threading.Event()
        self.events = queue.SimpleQueue() if events is None else events

    @property
    def longest(self) -> int:
        """Tokens that its longest row may come to."""
        return max(map(len, self.inputs), default=len(self.prompt) + self.max_tokens)

    def input(self, place: int) -> "Ticket":
        """The ticket of one of the inputs."""
        one = Ticket(self.inputs[place], 0, self.common, choice=place, events=self.events)
        one.of, one.cancelled = self, self.cancelled
        return one

    def put(self, event: Event) -> None:
        """Called by the engine's side."""
        self.events.put((self.choice, event))


class Line:
    """The bounded queue between HTTP threads and the engine.

    A ticket counts from admit() to release(), so that at most max_running + max_waiting are held,
    however a burst falls between two turns of the engine. estimate_wait: seconds until a slot is
    likely to be free, for Retry-After.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        estimate_wait: Callable[[], float] = lambda: DEFAULT_RETRY_S,
    ) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.arrived = threading.Event()  # set when the engine's side has something to look at
        self.stopping: str | None = None  # why the engine's side is to end, once it is
        self._estimate_wait = estimate_wait
        self._queue: queue.Queue[Ticket] = queue.Queue(maxsize=max_running + max_waiting)
        self._lock = threading.Lock()
        self._held: dict[int, Ticket] = {}
        self._unanswered: set[int] = set()
        self._closed: ApiError | None = None

    def check_size(self, choices: int) -> None:
        """Raises ApiError 400 for a request that could never be held."""
        places = self.max_running + self.max_waiting
        if choices > places:
            raise bad_request(
                f"The request asks for {choices} choices; this server holds {places} at most.", "n"
            )

    def check_room(self, choices: int) -> None:
        """Raises what admit() would raise for so many choices now. Reserves nothing."""
        self.check_size(choices)
        with self._lock:
            self._check_room(choices)

    def admit(self, tickets: list[Ticket]) -> None:
        """Takes all of them and their followers, or none.

        Raises ApiError: 429 when there is no room, 400 when there never is, the closing error
        when closed.
        """
        every = [one for ticket in tickets for one in (ticket, *ticket.followers)]
        self.check_size(len(every))
        with self._lock:
            self._check_room(len(every))
            self._held.update((one.uid, one) for one in every)
            self._unanswered.update(one.uid for one in every)
        for ticket in tickets:
            self._queue.put_nowait(ticket)
        self.arrived.set()

    def _check_room(self, choices: int) -> None:
        if self._closed is not None:
            # Raised many times over; each would add its frames to the traceback.
            raise self._closed.with_traceback(None)
        if len(self._held) + choices > self.max_running + self.max_waiting:
            running = min(len(self._held), self.max_running)
            raise queue_full(
                len(self._held) - running, running, min(60.0, max(1.0, self._estimate_wait()))
            )

    def cancel(self, ticket: Ticket) -> None:
        """The client is gone, or has what it wanted: the engine drops it at its next turn."""
        ticket.cancelled.set()
        self.arrived.set()

    def take(self) -> list[Ticket]:
        """Tickets that arrived since the last call, with their followers in them. Called by the
        engine's side."""
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

    def stop(self, reason: str) -> None:
        """The engine's next bundle tells every rank to leave the loop."""
        self.stopping = reason
        self.arrived.set()

    def fail_all(self, error: ApiError) -> None:
        """Closes, and answers everything still held with error. Called before the process ends."""
        with self._lock:
            self._closed = error
            held = list(self._held.values())
            self._held.clear()
        for ticket in held:
            ticket.put(Failed(error))

    def place(self, ticket: Ticket) -> int:
        """Where it is among those that wait, 1 is the next; 0: it has begun."""
        with self._lock:
            if ticket.started:
                return 0
            held = self._held.values()
            return max(1, sum(one.uid <= ticket.uid and not one.started for one in held))

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
