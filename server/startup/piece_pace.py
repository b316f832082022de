"""How large the pieces are in which weights are brought into memory, and what a failure means.

On the main thread of every rank. At the start nothing waits for the pieces, and a rank that fails
ends. While the ranks serve, a piece should hold up those who decode no longer than a chunk of a
prompt does; and what one rank fails at, all are told, so that they go on without the model.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol, TypeVar

import mlx.core as mx

from server.startup.agreement import Local, agree, agree_aside
from server.wire.link import Link

WHOLE = 1_000_000  # millionths
PIECE_BYTES = 2**30  # where nobody waits
FIRST_BYTES = 2**24  # of a rank, before it is known how fast it reads
LEAST_BYTES = 2**20
FASTER_MOST = 4.0  # times the piece before
NOBODY_WAITS_S = 1.0  # for a piece: somebody may come


Made = TypeVar("Made")


def at_once(pieces: Generator[None, None, Made]) -> Made:
    """What pieces make, where nobody waits between them."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            return done.value


class Failed(Exception):
    """Some rank could not do its part. Every rank has this, with what that rank says."""


class Pace(Protocol):
    """What loading asks. Parts are millionths of a rank's weights. local: what a rank may fail at
    alone, in what is agreed on, without being ended by it."""

    local: Local

    def attempt(self, link: Link, act: Callable[[], object]) -> None:
        """Something that every rank does by itself."""

    def aside(self, link: Link, act: Callable[[], object]) -> Iterator[None]:
        """The same, which takes long and does not touch MLX."""

    def evaluate(self, link: Link, piece: Sequence[mx.array]) -> None:
        """Brings arrays into memory."""

    def first(self, most: int) -> int:
        """Until which part the first piece goes; the same on every rank. most: bytes of the
        largest share."""

    def next(self, until: int, most: int) -> int:
        """Until which part the piece goes that follows the one that went until there. Rank 0's
        counts."""


class AllAtOnce:
    """At the start."""

    local: Local = ()

    def attempt(self, link: Link, act: Callable[[], object]) -> None:
        act()

    def aside(self, link: Link, act: Callable[[], object]) -> Iterator[None]:
        act()
        yield

    def evaluate(self, link: Link, piece: Sequence[mx.array]) -> None:
        mx.eval(piece)

    def first(self, most: int) -> int:
        return self.next(0, most)

    def next(self, until: int, most: int) -> int:
        pieces = max(1, -(-most // PIECE_BYTES))
        return min(WHOLE, until + -(-WHOLE // pieces))


class Considerate:
    """While the ranks serve. pause_s: seconds that a piece may take while waits() says, on every
    rank alike, that somebody does. Raises Failed."""

    local: Local = Exception

    def __init__(self, pause_s: float, waits: Callable[[], bool]) -> None:
        self._pause_s = pause_s
        self._waits = waits
        self._bytes = float(FIRST_BYTES)
        self._took_s = 0.0

    def attempt(self, link: Link, act: Callable[[], object]) -> None:
        if wrong := agree(link, act, Exception):
            raise Failed(wrong)

    def aside(self, link: Link, act: Callable[[], object]) -> Iterator[None]:
        if wrong := (yield from agree_aside(link, act, self._waits)):
            raise Failed(wrong)

    def evaluate(self, link: Link, piece: Sequence[mx.array]) -> None:
        began = time.monotonic()
        self.attempt(link, lambda: mx.eval(piece))
        mx.clear_cache()  # of what was read to be cut
        self._took_s = time.monotonic() - began

    def first(self, most: int) -> int:
        return self._until(0, FIRST_BYTES, most)

    def next(self, until: int, most: int) -> int:
        may_take = self._pause_s if self._waits() else NOBODY_WAITS_S
        wanted = self._bytes * may_take / max(self._took_s, 1e-3)
        self._bytes = min(max(wanted, LEAST_BYTES), self._bytes * FASTER_MOST, PIECE_BYTES)
        return self._until(until, self._bytes, most)

    def _until(self, until: int, size: float, most: int) -> int:
        return min(WHOLE, until + max(1, int(WHOLE * size / max(1, most))))
