"""A thread that does the disk's work, one job after another, while the main thread computes.

Made on the main thread of every rank. A job ends whole or failed, and whatever a disk can do wrong
is a job that failed and a line in the log: the thread goes on.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from enum import IntEnum

from server.disk.entry_file import Broken

SHARE = 0.25  # of its time that a thread works while the ranks compute
LONGEST_PAUSE_S = 0.2

log = logging.getLogger(__name__)


class State(IntEnum):
    """Of a job on one rank; a number on the wire."""

    UNDER_WAY, WHOLE, FAILED = range(3)


class Abandoned(Exception):
    """The job is not wanted any more."""


class Job:
    """One thing to do. what: for the log. Any thread may look at its state, which its thread
    writes."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.state = State.UNDER_WAY
        self.kib = 0  # of the file that it has written
        self.abandoned = False  # written by the main thread

    def go_on(self) -> None:
        """Raises Abandoned."""
        if self.abandoned:
            raise Abandoned


class Worker:
    """considerate: leaves most of the time to the main thread, while `busy`."""

    def __init__(self, name: str, considerate: bool) -> None:
        self.busy = False  # written by the main thread
        self._considerate = considerate
        self._began = 0.0
        self._queue: queue.SimpleQueue[tuple[Job, Callable[[], None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, job: Job, work: Callable[[], None]) -> None:
        """Has it done after all that was asked for before."""
        self._queue.put((job, work))

    def end(self) -> None:
        """The thread, after what was asked for before."""
        self._queue.put(None)

    def pause(self, job: Job) -> None:
        """Between two pieces of a job. Raises Abandoned."""
        job.go_on()
        if self._considerate and self.busy:
            worked = time.monotonic() - self._began
            time.sleep(min(LONGEST_PAUSE_S, worked * (1 - SHARE) / SHARE))
        self._began = time.monotonic()

    def _run(self) -> None:
        while True:
            asked = self._queue.get()
            if asked is None:
                return
            job, work = asked
            del asked
            self._began = time.monotonic()
            state = State.FAILED
            try:
                job.go_on()
                work()
                state = State.WHOLE
            except Abandoned:
                pass
            except (OSError, Broken) as error:
                log.warning("prefixes on disk: %s: %s", job.what, error)
            except Exception:
                log.exception("prefixes on disk: %s", job.what)
            work = None  # what it held is free before anybody is told
            job.state = state
            del job
