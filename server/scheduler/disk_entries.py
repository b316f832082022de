"""What is on the ranks' disks, as rank 0 knows it: entries by their tokens, and which go first.

Used by disk_index.py, on rank 0's main thread. Imports no mlx and opens no file.

An entry is a text; the tokens before its start are those of its base, which has them already, so
each is on disk once. What was of no use for the longest time goes first, of those that are nobody's
base.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from server.protocol.row_lengths import WHOLE, Precision
from server.scheduler.prefix_index import EVERYBODY
from server.scheduler.prefix_tree import PrefixTree

LEAST = 128  # tokens that are worth a file, or reading one
MOST_ENTRIES = 8000
MOST_TOKENS = 16_000_000  # of all entries, each with its beginning: 64 MB of rank 0's memory
MOST_CHAIN = 64  # files of a text; then it is written anew


@dataclass(frozen=True)
class OnEveryDisk:
    """What was there at the start: of a file's header, on all ranks alike. kib: on each rank; label
    and used are rank 0's."""

    name: str
    base: str
    start: int
    end: int
    kib: tuple[int, ...]
    label: bytes
    used: float


@dataclass(eq=False)
class Entry:
    """tokens: all of them, [length] int32; those before start are base's. used: when, by the wall
    clock; children: entries whose base it is; going_on: those that begin with all of it."""

    name: str
    owner: str
    tokens: np.ndarray
    start: int
    base: "Entry | None"
    kib: tuple[int, ...]
    used: float
    children: int = 0
    going_on: int = 0
    number: int = 0

    @property
    def chain(self) -> Iterator["Entry"]:
        """It, and what it is based on."""
        one: Entry | None = self
        while one is not None:
            yield one
            one = one.base


class DiskEntries:
    """limit: KiB that each of so many ranks may have on its disk. cuttable: whether an entry serves
    what begins as it does, or only what begins with all of it. precision: what they are kept in; of
    long and short ones none is based on the other."""

    def __init__(
        self, limit: int, ranks: int, cuttable: bool, precision: Precision = WHOLE
    ) -> None:
        self.limit = limit
        self._cuttable = cuttable
        self._precision = precision
        self.pinned: Callable[[], Iterable[Entry]] = tuple  # what is being read, or gone on from
        self._beside = [self]
        self._entries: dict[int, Entry] = {}
        self._names: dict[str, Entry] = {}
        self._trees: dict[tuple[str, bool], PrefixTree] = {}  # by owner, and whether they are long
        self._numbers = 0
        self._tokens = 0
        self.kib = [0] * ranks
        self.evicted_kib = 0
        self.forgotten: list[str] = []  # names to delete, of what is not here any more

    def join(self, beside: "list[DiskEntries]") -> None:
        """From now on the limit is for all of these, of other models on the same disks."""
        beside.append(self)
        self._beside = beside
        self.make_room([0] * len(self.kib))

    def leave(self) -> None:
        """The model goes; its files stay until somebody needs the room."""
        self._beside.remove(self)
        self._beside = [self]

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def load(self, found: Iterable[OnEveryDisk]) -> None:
        """At the start. What does not say which tokens it is of is to be deleted."""
        left = {one.name: one for one in found}
        while ready := [one for one in left.values() if one.base not in left]:
            for one in ready:
                del left[one.name]
                entry = self._entry_of(one)
                if entry is None:
                    self.forgotten.append(one.name)
                else:
                    self._put_in(entry)
        self.forgotten += left  # each other's base: no rank has written that
        self.make_room([0] * len(self.kib))

    def add(
        self, tokens: np.ndarray, owner: str, base: Entry | None, start: int, kib: tuple[int, ...]
    ) -> None:
        """All ranks have it."""
        name = name_of(owner, tokens)
        self._put_in(Entry(name, owner, tokens, start, base, kib, time.time()))

    def find(self, wanted: np.ndarray, owner: str) -> tuple[Entry | None, int]:
        """The best entry for a prompt, and how many of its tokens serve."""
        most = len(wanted) - 1  # one token is left to compute
        if self._cuttable:
            number, length = self._nearest(wanted, self._open_to(owner))
            length = min(length, most)
            if number and not self._serves(number, length):
                number, length = self._nearest(wanted, self._open_to(owner, long=False))
                length = min(length, most)
        else:
            number, length = self._longest(wanted, most, owner)
        entry = self._entries.get(number)
        while entry is not None and entry.start >= length and self._cuttable:
            entry = entry.base
        return entry, length

    def base_for(self, tokens: np.ndarray, owner: str) -> tuple[Entry | None, int, int]:
        """What a text is to be based on, from which token on it is new, and how many of its tokens
        need not be computed as it is."""
        long = self._precision.is_long(len(tokens))
        number, common = self._nearest(tokens, self._open_to(owner, long))
        if self._cuttable:
            serves = common if number and self._serves(number, common) else 0
        else:
            serves = self._longest(tokens, len(tokens), owner)[1]
        base = self._entries[number] if common >= LEAST else None
        if base is not None and sum(1 for _ in base.chain) >= MOST_CHAIN:
            base = None
        while base is not None and base.start >= common:
            base = base.base
        return base, common if base is not None else 0, serves

    def use(self, prompt: np.ndarray, owner: str) -> list[str]:
        """What a prompt has in common with an entry is of use, wherever it was found. Its names."""
        number, length = self._nearest(prompt, self._open_to(owner))
        if length < LEAST:
            return []
        used = [entry for entry in self._entries[number].chain if entry.start < length]
        for entry in used:
            entry.used = time.time()
        return [entry.name for entry in used]

    def make_room(
        self, needs: Sequence[int], tokens: int = 0, pinned: Sequence[Entry] = ()
    ) -> bool:
        """Whether so many KiB of each rank fit, with so many tokens; makes them fit if it can.
        pinned: must stay."""
        if max(needs, default=0) > self.limit or tokens > MOST_TOKENS:
            return False
        stay = {*pinned, *(entry for one in self._beside for entry in one.pinned())}
        while (
            (full := self._is_full(needs))
            or len(self._entries) > MOST_ENTRIES
            or self._tokens + tokens > MOST_TOKENS
        ):
            ends = [
                (entry, one)
                for one in (self._beside if full else [self])
                for entry in one._entries.values()
                if not entry.children and entry not in stay
            ]
            if not ends:
                return False
            # Some at a time: to look through all of them for each would take long for thousands.
            ends.sort(key=lambda end: end[0].used)
            for entry, one in ends[: max(1, len(ends) // 16)]:
                one._take_out(entry)
                one.evicted_kib += max(entry.kib)
        return True

    def _is_full(self, needs: Sequence[int]) -> bool:
        """Of any rank's disk, with so many KiB more of each."""
        used = map(sum, zip(*(one.kib for one in self._beside), needs, strict=True))
        return any(kib > self.limit for kib in used)

    def doom(self, entry: Entry) -> list[Entry]:
        """Takes out all that has a file in common with an entry; returns them."""
        first = list(entry.chain)[-1]
        doomed = [one for one in self._entries.values() if first in one.chain]
        for one in sorted(doomed, key=lambda one: len(list(one.chain)), reverse=True):
            self._take_out(one)
        return doomed

    def _entry_of(self, one: OnEveryDisk) -> Entry | None:
        base = self._names.get(one.base)
        if bool(one.base) != (base is not None) or bool(one.base) != bool(one.start):
            return None
        before = base.tokens[: one.start] if base else np.empty(0, dtype=np.int32)
        owner, own = _read_label(one.label)
        tokens = np.concatenate([before, own])
        right = len(before) == one.start and len(tokens) == one.end >= LEAST
        if not right or name_of(owner, tokens) != one.name:
            return None
        return Entry(one.name, owner, tokens, one.start, base, one.kib, one.used)

    def _put_in(self, entry: Entry) -> None:
        self._numbers += 1
        entry.number = self._numbers
        self._entries[entry.number] = self._names[entry.name] = entry
        self._tree(entry).add(entry.number, entry.tokens)
        self._count(entry, 1)
        if entry.base is not None:
            entry.base.children += 1
            if self._cuttable and entry.start == len(entry.base.tokens):
                # Who finds it finds the longer one; so a long conversation is indexed once.
                if not entry.base.going_on:
                    self._tree(entry).remove(entry.base.number)
                entry.base.going_on += 1

    def _take_out(self, entry: Entry) -> None:
        """Of one that is nobody's base."""
        del self._entries[entry.number], self._names[entry.name]
        self._tree(entry).remove(entry.number)
        self._count(entry, -1)
        self.forgotten.append(entry.name)
        base = entry.base
        if base is not None:
            base.children -= 1
            if self._cuttable and entry.start == len(base.tokens):
                base.going_on -= 1
                if not base.going_on:
                    self._tree(base).add(base.number, base.tokens)

    def _count(self, entry: Entry, sign: int) -> None:
        self._tokens += sign * len(entry.tokens)
        self.kib = [a + sign * b for a, b in zip(self.kib, entry.kib, strict=True)]

    def _serves(self, number: int, length: int) -> bool:
        return self._precision.serves(len(self._entries[number].tokens), length)

    def _nearest(self, tokens: np.ndarray, trees: list[PrefixTree]) -> tuple[int, int]:
        """The entry with the longest common beginning, and that in tokens."""
        found = [tree.nearest(tokens) for tree in trees]
        return max(found, key=lambda one: one[1], default=(0, 0))

    def _longest(self, tokens: np.ndarray, most: int, owner: str) -> tuple[int, int]:
        """The longest entry that a text begins with, of so many tokens at most."""
        within = [one for tree in self._open_to(owner) for one in tree.within(tokens)]
        fits = [one for one in within if one[1] <= most]
        return max(fits, key=lambda one: one[1], default=(0, 0))

    def _open_to(self, owner: str, long: bool | None = None) -> list[PrefixTree]:
        """long: only those of long texts, or of short ones."""
        kinds = (True, False) if long is None else (long,)
        keys = [(one, kind) for one in {owner, EVERYBODY} for kind in kinds]
        return [self._trees[key] for key in keys if key in self._trees]

    def _tree(self, entry: Entry) -> PrefixTree:
        key = entry.owner, self._precision.is_long(len(entry.tokens))
        return self._trees.setdefault(key, PrefixTree())


def name_of(owner: str, tokens: np.ndarray) -> str:
    """Tells nothing of the text but whether it is the same."""
    return hashlib.sha256(owner.encode() + b"\0" + tokens.tobytes()).hexdigest()[:32]


def label_of(owner: str, tokens: np.ndarray) -> bytes:
    return json.dumps({"owner": owner}).encode() + b"\n" + tokens.astype("<i4").tobytes()


def _read_label(label: bytes) -> tuple[str, np.ndarray]:
    """Scope and tokens; none where it is no label."""
    try:
        text, _, tokens = label.partition(b"\n")
        return str(json.loads(text)["owner"]), np.frombuffer(tokens, dtype="<i4").astype(np.int32)
    except (ValueError, TypeError, KeyError):
        return "", np.empty(0, dtype=np.int32)
