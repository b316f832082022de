"""Follows an admitted request through the engine: its events, its client and its clock.

Runs on the HTTP thread of the request, on rank 0. The one place where the clock of an admitted
request is looked at. However it ends, the engine's side is told: what is unfinished is cancelled.
"""

import math
import queue
import time
from collections.abc import Callable, Iterator, Sequence

from server.protocol.client import Client, ClientGone
from server.protocol.errors import ApiError, timed_out
from server.protocol.events import Event, Failed
from server.scheduler.queue import Line, Ticket

POLL_S = 0.1  # how often to look whether the client is still there


class Following:
    """tickets share one queue of events. client_gone: whether there is nobody left to answer.

    timeout: seconds in which something must come of the request, be it progress of its prompt;
    deadline: of time.monotonic(), until when the first must. total and end: the same for all of it.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        line: Line,
        client_gone: Callable[[], bool],
        timeout: float,
        deadline: float | None = None,
        total: float = math.inf,
        end: float = math.inf,
    ) -> None:
        self._open = {ticket.uid: ticket for ticket in tickets}
        self._tickets = tickets
        self._line = line
        self._client_gone = client_gone
        self._timeout = timeout
        self._deadline = tickets[0].accepted + timeout if deadline is None else deadline
        self._total, self._end = total, end

    @classmethod
    def of(cls, client: Client, tickets: Sequence[Ticket], line: Line) -> "Following":
        """For a client that has waited for its place until now."""
        return cls(
            tickets, line, client.gone, client.timeout, client.deadline, client.total, client.end
        )

    def events(self) -> Iterator[tuple[int, Event | None]]:
        """What comes of the request, with the choice that it is about, until all tickets are
        finished; None now and then, while nothing comes. Raises ApiError (the engine failed, or
        time is up) or ClientGone."""
        events = self._tickets[0].events
        looked = time.monotonic()
        try:
            while self._open:
                try:
                    index, event = events.get(timeout=POLL_S)
                except queue.Empty:
                    index, event = 0, None
                now = time.monotonic()
                if isinstance(event, Failed):
                    raise event.error
                # By the clock, too: tokens may come faster than silence ever falls.
                if event is None or now - looked >= POLL_S:
                    looked = now
                    if self._client_gone():
                        raise ClientGone
                yield index, event
                self._look_at_the_clock(event is not None)
        finally:
            for ticket in self._open.values():
                self._line.cancel(ticket)

    def finished(self, ticket: Ticket) -> None:
        """Nothing more is wanted of it."""
        self._open.pop(ticket.uid, None)

    def cancel(self, ticket: Ticket) -> None:
        """Nothing more is wanted of it, and it is not at its end."""
        self._line.cancel(ticket)

    def place(self, ticket: Ticket) -> int:
        """Where it is in the line; 0: it has begun."""
        return self._line.place(ticket)

    def stop(self, error: ApiError) -> None:
        """Ends it, from whichever thread: the ranks drop it at once, also while its client does not
        read, and its own thread raises the error."""
        for ticket in self._tickets:
            self._line.cancel(ticket)
        self._tickets[0].put(Failed(error))

    def answered(self) -> None:
        """The last byte is sent, or there is nobody left to send it to."""
        for ticket in self._tickets:
            self._line.answered(ticket)

    def _look_at_the_clock(self, moved: bool) -> None:
        """moved: something has come of the request. A healthy answer may be long; silence not."""
        # Again: to hand a piece to a slow client takes time, too.
        now = time.monotonic()
        if moved:
            self._deadline = max(self._deadline, now + self._timeout)
        if not self._open:
            return
        if now > self._end:
            raise timed_out(self._total, "REQ_TOTAL_TIMEOUT")
        if now > self._deadline:
            raise timed_out(self._timeout)
