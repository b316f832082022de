"""What rank 0 knows of a ticket that is on the ranks, will be, or was taken off for a while.

The scheduler's alone, on rank 0's main thread.
"""

from dataclasses import dataclass

from server.sampling.row_state import Row
from server.scheduler.queue import Ticket


@dataclass
class Running:
    """A ticket on the ranks. row is its sampling state, generated its tokens so far."""

    ticket: Ticket
    row: Row
    generated: list[int]

    def take(self, token: int) -> None:
        """It has got one more."""
        self.generated.append(token)
        if self.row.guess is not None:
            self.row.guess.hear([token], len(self.generated))

    @property
    def length(self) -> int:
        """Tokens in its cache."""
        return len(self.ticket.prompt) + len(self.generated)

    @property
    def left(self) -> int:
        """Tokens that it may still generate."""
        return self.ticket.max_tokens - len(self.generated)
