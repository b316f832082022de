"""Collectives, as the rest of the server uses them: sum, share from rank 0, gather.

Called on the main thread of every rank, by every rank, in the same order: each function here is
one or more collectives on MLX's default stream. Nothing else in the server communicates. All but
what is called bare are sealed (seal.py): they bring what the ranks have sent, or raise Garbled.
Ranks of different code meet in gather_bytes, so what it sends must stay as it is from version to
version.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from server.wire.seal import NUMBERS, Garbled, constants, prove, split_crc

GATHER_MOST = 2**24  # bytes of one rank


@dataclass(frozen=True)
class Sealed:
    """A sum over so many ranks, under way. total: [values, number, mirrors] int32, lazy."""

    what: str
    number: int
    ranks: int
    total: mx.array

    def values(self, start: int, end: int) -> mx.array:
        """Some of the values, lazy and not proven."""
        return self.total[start:end]

    def read(self) -> list[int]:
        """The values. Waits for them; raises Garbled."""
        return prove(np.array(self.total), self.ranks, self.what, self.number)


class Link:
    """The group of ranks. With one rank every operation is the identity."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self._number = 0  # of the last sealed message: the same on every rank

    def sum(self, values: mx.array) -> mx.array:
        """Sum over ranks, lazy, bare. values: same shape and type on every rank."""
        return mx.distributed.all_sum(values, group=self.group)

    def seal(self, what: str, values: Sequence[int], first: mx.array | None = None) -> Sealed:
        """Sum of values over ranks, lazy; first: [n] int32, may be lazy, comes before them. what
        names the kind of message, of which every rank passes the same count."""
        number = self._next()
        mine = mx.array([*values, number], dtype=mx.int32)
        if first is not None:
            mine = mx.concatenate([first, mine])
        mirrors = mx.array(constants(what, len(mine))) - mine
        total = self.sum(mx.concatenate([mine, mirrors]))
        return Sealed(what, number, self.size, total)

    def share_ints(self, values: list[int], what: str = "numbers") -> list[int]:
        """Rank 0's values on every rank; each fits int32. Every rank passes the same count."""
        return self.seal(what, values if self.rank == 0 else [0] * len(values)).read()

    def share_bytes(self, data: bytes, length: int) -> bytes:
        """Rank 0's bytes on every rank. length is known to all; workers pass any data."""
        (shared,), _ = self.bring("bytes", [length], {0: data} if self.rank == 0 else {})
        return shared

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes on every rank, by rank. Two collectives."""
        mine = [0] * self.size
        mine[self.rank] = len(data)
        lengths = self.seal("lengths", mine).read()
        if not all(0 <= length <= GATHER_MOST for length in lengths):
            raise Garbled("lengths", f"{lengths} bytes, at most {GATHER_MOST} each")
        rows, _ = self.bring("gathered", lengths, {self.rank: data})
        return rows

    def bring(
        self, what: str, lengths: list[int], mine: dict[int, bytes], beside: Sequence[int] = ()
    ) -> tuple[list[bytes], list[int]]:
        """Rows of bytes on every rank, and the sums of beside. One collective.

        lengths: of all rows, known to all; mine: those that this rank brings, by place. Each row
        comes from one rank, and its CRC with it.
        """
        number = self._next()
        words = [-(-length // 4) for length in lengths]
        starts = np.cumsum([0, *words])
        bulk, crcs = np.zeros(starts[-1], dtype=np.int32), [0] * (2 * len(lengths))
        for row, data in mine.items():
            place = bulk[starts[row] : starts[row + 1]].view(np.uint8)
            place[: lengths[row]] = np.frombuffer(data, dtype=np.uint8)
            crcs[2 * row : 2 * row + 2] = split_crc(data)
        told = np.array([*beside, *crcs, number], dtype=np.int32)
        mirrors = constants(what, len(told)) - told
        total = np.array(self.sum(mx.array(np.concatenate([bulk, told, mirrors]))))
        values = prove(total[len(bulk) :], self.size, what, number)
        rows, crcs = [], values[len(beside) :]
        for row, length in enumerate(lengths):
            data = total[starts[row] : starts[row + 1]].tobytes()[:length]
            if split_crc(data) != crcs[2 * row : 2 * row + 2]:
                raise Garbled(
                    f"{what} (message {number} of {self.size} ranks)",
                    f"row {row}, {length} bytes, has another checksum than was sent with it",
                )
            rows.append(data)
        return rows, values[: len(beside)]

    def send_ints(self, values: Sequence[int], rank: int) -> None:
        """To one rank that has a link to this one, and hears as many from it; bare. Whether it
        returns before they are heard is the backend's affair."""
        self.send(mx.array(values, dtype=mx.int32), rank)

    def hear_ints(self, count: int, rank: int) -> list[int]:
        """What one rank sends to this one; bare."""
        return mx.distributed.recv((count,), mx.int32, rank, group=self.group).tolist()

    def send(self, array: mx.array, rank: int) -> None:
        """As send_ints."""
        mx.eval(mx.distributed.send(array, rank, group=self.group))

    def hear(self, like: mx.array, rank: int) -> None:
        """Waits for an array of this kind from one rank, for who times it."""
        mx.eval(mx.distributed.recv_like(like, rank, group=self.group))

    def _next(self) -> int:
        self._number = (self._number + 1) % NUMBERS
        return self._number
