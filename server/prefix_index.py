"""Rank 0's index of prefixes whose KV caches the ranks keep: what to reuse, keep and give up.

Used by the director, on rank 0's main thread. Imports no mlx and holds no caches: every rank has
its shard of an entry under the entry's number (prefix_store.py), and does with it what rank 0 says.

An entry is a sequence of tokens. Where the model's caches can be cut (`cuttable`), an entry serves
every prompt that begins as it does. Where they can't (sliding windows, states), it serves prompts
that begin with all of it, so the places at which prompts part are kept as entries of their own.

The entry that was not used for the longest time goes first. One whose beginning others have used
since, such as a system prompt, is cut down to that beginning instead, and lives on as that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_TOKENS = 32  # of an entry; below, computing is as quick as looking up
MOST_ENTRIES = 1024  # a lookup compares with each
KEEP_PROMPTS_FROM = 256  # tokens newly computed; shorter prompts are kept when they are answered


@dataclass
class Entry:
    """tokens: [length] int32. used: when, counted in lookups. shared: tokens at the beginning
    that another prompt had in common, when it went on otherwise; shared_used: when."""

    tokens: np.ndarray
    used: int
    shared: int = 0
    shared_used: int = 0


@dataclass(frozen=True)
class Plan:
    """For one prompt: the entry to begin with and how many of its tokens (0: none), the lengths
    at which to keep its cache, each with the number of the entry to make, and the number under
    which to keep the whole answered text."""

    entry: int = 0
    length: int = 0
    keep: tuple[tuple[int, int], ...] = ()
    store: int = 0


@dataclass(frozen=True)
class Room:
    """What the ranks must do to make room: drop entries, and cut (entry, length)."""

    drop: tuple[int, ...] = ()
    cut: tuple[tuple[int, int], ...] = ()


class PrefixIndex:
    """room: tokens that all entries may hold; 0: nothing is kept. entry_cost: what an entry costs
    beside its tokens, in tokens (states of fixed size)."""

    def __init__(self, room: int, cuttable: bool, entry_cost: int = 0) -> None:
        self.room = room
        self._cuttable = cuttable
        self._entry_cost = entry_cost
        self._entries: dict[int, Entry] = {}
        self._numbers = 0
        self._now = 0
        self._redundant: list[int] = []  # entries that others contain
        self.hit_tokens = self.miss_tokens = self.evicted_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used(self) -> int:
        """Tokens' worth of KV memory that the entries hold."""
        return sum(len(e.tokens) + self._entry_cost for e in self._entries.values())

    def plan(self, prompt: Sequence[int]) -> Plan:
        """What to reuse and to keep for a prompt that is about to start."""
        if not self.room:
            return Plan()
        self._now += 1
        wanted = np.asarray(prompt, dtype=np.int32)
        entry, length, parting = self._search(wanted)
        self.hit_tokens += length
        self.miss_tokens += len(wanted) - length
        keep = set()
        if len(wanted) - length >= KEEP_PROMPTS_FROM or not self._cuttable:
            keep.add(len(wanted) - 1)  # the last token is decoded, not prefilled
        if not self._cuttable:
            keep.add(parting)
        keep = {at for at in keep if max(length + 1, LEAST_TOKENS) <= at < len(wanted)}
        if len(wanted) > self.room:
            return Plan(entry, length)
        return Plan(
            entry, length, tuple((at, self._number()) for at in sorted(keep)), self._number()
        )

    def add(self, number: int, tokens: Sequence[int]) -> None:
        """The ranks have kept an entry."""
        fresh = Entry(np.asarray(tokens, dtype=np.int32), self._now)
        for other, entry in list(self._entries.items()):
            common = _common(entry.tokens, fresh.tokens)
            if common == len(entry.tokens) and (self._cuttable or common == len(fresh.tokens)):
                # The new one can do all that this one could.
                if entry.shared > fresh.shared:
                    fresh.shared, fresh.shared_used = entry.shared, entry.shared_used
                del self._entries[other]
                self._redundant.append(other)
        self._entries[number] = fresh

    def make_room(self, tokens: int) -> Room:
        """Brings the entries down to that many tokens, and to their own part of the memory."""
        drop, cut = self._redundant, {}
        self._redundant = []
        limit = min(tokens, self.room)
        left = self.used
        while self._entries and (left > limit or len(self._entries) > MOST_ENTRIES):
            number = min(self._entries, key=lambda n: self._entries[n].used)
            entry = self._entries[number]
            before = len(entry.tokens)
            if self._cuttable and LEAST_TOKENS <= entry.shared < before:
                entry.tokens = entry.tokens[: entry.shared].copy()
                entry.used, entry.shared = entry.shared_used, 0
                cut[number] = len(entry.tokens)
                freed = before - len(entry.tokens)
            else:
                del self._entries[number]
                cut.pop(number, None)
                drop.append(number)
                freed = before + self._entry_cost
            left -= freed
            self.evicted_tokens += freed
        return Room(tuple(drop), tuple(cut.items()))

    def _search(self, wanted: np.ndarray) -> tuple[int, int, int]:
        """The best entry for a prompt, how many of its tokens serve, and where the prompt parts
        from the entry that is most like it."""
        best, length, parting, likest = 0, 0, 0, None
        for number, entry in self._entries.items():
            common = _common(entry.tokens, wanted)
            if common > parting:
                parting, likest = common, entry
            common = min(common, len(wanted) - 1)
            serves = self._cuttable or common == len(entry.tokens)
            if serves and common > length and common >= LEAST_TOKENS:
                best, length = number, common
        if best:
            self._touch(self._entries[best], length)
        if likest is not None:
            self._touch(likest, parting)
        return best, length, parting

    def _touch(self, entry: Entry, length: int) -> None:
        if length == len(entry.tokens):
            entry.used = self._now
        elif self._cuttable and length >= LEAST_TOKENS:
            entry.shared, entry.shared_used = max(entry.shared, length), self._now

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    length = min(len(a), len(b))
    # Most sequences part early, so a short look spares the long one.
    if (a[: min(length, LEAST_TOKENS)] == b[: min(length, LEAST_TOKENS)]).all():
        differ = a[:length] != b[:length]
    else:
        differ = a[: min(length, LEAST_TOKENS)] != b[: min(length, LEAST_TOKENS)]
    first = int(differ.argmax()) if len(differ) else 0
    return first if len(differ) and differ[first] else length
