"""Finds token sequences by their beginnings. Used by prefix_index, on rank 0. Imports no mlx.

Sequences are cut into blocks, and every beginning of whole blocks has a key, made of the key of the
beginning before and the block. So a lookup takes as many steps as the sequence has blocks, however
many sequences there are. Keys are hashes: what is found by them is compared token by token.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from server.wire.messages import LEAST_KEPT

BLOCK = LEAST_KEPT  # tokens: what is shorter need not be found
LOOKED_AT = 8  # of the sequences that share all whole blocks; they differ by less than a block


class PrefixTree:
    """Token sequences by number. Those shorter than a block are not found."""

    def __init__(self) -> None:
        self._tokens: dict[int, np.ndarray] = {}
        # By key, the numbers of the sequences that begin so, and of those that end in that block
        # or before the next. Dictionaries as sets that remember the order.
        self._through: dict[int, dict[int, None]] = {}
        self._ending: dict[int, dict[int, None]] = {}

    def add(self, number: int, tokens: np.ndarray) -> None:
        """tokens: [length] int32. The number must be new."""
        self._tokens[number] = tokens
        key = None
        for key in _keys(tokens):
            self._through.setdefault(key, {})[number] = None
        if key is not None:
            self._ending.setdefault(key, {})[number] = None

    def __len__(self) -> int:
        return len(self._tokens)

    def remove(self, number: int) -> None:
        """Forgets a sequence. The number must be known."""
        for key in _keys(self._tokens.pop(number)):
            for numbers in (self._through, self._ending):
                if key in numbers:
                    numbers[key].pop(number, None)
                    if not numbers[key]:
                        del numbers[key]

    def nearest(self, wanted: np.ndarray) -> tuple[int, int]:
        """The number of a sequence with the longest common beginning, and its tokens; (0, 0) if
        less than a block is common."""
        depth, near = 0, None
        for key in _keys(wanted):
            if key not in self._through:
                break
            depth, near = depth + 1, self._through[key]
        best = (0, 0)
        for number in itertools.islice(reversed(near or {}), LOOKED_AT):
            best = max(best, (common(self._tokens[number], wanted), number))
        length, number = best
        return (number, length) if length >= BLOCK else (0, 0)

    def within(self, wanted: np.ndarray) -> list[tuple[int, int]]:
        """Numbers and lengths of the sequences that `wanted` begins with, the shortest first."""
        found = []
        for key in _keys(wanted):
            if key not in self._through:
                break
            for number in self._ending.get(key, ()):
                tokens = self._tokens[number]
                if len(tokens) <= len(wanted) and (tokens == wanted[: len(tokens)]).all():
                    found.append((len(tokens), number))
        return [(number, length) for length, number in sorted(found)]

    def beyond(self, tokens: np.ndarray) -> list[int]:
        """The numbers of the longer sequences that begin with tokens, a block of them at least."""
        key = None
        for key in _keys(tokens):
            if key not in self._through:
                return []
        size = len(tokens)
        return [
            number
            for number in self._through.get(key, ())
            if len(self._tokens[number]) > size and (self._tokens[number][:size] == tokens).all()
        ]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two arrays have in common at their beginnings."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length


def _keys(tokens: np.ndarray) -> Iterator[int]:
    """The key of each beginning of whole blocks, the shortest first."""
    key = 0
    data, size = tokens.tobytes(), BLOCK * tokens.itemsize
    for start in range(0, len(data) - size + 1, size):
        key = hash((key, data[start : start + size]))
        yield key
