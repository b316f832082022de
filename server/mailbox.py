"""Rank 0's messages to every rank, announced by a header that costs nothing while decoding.

Called on the main thread of every rank. A header is four numbers: the serial of the newest bundle
of messages, its length in bytes, how long to nap, and how large a prefill chunk to compute. In
steady decoding the header rides on the collective that carries the sampled tokens (choosers.py);
otherwise the ranks meet for it in one small collective, which is also the heartbeat.

A step's header is read one step after it was made, and a step may be thrown away unread when its
batch empties. So a bundle keeps its serial until it is delivered, and every rank skips serials
that it has seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.messages import Message, decode, encode


@dataclass(frozen=True)
class Header:
    """What rank 0 announces. serial 0: nothing yet. length: bytes. nap_ms: milliseconds.
    chunk: tokens of prompts between two decode steps."""

    serial: int = 0
    length: int = 0
    nap_ms: int = 0
    chunk: int = 1

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
    ) -> None:
        self._link = link
        self._compose = compose
        self._nap_ms = nap_ms
        self._chunk = chunk
        self._serial = 0  # newest bundle made (rank 0)
        self._delivered = 0  # newest bundle delivered (all ranks)
        self._bundle = b""

    def header(self) -> list[int]:
        """Rank 0's header for a step, as int32 values; freezes what is waiting into a bundle."""
        if self._serial == self._delivered:
            messages = self._compose()
            if messages:
                self._bundle = encode(messages)
                self._serial += 1
        return [self._serial, len(self._bundle), 0, self._chunk()]

    def meet(self) -> Header:
        """All ranks wait for each other and learn rank 0's header. One small collective."""
        mine = [0] * Header.SIZE
        if self._link.rank == 0:
            mine = self.header()
            mine[2] = self._nap_ms()
        return Header(*self._link.share_ints(mine))

    def receive(self, header: Header) -> list[Message]:
        """The bundle that header announces, or nothing if it was delivered before."""
        if header.serial <= self._delivered:
            return []
        data = self._link.share_bytes(self._bundle, header.length)
        self._delivered = header.serial
        self._bundle = b""
        return decode(data)
