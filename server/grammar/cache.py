"""Keeps what has become of grammars: those that compiled, and why the others were refused.

Any thread of rank 0. Nothing that takes time is done under its lock, so that nobody who asks for a
grammar that is kept waits for one that is being compiled.
"""

import hashlib
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

from server.protocol.client import SERVER

# Of memory that compiling them took: about three times what is kept.
KEPT_BYTES = 256 * 2**20
LEAST_BYTES = 2**20  # that one counts for
KEPT_REFUSALS = 1024  # a few hundred bytes each


@dataclass(frozen=True)
class Kept:
    """grammar: compiled. size: bytes. source: whose it is, as Client has it."""

    grammar: Any
    size: int
    source: str


def key_of(text: str) -> bytes:
    """What a grammar is kept under: its text may have half a megabyte."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class GrammarCache:
    """When the compiled ones exceed KEPT_BYTES, whoever has most gives up what was not used for
    the longest time: a client that compiles a lot evicts its own. The server's own are for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()  # the least recently used first
        self._held: Counter[str] = Counter()  # bytes by source, but for the server's own
        self._refused: OrderedDict[bytes, str] = OrderedDict()

    def find(self, key: bytes) -> Any:
        """The compiled grammar, the reason against it (a str), or None if neither is known."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key].grammar
            if key in self._refused:
                self._refused.move_to_end(key)
            return self._refused.get(key)

    def keep(self, key: bytes, grammar: Any, size: int, source: str) -> None:
        """Remembers a compiled grammar that source has brought. size: bytes."""
        kept = Kept(grammar, max(size, LEAST_BYTES), source)
        with self._lock:
            self._drop(key)
            self._kept[key] = kept
            if source != SERVER.source:
                self._held[source] += kept.size
            while self._held.total() > KEPT_BYTES:
                most = max(self._held, key=self._held.__getitem__)
                self._drop(next(key for key, one in self._kept.items() if one.source == most))

    def refuse(self, key: bytes, reason: str) -> None:
        """Remembers why a grammar cannot be used."""
        with self._lock:
            self._refused[key] = reason
            while len(self._refused) > KEPT_REFUSALS:
                self._refused.popitem(last=False)

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None and kept.source != SERVER.source:
            self._held[kept.source] -= kept.size
            if not self._held[kept.source]:
                del self._held[kept.source]
