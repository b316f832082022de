"""Rank 0's index of prefixes whose KV caches the ranks keep: what to reuse, keep and give up.

Used by the scheduler, on rank 0's main thread. Imports no mlx and holds no caches: every rank has
its shard of an entry under the entry's number (prefix_store.py), and does with it what rank 0 says.

An entry is a sequence of tokens. Where the model's caches can be cut (`cuttable`), an entry serves
every prompt that begins as it does. The one that was not used for the longest time goes first; one
whose beginning others have used since, such as a system prompt, is cut down to that beginning
instead, and lives on as that.

Where caches can't be cut (sliding windows, states), an entry serves prompts that begin with all of
it. So the places at which prompts part are kept as entries of their own: those that the chat
template shows (text/places), those at which prompts were seen to part, and some in the midst of
long prompts while there is room to spare. Which of them go first, see prefix_worth.

Entries belong to an owner, who alone finds them; those of EVERYBODY are found by all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.protocol.requests import NOWHERE, Places
from server.protocol.row_lengths import WHOLE, Precision
from server.scheduler.prefix_tree import PrefixTree
from server.scheduler.prefix_worth import BONUS, ByWorth, Lineage
from server.wire.messages import LEAST_KEPT

MOST_ENTRIES = 4096
KEEP_PROMPTS_FROM = 256  # tokens newly computed; shorter prompts are kept when they are answered
LONG = 4096  # tokens between two places in the midst of a prompt, at least
MOST_BETWEEN = 4  # such places of one prompt
MOST_PROMISED = 65_536  # numbers given out, of which most come back as entries
EVERYBODY = "*"  # an owner; no API key has this label


@dataclass
class Entry:
    """tokens: [length] int32. used: when, counted in lookups. shared: tokens at the beginning
    that another prompt had in common, when it went on otherwise; shared_used: when. hits: prompts
    that went on from all of it; common: whether several are likely to; part: whether it is of a
    prompt whose client did not wait for the rest."""

    tokens: np.ndarray
    used: int
    shared: int = 0
    shared_used: int = 0
    owner: str = ""
    hits: int = 0
    common: bool = False
    part: bool = False


@dataclass(frozen=True)
class Promise:
    """What the index knows of an entry before the ranks have kept it."""

    owner: str = ""
    common: bool = False
    part: bool = False


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
    beside its tokens, in tokens (states of fixed size). precision: what they are kept in; long
    and short ones know nothing of each other, and a long one serves no short beginning."""

    def __init__(
        self, room: int, cuttable: bool, entry_cost: int = 0, precision: Precision = WHOLE
    ) -> None:
        self.room = room
        self.cuttable = cuttable
        self._entry_cost = entry_cost
        self._precision = precision
        self._entries: dict[int, Entry] = {}
        self._trees: dict[tuple[str, bool], PrefixTree] = {}  # by owner, and whether they are long
        self._lineage = None if cuttable else Lineage(lambda n: len(self._entries[n].tokens))
        self._promised: dict[int, Promise] = {}
        self._numbers = 0
        self._now = 0
        self._redundant: list[int] = []  # entries that the ranks may drop: others contain them
        self.used = 0  # tokens' worth of KV memory that the entries hold
        self.hit_tokens = self.miss_tokens = self.evicted_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def wants_places(self) -> bool:
        """Whether it makes a difference to plan() where prompts are likely to part."""
        return bool(self.room) and not self.cuttable

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def owner(self, number: int) -> str:
        """Of an entry."""
        return self._entries[number].owner

    def held(self, prompt: Sequence[int], owner: str = "") -> int:
        """How many tokens of a prompt are kept; as plan() would find, and changes nothing."""
        wanted = np.asarray(prompt, dtype=np.int32)
        most, trees = len(wanted) - 1, self._seen_by(owner)
        if self.cuttable:
            return min(max((self._nearest(tree, wanted)[0] for tree in trees), default=0), most)
        found = (size for tree in trees for _, size in tree.within(wanted) if size <= most)
        return max(found, default=0)

    def plan(self, prompt: Sequence[int], places: Places = NOWHERE, owner: str = "") -> Plan:
        """What to reuse and to keep for a prompt that is about to start."""
        if not self.room:
            return Plan()
        self._now += 1
        wanted = np.asarray(prompt, dtype=np.int32)
        entry, length, parting = self._search(wanted, owner)
        self.hit_tokens += length
        self.miss_tokens += len(wanted) - length
        if not self.fits(len(wanted)):
            return Plan(entry, length)
        if self.cuttable:
            # Who did not wait for a prompt may not wait for its answer, either.
            again = length and self._entries[entry].part
            much = len(wanted) - length >= KEEP_PROMPTS_FROM
            keep = [len(wanted)] if much or again else []
        else:
            new = {parting} if parting >= length + LEAST_KEPT else set()
            keep = self._places(len(wanted), length, new.union(places.at))
        common = {parting, places.shared}
        return Plan(
            entry,
            length,
            tuple((at, self._promise(Promise(owner, at in common))) for at in keep),
            self._promise(Promise(owner)),
        )

    def promise(self, owner: str, part: bool = False) -> int:
        """The number of an entry that the ranks may make; 0: they are to keep nothing. part: of a
        prompt that ends before it is done."""
        return self._promise(Promise(owner, part=part)) if self.room else 0

    def add(self, number: int, tokens: Sequence[int]) -> None:
        """The ranks have kept an entry."""
        promise = self._promised.pop(number, Promise())
        fresh = Entry(np.asarray(tokens, dtype=np.int32), self._now, **vars(promise))
        tree = self._tree(fresh)
        if self.cuttable:
            other, length = tree.nearest(fresh.tokens)
            if length == len(fresh.tokens) < len(self._entries[other].tokens):
                self._entries[other].used = self._now
                self._redundant.append(number)
                return
        parent = 0
        for other, length in tree.within(fresh.tokens):
            if self.cuttable or length == len(fresh.tokens):
                # The new one can do all that this one could.
                entry = self._take_out(other)
                if entry.shared > fresh.shared:
                    fresh.shared, fresh.shared_used = entry.shared, entry.shared_used
                fresh.hits, fresh.common = entry.hits, fresh.common or entry.common
                self._redundant.append(other)
            else:
                parent = other
        self._put_in(number, fresh, parent)

    def give_up(self, number: int) -> None:
        """Has an entry dropped with the next that are, whatever it is good for."""
        if number in self._entries:
            self._take_out(number)
            self._redundant.append(number)

    def fits(self, tokens: int) -> bool:
        """Whether so many could be kept, if nothing else is."""
        return self._cost(tokens) <= self.room

    def make_room(self, tokens: int) -> Room:
        """Brings the entries down to that many tokens, and to their own part of the memory."""
        drop, cut = self._redundant, {}
        self._redundant = []
        limit = min(tokens, self.room)
        if not self._exceed(limit):
            return Room(tuple(drop))
        # To look through all of them for each that goes took a second and a half for thousands.
        entries = ByWorth(list(self._entries), self._worth)
        while self._entries and self._exceed(limit):
            before = self.used
            number = entries.pop()
            heirs = self._lineage.children(number) if self._lineage else []
            entry = self._take_out(number)
            if self.cuttable and LEAST_KEPT <= entry.shared < len(entry.tokens):
                cut[number] = entry.shared
                shorter = entry.tokens[: entry.shared].copy()
                entry = Entry(shorter, entry.shared_used, owner=entry.owner)
                self._put_in(number, entry)
                entries.again(number)
            else:
                cut.pop(number, None)
                drop.append(number)
            for other in heirs:
                entries.again(other)
            self.evicted_tokens += before - self.used
        return Room(tuple(drop), tuple(cut.items()))

    def _exceed(self, limit: int) -> bool:
        return self.used > limit or len(self._entries) > MOST_ENTRIES

    def _worth(self, number: int) -> float:
        """When it was used, and where caches can't be cut what it saves."""
        entry = self._entries[number]
        if self._lineage is None:
            return entry.used
        if entry.hits and not entry.common and self._lineage.children(number):
            return entry.used  # by a prompt that has kept more
        return entry.used + BONUS * self._lineage.saved(number) / self._cost(len(entry.tokens))

    def _search(self, wanted: np.ndarray, owner: str) -> tuple[int, int, int]:
        """The best entry for a prompt, how many of its tokens serve, and where the prompt parts
        from the entry that is most like it."""
        most = len(wanted) - 1  # one token is left to compute
        trees = self._seen_by(owner)
        parting, likest = max((self._nearest(tree, wanted) for tree in trees), default=(0, 0))
        if likest:
            self._touch(self._entries[likest], parting)
        if self.cuttable:
            best, length = likest, min(parting, most)
        else:
            best, length = self._longest(wanted, most, trees)
        return (best, length, parting) if length >= LEAST_KEPT else (0, 0, parting)

    def _longest(self, wanted: np.ndarray, most: int, trees: list[PrefixTree]) -> tuple[int, int]:
        """The longest entry that a prompt begins with, and its tokens."""
        best = longest = 0
        for tree in trees:
            for number, size in tree.within(wanted):
                entry = self._entries[number]
                if entry.common:
                    entry.used = self._now  # as long as what goes on from it is in use
                if longest < size <= most:
                    best, longest = number, size
        if best:
            entry = self._entries[best]
            entry.used, entry.hits = self._now, entry.hits + 1
            entry.common |= entry.hits > 1
        return best, longest

    def _places(self, tokens: int, reused: int, wanted: set[int]) -> list[int]:
        """Where to keep a prompt's cache, which cannot be cut."""
        # Whole it would not serve the same prompt again, as one token is left to compute.
        found = wanted | {tokens - 1}
        least = max(reused + 1, LEAST_KEPT)
        found = sorted(at for at in found if least <= at < tokens)
        room = self.room - self._cost(tokens)
        while found and sum(map(self._cost, found)) > room:
            found.remove(_saves_least(found, reused))
        between = self._between(tokens, reused)
        if self.used + sum(map(self._cost, [*found, *between])) <= room:
            found = sorted({*found, *between})
        return found

    def _between(self, tokens: int, reused: int) -> range:
        """Places in the midst of a long prompt, for those that part from it there."""
        steps = (tokens - reused) // LONG
        apart = LONG * -(-steps // (MOST_BETWEEN + 1)) or LONG
        return range(reused // LONG * LONG + apart, tokens - apart // 2, apart)

    def _cost(self, tokens: int) -> int:
        """Of an entry, in tokens."""
        return self._precision.cost(tokens) + self._entry_cost

    def _nearest(self, tree: PrefixTree, wanted: np.ndarray) -> tuple[int, int]:
        """How many tokens a prompt has in common with an entry that it could go on from, and which;
        where caches can't be cut, with the one that is most like it."""
        number, length = tree.nearest(wanted)
        if number and self.cuttable:
            kept, most = len(self._entries[number].tokens), len(wanted) - 1
            if not self._precision.serves(kept, min(length, most)):
                return 0, 0
        return length, number

    def _seen_by(self, owner: str) -> list[PrefixTree]:
        keys = [(one, long) for one in {owner, EVERYBODY} for long in (True, False)]
        return [self._trees[key] for key in keys if key in self._trees]

    def _key(self, entry: Entry) -> tuple[str, bool]:
        return entry.owner, self.cuttable and self._precision.is_long(len(entry.tokens))

    def _tree(self, entry: Entry) -> PrefixTree:
        """Of those that it could stand for, or they for it."""
        return self._trees.setdefault(self._key(entry), PrefixTree())

    def _put_in(self, number: int, entry: Entry, parent: int = 0) -> None:
        self._entries[number] = entry
        tree = self._tree(entry)
        tree.add(number, entry.tokens)
        if self._lineage:
            self._lineage.add(number, entry.tokens, parent, tree)
        self.used += self._cost(len(entry.tokens))

    def _take_out(self, number: int) -> Entry:
        if self._lineage:
            self._lineage.remove(number)
        entry = self._entries.pop(number)
        tree = self._tree(entry)
        tree.remove(number)
        if not len(tree):
            del self._trees[self._key(entry)]
        self.used -= self._cost(len(entry.tokens))
        return entry

    def _touch(self, entry: Entry, length: int) -> None:
        if length == len(entry.tokens):
            entry.used = self._now
        elif self.cuttable and length >= LEAST_KEPT:
            entry.shared, entry.shared_used = max(entry.shared, length), self._now

    def _promise(self, promise: Promise) -> int:
        self._numbers += 1
        if len(self._promised) >= MOST_PROMISED:
            # The oldest. If it comes all the same, none who has a key finds it.
            del self._promised[next(iter(self._promised))]
        self._promised[self._numbers] = promise
        return self._numbers


def _saves_least(places: list[int], reused: int) -> int:
    """The place whose entry would save the least of its own tokens."""
    before = [reused, *places]
    return min(zip(places, before, strict=False), key=lambda pair: (pair[0] - pair[1]) / pair[0])[0]
