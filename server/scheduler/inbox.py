"""The line as one model's scheduler sees it: the tickets that are for this model, and no others.

On rank 0's main thread, between the dispatcher, which hands tickets out, and the scheduler.
"""

import threading

from server.scheduler.queue import Line, Ticket


class Inbox:
    """Of one model. arrived is set while there are tickets that the scheduler has not seen."""

    stopping = None  # the end is the dispatcher's to tell

    def __init__(self, line: Line) -> None:
        self.arrived = threading.Event()
        self.max_running = line.max_running
        self._line = line
        self._new: list[Ticket] = []
        self._held: dict[int, Ticket] = {}

    def put(self, ticket: Ticket) -> None:
        """One more, with its followers."""
        self._new.append(ticket)
        self._held.update((one.uid, one) for one in (ticket, *ticket.followers))
        self.arrived.set()

    def take(self) -> list[Ticket]:
        """Those that came since the last call."""
        taken, self._new = self._new, []
        return taken

    def release(self, ticket: Ticket) -> None:
        """The scheduler has finished with it."""
        self._held.pop(ticket.uid, None)
        self._line.release(ticket)

    def held(self) -> int:
        """Tickets of this model that wait or run."""
        return len(self._held)

    def longest(self) -> int:
        """Tokens that the longest of them may come to."""
        return max((ticket.longest for ticket in self._held.values()), default=0)
