"""Rank 0's index of prefixes whose KV caches the ranks keep: what to reuse, keep and give up.

Used by the scheduler, on rank 0's main thread. Imports no mlx and holds no caches: every rank has
its shard of an entry under the entry's number (prefix_store.py), and does with it what rank 0 says.

An entry is a sequence of tokens. Where the model's caches can be cut (`cuttable`), an entry serves
every prompt that begins as it does. Where they can't (sliding windows, states), it serves prompts
that begin with all of it, so the places at which prompts part are kept as entries of their own.

The entry that was not used for the longest time goes first. One whose beginning others have used
since, such as a system prompt, is cut down to that beginning instead, and lives on as that.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.scheduler.prefix_tree import PrefixTree
from server.wire.messages import LEAST_KEPT

MOST_ENTRIES = 4096
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
        self._tree = PrefixTree()
        self._numbers = 0
        self._now = 0
        self._redundant: list[int] = []  # entries that the ranks may drop: others contain them
        self.used = 0  # tokens' worth of KV memory that the entries hold
        self.hit_tokens = self.miss_tokens = self.evicted_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

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
        if len(wanted) - length >= KEEP_PROMPTS_FROM:
            # Whole it would not serve the same prompt again, as one token is left to compute.
            keep.add(len(wanted) if self._cuttable else len(wanted) - 1)
        if not self._cuttable and parting < len(wanted):
            keep.add(parting)
        keep = {at for at in keep if at >= max(length + 1, LEAST_KEPT)}
        if self._entry_cost + len(wanted) > self.room:
            return Plan(entry, length)
        return Plan(
            entry, length, tuple((at, self._number()) for at in sorted(keep)), self._number()
        )

    def add(self, number: int, tokens: Sequence[int]) -> None:
        """The ranks have kept an entry."""
        fresh = Entry(np.asarray(tokens, dtype=np.int32), self._now)
        for other, length in self._tree.within(fresh.tokens):
            if self._cuttable or length == len(fresh.tokens):
                # The new one can do all that this one could.
                entry = self._take_out(other)
                if entry.shared > fresh.shared:
                    fresh.shared, fresh.shared_used = entry.shared, entry.shared_used
                self._redundant.append(other)
        self._put_in(number, fresh)

    def give_up(self, number: int) -> None:
        """Has an entry dropped with the next that are, whatever it is good for."""
        if number in self._entries:
            self._take_out(number)
            self._redundant.append(number)

    def make_room(self, tokens: int) -> Room:
        """Brings the entries down to that many tokens, and to their own part of the memory."""
        drop, cut = self._redundant, {}
        self._redundant = []
        limit = min(tokens, self.room)
        if not self._exceed(limit):
            return Room(tuple(drop))
        # By when they were used; by their order where that is the same. To look through all of
        # them for each that goes took a second and a half for thousands.
        order = itertools.count()
        oldest = [(entry.used, next(order), number) for number, entry in self._entries.items()]
        heapq.heapify(oldest)
        while self._entries and self._exceed(limit):
            before = self.used
            _, _, number = heapq.heappop(oldest)
            entry = self._take_out(number)
            if self._cuttable and LEAST_KEPT <= entry.shared < len(entry.tokens):
                cut[number] = entry.shared
                shorter = Entry(entry.tokens[: entry.shared].copy(), entry.shared_used)
                self._put_in(number, shorter)
                heapq.heappush(oldest, (shorter.used, next(order), number))
            else:
                cut.pop(number, None)
                drop.append(number)
            self.evicted_tokens += before - self.used
        return Room(tuple(drop), tuple(cut.items()))

    def _exceed(self, limit: int) -> bool:
        return self.used > limit or len(self._entries) > MOST_ENTRIES

    def _search(self, wanted: np.ndarray) -> tuple[int, int, int]:
        """The best entry for a prompt, how many of its tokens serve, and where the prompt parts
        from the entry that is most like it."""
        most = len(wanted) - 1  # one token is left to compute
        likest, parting = self._tree.nearest(wanted)
        if likest:
            self._touch(self._entries[likest], parting)
        if self._cuttable:
            best, length = likest, min(parting, most)
        else:
            best, length = max(
                ((n, size) for n, size in self._tree.within(wanted) if size <= most),
                key=lambda found: found[1],
                default=(0, 0),
            )
            if best:
                self._touch(self._entries[best], length)
        return (best, length, parting) if length >= LEAST_KEPT else (0, 0, parting)

    def _put_in(self, number: int, entry: Entry) -> None:
        self._entries[number] = entry
        self._tree.add(number, entry.tokens)
        self.used += len(entry.tokens) + self._entry_cost

    def _take_out(self, number: int) -> Entry:
        entry = self._entries.pop(number)
        self._tree.remove(number)
        self.used -= len(entry.tokens) + self._entry_cost
        return entry

    def _touch(self, entry: Entry, length: int) -> None:
        if length == len(entry.tokens):
            entry.used = self._now
        elif self._cuttable and length >= LEAST_KEPT:
            entry.shared, entry.shared_used = max(entry.shared, length), self._now

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
