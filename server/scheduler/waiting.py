"""Who waits for a place on the ranks, in order. The scheduler's alone, on rank 0's main thread.

Choices of one prompt wait together, to share its prefill. Those whose prompt's beginning is being
read from disk hold nobody up, and keep their place.
"""

import collections
from collections.abc import Callable, Iterator

from server.scheduler.queue import Ticket
from server.scheduler.running import Running


class Waiting:
    """Groups of choices."""

    def __init__(self) -> None:
        self._ready: collections.deque[list[Running]] = collections.deque()
        self._reading: list[tuple[int, list[Running]]] = []  # each with the job that reads

    def __iter__(self) -> Iterator[list[Running]]:
        yield from self._ready
        yield from (group for _, group in self._reading)

    def __bool__(self) -> bool:
        """Whether anybody could start now."""
        return bool(self._ready)

    def add(self, group: list[Running], job: int = 0) -> None:
        """At the end. job: that has to be over first; 0: none."""
        if job:
            self._reading.append((job, group))
        else:
            self._ready.append(group)

    def put_back(self, one: Running) -> None:
        """Who was taken off the ranks goes on first."""
        self._ready.appendleft([one])

    def look(self, is_reading: Callable[[int], bool]) -> None:
        """Those whose job is over can start from now on, where they would have without it."""
        back = [group for job, group in self._reading if not is_reading(job)]
        if back:
            self._reading = [(job, group) for job, group in self._reading if is_reading(job)]
            # The paused ones first; uids count up as they arrive.
            every = [*self._ready, *back]
            every.sort(key=lambda group: (not group[0].generated, group[0].ticket.uid))
            self._ready = collections.deque(every)

    def first(self) -> list[Running]:
        return self._ready[0]

    def started(self, count: int) -> bool:
        """So many of the first group have. Whether that was all of it."""
        left = self._ready.popleft()[count:]
        if left:
            self._ready.appendleft(left)
        return not left

    def drop_cancelled(self, release: Callable[[Ticket], None]) -> None:
        """Lets go of those whose clients have left."""
        for group in self:
            for one in [one for one in group if one.ticket.cancelled.is_set()]:
                group.remove(one)
                release(one.ticket)
        self._ready = collections.deque(filter(None, self._ready))
        self._reading = [(job, group) for job, group in self._reading if group]

    def paused(self) -> int:
        """Of those that wait, the ones that had begun."""
        return sum(bool(group[0].generated) for group in self._ready)
