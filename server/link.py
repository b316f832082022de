"""Collectives, as the rest of the server uses them: sum, share from rank 0, gather.

Called on the main thread of every rank, by every rank, in the same order: each function here is
one or more collectives on MLX's default stream. Nothing else in the server communicates.
"""

import mlx.core as mx
import numpy as np


class Link:
    """The group of ranks. With one rank every operation is the identity."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self.group = group
        self.rank = group.rank()
        self.size = group.size()

    def sum(self, values: mx.array) -> mx.array:
        """Sum over ranks, lazy. values: same shape and type on every rank."""
        return mx.distributed.all_sum(values, group=self.group)

    def share_ints(self, values: list[int]) -> list[int]:
        """Rank 0's values on every rank; each fits int32. Every rank passes the same count."""
        mine = values if self.rank == 0 else [0] * len(values)
        total = self.sum(mx.array(mine, dtype=mx.int32))
        mx.eval(total)
        return total.tolist()

    def share_bytes(self, data: bytes, length: int) -> bytes:
        """Rank 0's bytes on every rank. length is known to all; workers pass any data."""
        words = -(-length // 4)
        mine = np.zeros(words, dtype=np.int32)
        if self.rank == 0:
            mine.view(np.uint8)[:length] = np.frombuffer(data, dtype=np.uint8)
        total = self.sum(mx.array(mine))
        mx.eval(total)
        return np.array(total).tobytes()[:length]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes on every rank, by rank. Two collectives."""
        lengths = np.zeros(self.size, dtype=np.int32)
        lengths[self.rank] = len(data)
        lengths = self.sum(mx.array(lengths)).tolist()
        words = -(-max(lengths) // 4)
        mine = np.zeros((self.size, words), dtype=np.int32)
        mine[self.rank].view(np.uint8)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        total = self.sum(mx.array(mine))
        mx.eval(total)
        rows = np.array(total)
        return [rows[rank].tobytes()[:length] for rank, length in enumerate(lengths)]
