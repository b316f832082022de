"""Links of several ranks in one process, each on a thread, over a wire that a test may spoil."""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np

from server.wire.link import Link

DEADLINE_S = 30

Spoil = Callable[[int, int, np.ndarray, list[np.ndarray]], np.ndarray]


class PeerGone(Exception):
    """A rank waits for one that has left."""


class Wire:
    """Adds up what the ranks bring. spoil(rank, n, total, before) makes of a rank's nth sum, n from
    0, what that rank gets; before: its earlier ones as they were."""

    def __init__(self, size: int, spoil: Spoil | None = None) -> None:
        self.size = size
        self.sums = [0] * size  # that each rank took part in
        self._spoil = spoil
        self._before: dict[int, list[np.ndarray]] = {rank: [] for rank in range(size)}
        # From each rank to each: what it brought, and None when it has left.
        self._ways = {(a, b): queue.Queue() for a in range(size) for b in range(size)}

    def sum(self, rank: int, values: np.ndarray) -> np.ndarray:
        for other in range(self.size):
            self._ways[rank, other].put(values)
        parts = [self._ways[other, rank].get(timeout=DEADLINE_S) for other in range(self.size)]
        if any(part is None for part in parts):
            raise PeerGone
        assert len({part.shape for part in parts}) == 1, "ranks parted ways"
        self.sums[rank] += 1
        total = sum(parts)
        before = self._before[rank]
        got = total if self._spoil is None else self._spoil(rank, len(before), total, before)
        before.append(total)
        return got

    def leave(self, rank: int) -> None:
        for other in range(self.size):
            self._ways[rank, other].put(None)


class WiredLink(Link):
    """A Link whose sums go over the wire."""

    def __init__(self, wire: Wire, rank: int) -> None:
        self.wire, self.rank, self.size, self._number = wire, rank, wire.size, 0

    def sum(self, values: mx.array) -> mx.array:
        return mx.array(self.wire.sum(self.rank, np.array(values)))


def on_links(size: int, life: Callable[[WiredLink], object], spoil: Spoil | None = None) -> list:
    """What life(link) returned on every rank, or the exception that it raised there.

    A rank that raises leaves the wire; those that wait for it get PeerGone.
    """
    wire = Wire(size, spoil)

    def run(rank: int):
        try:
            # MLX's streams belong to a thread.
            with mx.stream(mx.new_stream(mx.cpu)):
                return life(WiredLink(wire, rank))
        except Exception as error:
            wire.leave(rank)
            return error

    with ThreadPoolExecutor(size) as pool:
        return [future.result(DEADLINE_S) for future in [pool.submit(run, r) for r in range(size)]]
