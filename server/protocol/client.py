"""The client behind a request: who it is, whether it is still there, and how long it waits.

Used on rank 0's HTTP threads, before a request has a place in the line (from there on, generation
looks at client and clock). Whatever has a request wait takes a Client, and looks at it every
POLL_S. Imports no mlx.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

from server.protocol.errors import timed_out

POLL_S = 0.1  # how often to look whether the client is still there


class ClientGone(Exception):
    """The client has left. Not an OSError: its connection may still take a last word."""


@dataclass(frozen=True)
class Client:
    """source: those who share what one client may take, an API key's label or an address.

    deadline: by the monotonic clock, timeout seconds after the request came in; end: the same for
    all of the request, total seconds. gone: whether the client has left; ApiError when it sends
    what nobody asked for. serving: raises ApiError once the server would not take the request any
    more.
    """

    source: str
    _: KW_ONLY
    timeout: float = math.inf
    deadline: float = math.inf
    total: float = math.inf
    end: float = math.inf
    gone: Callable[[], bool] = lambda: False
    serving: Callable[[], object] = lambda: None

    def look(self) -> None:
        """Called every now and then by whatever has it wait. Raises ApiError 504 when time is up,
        ClientGone when there is nobody left to answer, and what gone and serving raise."""
        if self.gone():
            raise ClientGone
        now = time.monotonic()
        if now > self.end:
            raise timed_out(self.total, "REQ_TOTAL_TIMEOUT")
        if now > self.deadline:
            raise timed_out(self.timeout)
        self.serving()

    @contextlib.contextmanager
    def holding(self, lock: "threading.Lock | threading.Semaphore") -> Iterator[None]:
        """The lock, waited for as long as there is somebody to wait for it."""
        while not lock.acquire(timeout=POLL_S):
            self.look()
        try:
            yield
        finally:
            lock.release()


SERVER = Client("")  # the server itself: no client, no hurry
