"""Rank 0's messages to every rank, announced by a header that costs nothing while decoding.

Called on the main thread of every rank. A header is four numbers: the length of a bundle of
messages in bytes, how long to nap, how large a prefill chunk to compute, and when to hand a decode
step to MLX. In steady decoding the header rides on the collective that carries the sampled tokens
(choosers.py); otherwise the ranks meet for it in one small collective, which is also the
heartbeat. Every header is read before the next is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.messages import Message, decode, encode


@dataclass(frozen=True)
class Header:
    """What rank 0 announces. length: bytes; 0: no messages. nap_ms: milliseconds.
    chunk: tokens of prompts between two decode steps. late: 1 to hand a decode step to MLX after
    messages and prompts, 0 before."""

    length: int = 0
    nap_ms: int = 0
    chunk: int = 1
    late: int = 0

    SIZE = 4


class Carrier(Protocol):
    """A Link, or the Heartbeat that wraps one."""

    rank: int

    def share_ints(self, values: list[int]) -> list[int]: ...

    def share_bytes(self, data: bytes, length: int) -> bytes: ...


class Mailbox:
    """compose yields rank 0's next messages; on workers it is never called."""

    def __init__(
        self,
        link: Carrier,
        compose: Callable[[], list[Message]],
        nap_ms: Callable[[], int],
        chunk: Callable[[], int],
        late: Callable[[], bool],
    ) -> None:
        self._link = link
        self._compose = compose
        self._nap_ms = nap_ms
        self._chunk = chunk
        self._late = late
        self._bundle = b""  # announced, and not yet delivered

    def header(self) -> list[int]:
        """Rank 0's header for a step, as int32 values; puts what is waiting into a bundle."""
        messages = self._compose()
        self._bundle = encode(messages) if messages else b""
        return [len(self._bundle), 0, self._chunk(), int(self._late())]

    def meet(self) -> Header:
        """All ranks wait for each other and learn rank 0's header. One small collective."""
        mine = [0] * Header.SIZE
        if self._link.rank == 0:
            mine = self.header()
            mine[1] = self._nap_ms()
        return Header(*self._link.share_ints(mine))

    def receive(self, header: Header) -> list[Message]:
        """The bundle that header announces."""
        if not header.length:
            return []
        return decode(self._link.share_bytes(self._bundle, header.length))
