"""The phase that this rank is in: loading, ok, draining, failed or restarting, and never back.

Moved by the main thread as it loads and serves, by the thread that drains, and by whichever finds
a failure: under a lock, so that none of them undoes what another has said.
"""

import threading

from server.observe.views import State

PHASES = ("loading", "ok", "draining", "failed", "restarting")
LOADING, OK, DRAINING, FAILED, RESTARTING = PHASES
ENDING = (FAILED, RESTARTING)


class Phases:
    """state: the phase now, with what is done in it. Any thread."""

    def __init__(self) -> None:
        self.state = State(LOADING, "starting")
        self._lock = threading.Lock()

    def stage(self, detail: str) -> None:
        """Loading goes on with this, or has got so far."""
        self._move(LOADING, detail)

    def serve(self) -> None:
        """The loop begins."""
        self._move(OK, "serving")

    def drain(self) -> str:
        """Asked to end. Returns the phase before; a rank that has failed stays so."""
        return self._move(DRAINING)

    def fail(self, reason: str, restarting: bool = False) -> None:
        """The process is about to end; restarting: and the supervisor starts another."""
        self._move(RESTARTING if restarting else FAILED, reason)

    def _move(self, phase: str, detail: str | None = None) -> str:
        with self._lock:
            before = self.state
            if PHASES.index(phase) >= PHASES.index(before.phase):
                self.state = State(phase, before.detail if detail is None else detail)
            return before.phase
