"""How long idle ranks nap between two meetings. The scheduler's alone, on rank 0's main thread.

The first milliseconds after work are likely to bring more.
"""

FIRST_MS = 1
LAST_MS = 80
DISK_MS = 5  # while the disks are at work for us


class Naps:
    """Each twice as long as the one before, while nothing happens."""

    def __init__(self) -> None:
        self._ms = FIRST_MS

    def begin_again(self) -> None:
        """There was something to do."""
        self._ms = FIRST_MS

    def next_ms(self, disks: bool) -> int:
        """disks: whether they are at work."""
        if disks:
            return DISK_MS
        self._ms = min(self._ms * 2, LAST_MS)
        return self._ms
