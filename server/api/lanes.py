"""How many requests are made ready at once, by the size of their bodies.

From a body to token ids (parse, render, tokenize) a request can take a hundred times the memory of
its bytes, and a core. So a few of a size are made ready at a time, and the others wait with nothing
but their bytes. Each size has a lane of its own: large ones do not keep small ones waiting.

Used on rank 0's HTTP threads, as the first thing after a body was read.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

from server.protocol.client import Client
from server.protocol.errors import ApiError

KIB, MIB = 2**10, 2**20
# (largest body in bytes, requests made ready at once). Ordinary requests are in the first lane and
# take milliseconds; long conversations of agents are in the second and third.
SIZES = ((16 * KIB, 8), (256 * KIB, 2), (4 * MIB, 1), (None, 1))
TRIM_BYTES = 256 * KIB  # what was made of bodies above this is given back to the system at once
LEAST_WAITING = 16  # that may wait in a lane, however few places the line has
RETRY_S = 5.0


class Lane:
    """at_once: requests in it that are made ready; waiting: those that may wait for it (None: as
    many as there are connections, since each waits for milliseconds only)."""

    def __init__(self, at_once: int, waiting: int | None) -> None:
        self._turns = threading.Semaphore(at_once)
        self._most = None if waiting is None else at_once + waiting
        self._lock = threading.Lock()
        self.inside = 0  # waiting or being made ready

    @contextlib.contextmanager
    def enter(self, client: Client) -> Iterator[None]:
        """A turn. Raises ApiError 429 when too many wait, and what client.look raises."""
        with self._lock:
            if self._most is not None and self.inside >= self._most:
                raise _too_many(self.inside)
            self.inside += 1
        try:
            with client.holding(self._turns):
                yield
        finally:
            with self._lock:
                self.inside -= 1


class Lanes:
    """places: requests that the line holds; as many may wait in each lane of larger bodies."""

    def __init__(self, places: int) -> None:
        waiting = max(LEAST_WAITING, places)
        self._lanes = [
            (most, Lane(at_once, waiting if number else None))
            for number, (most, at_once) in enumerate(SIZES)
        ]

    @contextlib.contextmanager
    def enter(self, size: int, client: Client) -> Iterator[None]:
        """A turn in the lane for a body of so many bytes."""
        lane = next(lane for most, lane in self._lanes if most is None or size <= most)
        try:
            with lane.enter(client):
                yield
        finally:
            if size > TRIM_BYTES:
                give_back()


def give_back() -> None:
    """Hands freed memory back to the system; glibc keeps it for the process otherwise. Elsewhere
    the allocators do so by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _too_many(inside: int) -> ApiError:
    return ApiError(
        429,
        f"{inside} requests with bodies of about this size are being read already. Try again "
        "later.",
        type="rate_limit_exceeded",
        code="rate_limit_exceeded",
        retry_after=RETRY_S,
    )
