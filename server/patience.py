"""How long a request's thread waits for something that others use, too.

Used on rank 0's HTTP threads, before a request has a place in the line (from there on, generation
looks at client and clock). Whatever waits takes a Patience, and looks at it every POLL_S.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.errors import timed_out

POLL_S = 0.1  # how often to look whether the client is still there


@dataclass(frozen=True)
class Patience:
    """gone: whether the client has left. deadline: of time.monotonic(); timeout: what it was when
    the request began, for the words of the refusal."""

    gone: Callable[[], bool]
    timeout: float
    deadline: float

    @classmethod
    def of(cls, gone: Callable[[], bool], timeout: float) -> "Patience":
        """That of a request that begins now."""
        return cls(gone, timeout, time.monotonic() + timeout)

    def look(self) -> None:
        """Raises ConnectionAbortedError when the client has left, ApiError 504 when time is up."""
        if self.gone():
            raise ConnectionAbortedError("the client left while its request waited")
        if time.monotonic() > self.deadline:
            raise timed_out(self.timeout)

    @contextlib.contextmanager
    def holding(self, lock: "threading.Lock | threading.Semaphore") -> Iterator[None]:
        """The lock, waited for as long as there is somebody to wait for it."""
        while not lock.acquire(timeout=POLL_S):
            self.look()
        try:
            yield
        finally:
            lock.release()


ENDLESS = Patience(lambda: False, math.inf, math.inf)
