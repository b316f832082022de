"""Which kept prefix to give up first where caches cannot be cut. Used by prefix_index, on rank 0.

There every place from which prompts go on is an entry of its own, with all tokens before it, so one
conversation has several, and most of them save little: the tokens between them and the next shorter
one. So an entry goes that was not used for long, but counts as used later the more of its own
tokens it saves: one of which nearly all would have to be computed again stays the longest.

One that a prompt has gone on from has done its work: what that prompt has kept is longer. It counts
as it was used, unless several prompts have gone on from it, as from a system prompt.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from server.scheduler.prefix_tree import PrefixTree

BONUS = 64  # lookups by which an entry counts as used later that saves all of its tokens


@dataclass
class Kin:
    """An entry's next shorter one, and those whose next shorter one it is."""

    parent: int = 0  # 0: none
    children: set[int] = field(default_factory=set)


class Lineage:
    """Which entry goes on from which. length: of an entry's tokens, by its number."""

    def __init__(self, length: Callable[[int], int]) -> None:
        self._length = length
        self._kin: dict[int, Kin] = {}

    def add(self, number: int, tokens: np.ndarray, parent: int, tree: PrefixTree) -> None:
        """A new entry. parent: the longest that it begins with; 0: none."""
        kin = self._kin[number] = Kin(parent)
        for other in tree.beyond(tokens):
            before = self._kin[other].parent
            if not before or self._length(before) < len(tokens):
                self._move(other, number)
        if kin.parent:
            self._kin[kin.parent].children.add(number)

    def remove(self, number: int) -> None:
        """Forgets an entry. Those that went on from it save more from now on."""
        kin = self._kin[number]
        for child in self.children(number):
            self._move(child, kin.parent)
        if kin.parent:
            self._kin[kin.parent].children.discard(number)
        del self._kin[number]

    def saved(self, number: int) -> int:
        """Tokens that would have to be computed again without it."""
        parent = self._kin[number].parent
        return self._length(number) - (self._length(parent) if parent else 0)

    def children(self, number: int) -> list[int]:
        """Those that go on from it with nothing between."""
        return list(self._kin[number].children)

    def _move(self, child: int, parent: int) -> None:
        kin = self._kin[child]
        if kin.parent:
            self._kin[kin.parent].children.discard(child)
        kin.parent = parent
        if parent:
            self._kin[parent].children.add(child)


class ByWorth:
    """Entries in the order in which to give them up. worth: of an entry, by its number; it may only
    grow, by again()."""

    def __init__(self, numbers: list[int], worth: Callable[[int], float]) -> None:
        self._order = itertools.count()
        self._worth = worth
        self._now = {number: (worth(number), next(self._order)) for number in numbers}
        self._heap = [(*rank, number) for number, rank in self._now.items()]
        heapq.heapify(self._heap)

    def again(self, number: int) -> None:
        """An entry that is new here, or is worth more than it was."""
        order = self._now[number][1] if number in self._now else next(self._order)
        self._now[number] = rank = (self._worth(number), order)
        heapq.heappush(self._heap, (*rank, number))

    def pop(self) -> int:
        """The one that is worth the least; it is no longer here."""
        while True:
            *rank, number = heapq.heappop(self._heap)
            if self._now.get(number) == tuple(rank):
                del self._now[number]
                return number
