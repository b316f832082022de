"""How long something has been waited for, while this process was awake.

For threads that wait with a limit: the watchdog, the lifeline. A stopped process (Ctrl-Z, a
debugger) and a sleeping machine (a laptop's lid) do not get nearer to a limit meanwhile. By the
clock a stopped process has waited all that time; and what it waits for may have been away, too, and
take as long to come back. Clocks differ about sleep: the monotonic one stands still on macOS and
Linux, the wall clock goes on, so both are asked.
"""

import time
from collections.abc import Callable

AWAY_S = 5.0  # A thread that comes back so late was away; a busy machine keeps it for less.


class WaitClock:
    """Seconds waited, of one thread that looks about every look_s seconds."""

    def __init__(
        self,
        look_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._look_s = look_s
        self._clock, self._wall = clock, wall
        self._looked = clock(), wall()
        self.waited = 0.0

    def look(self) -> float:
        """The seconds waited until now. They begin anew where this process was away."""
        before, self._looked = self._looked, (self._clock(), self._wall())
        passed, wall = (now - then for now, then in zip(self._looked, before, strict=True))
        if max(passed, wall) > self._look_s + AWAY_S:
            self.waited = 0.0
        else:
            # A shorter pause counts as a look like any other.
            self.waited += min(passed, 2 * self._look_s)
        return self.waited

    def renew(self) -> None:
        """What was waited for has come."""
        self._looked = self._clock(), self._wall()
        self.waited = 0.0
