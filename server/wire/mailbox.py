"""Rank 0's messages to every rank, announced by a header that costs nothing while decoding.

Called on the main thread of every rank. A header is five numbers: the length of a bundle of
messages in bytes, how long to nap, how large a prefill chunk to compute, when to hand a decode step
to MLX, and how many drafts come with the next one's tokens. In steady decoding the header rides on
the collective that carries the sampled tokens (choosers.py); otherwise the ranks meet for it in one
small collective, which is also the heartbeat. Every header is read before the next is made.

What carries them proves that they are what rank 0 sent (seal.py). All the same nothing is allotted
or decoded for a header that says what rank 0 never says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.wire.messages import Message, decode, encode
from server.wire.seal import Garbled

NAP_MOST_MS = 1000
CHUNK_MOST = 2**24  # tokens
DRAFTS_MOST = 256  # tokens
BUNDLE_MOST = 2**31 - 1  # bytes; a cluster's own limit is lower
RECORD_BYTES = 64 * 1024  # of a Submit beside its prompt: MAX_TOKEN_IDS stop ids are the most of it
ENTRY_BYTES = 64  # to cut or evict a kept prefix, of 16 tokens at least


def bundle_bytes_most(rows: int, tokens: int) -> int:
    """Bytes that a bundle can have at most, where so many rows run, with so many tokens in all.

    Rank 0 admits what fits the KV memory, so the prompts of a bundle have tokens in all, at four
    bytes each; and as many tokens may be kept in prefixes, to be given up.
    """
    return min(BUNDLE_MOST, 2**20 + rows * RECORD_BYTES + tokens * (4 + ENTRY_BYTES // 16))


@dataclass(frozen=True)
class Header:
    """What rank 0 announces. length: bytes; 0: no messages. nap_ms: milliseconds.
    chunk: tokens of prompts between two decode steps. late: 1 to hand a decode step to MLX after
    messages and prompts, 0 before. drafts: tokens of drafts that there is room for behind the next
    step's header; 0: the step after it does not wait for its tokens."""

    length: int = 0
    nap_ms: int = 0
    chunk: int = 1
    late: int = 0
    drafts: int = 0

    SIZE = 5

    @classmethod
    def of(cls, values: list[int]) -> "Header":
        """What rank 0 has sent. Raises Garbled for what it never sends."""
        header = cls(*values)
        most = {
            "length": BUNDLE_MOST, "nap_ms": NAP_MOST_MS, "chunk": CHUNK_MOST, "late": 1,
            "drafts": DRAFTS_MOST,
        }  # fmt: skip
        for name, limit in most.items():
            if not 0 <= getattr(header, name) <= limit:
                raise Garbled("header", f"{header}, where {name} is 0 to {limit}")
        return header


class Carrier(Protocol):
    """A Link, or the Heartbeat that wraps one."""

    rank: int

    def share_ints(self, values: list[int]) -> list[int]: ...

    def share_bytes(self, data: bytes, length: int) -> bytes: ...


class Mailbox:
    """compose yields rank 0's next messages; on workers it is never called. most: bytes of a
    bundle, by bundle_bytes_most."""

    def __init__(
        self,
        link: Carrier,
        compose: Callable[[], list[Message]],
        nap_ms: Callable[[], int],
        chunk: Callable[[], int],
        late: Callable[[], bool],
        most: int = BUNDLE_MOST,
        drafts: Callable[[], int] = lambda: 0,
    ) -> None:
        self._link = link
        self._compose = compose
        self._nap_ms = nap_ms
        self._chunk = chunk
        self._late = late
        self._most = most
        self._drafts = drafts
        self._bundle = b""  # announced, and not yet delivered

    def allow(self, most: int) -> None:
        """From now on a bundle may have so many bytes: other models are loaded."""
        self._most = most

    def header(self) -> list[int]:
        """Rank 0's header for a step, as int32 values; puts what is waiting into a bundle."""
        messages = self._compose()
        self._bundle = encode(messages) if messages else b""
        return [len(self._bundle), 0, self._chunk(), int(self._late()), self._drafts()]

    def meet(self) -> Header:
        """All ranks wait for each other and learn rank 0's header. One small collective."""
        mine = [0] * Header.SIZE
        if self._link.rank == 0:
            mine = self.header()
            mine[1] = self._nap_ms()
        return Header.of(self._link.share_ints(mine))

    def receive(self, header: Header) -> list[Message]:
        """The bundle that header announces. Raises Garbled."""
        if not header.length:
            return []
        if header.length > self._most:
            raise Garbled("header", f"a bundle of {header.length} bytes, at most {self._most}")
        data = self._link.share_bytes(self._bundle, header.length)
        try:
            return decode(data)
        except ValueError as error:
            raise Garbled("bundle", f"{len(data)} bytes, {error}") from error
