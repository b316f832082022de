"""What a text is likely to go on with, by what it has said before: n-grams, no model.

Rank 0's main thread alone; some microseconds a token. The last few tokens are looked up in tables
of where such tokens stood last; what came behind them there is what is expected here. As long as
the text goes on as it did there, that place is kept: a file that is written again is followed line
by line, though many of its lines are alike. Imports no mlx.
"""

from collections.abc import Sequence

import numpy as np

SHORT, LONG = 3, 8  # tokens that are looked up; the longer ones first
SLOTS = 2**16  # of a table, 4 bytes each: what comes later takes the place of what is older
MOST_TOKENS = 2**20  # of a text, the newest
SEEN = 32  # tokens, beyond which nobody looks how far two places are alike
FACTOR = 0x9E3779B97F4A7C15
_MASK64 = 2**64 - 1
_POWERS = {n: pow(FACTOR, n, _MASK64 + 1) for n in (SHORT, LONG)}


class NGrams:
    """One text. length: tokens behind the place that is followed which are the text's own last
    ones; 0 where none is."""

    def __init__(self, text: Sequence[int]) -> None:
        text = np.asarray(text[-MOST_TOKENS:], dtype=np.int32)
        self._tokens = np.zeros(max(1024, 2 * len(text)), dtype=np.int32)
        self._tokens[: len(text)] = text
        self._count = len(text)
        self._tables = {n: np.zeros(SLOTS, dtype=np.int32) for n in (LONG, SHORT)}
        self._codes = {n: _code(text[-n:].tolist()) for n in self._tables}  # of the last n tokens
        self._place = 0  # of the token that is expected
        self.length = 0
        for n, table in self._tables.items():
            if len(text) > n:
                # What stands last remains; the very end is looked up before it is put in.
                table[_hashes(text[:-1], n)] = np.arange(n, len(text), dtype=np.int32)
        self._find()
        self._put()

    def add(self, token: int) -> None:
        """The text has one more token."""
        followed = self.length and self._tokens[self._place] == token
        if self._count == len(self._tokens):
            self._grow()
        for n, code in self._codes.items():
            gone = int(self._tokens[self._count - n]) + 1 if self._count >= n else 0
            self._codes[n] = (code * FACTOR + token + 1 - gone * _POWERS[n]) & _MASK64
        self._tokens[self._count] = token
        self._count += 1
        if followed:
            self._place += 1
            self.length += 1
        else:
            self._find()
        self._put()

    def expected(self, most: int) -> list[int]:
        """What is likely to come, so many tokens at most; nothing where nothing is known."""
        if not self.length:
            return []
        known = self._tokens[self._place : min(self._place + most, self._count)]
        return np.resize(known, most).tolist()  # what comes behind the text's end is its repetition

    def _find(self) -> None:
        """The newest place with the same tokens before it, of many if there is one."""
        self.length = 0
        for n, table in self._tables.items():
            if self._count < n:
                continue
            place = int(table[self._slot(n)])
            alike = self._alike(place) if place else 0
            if alike >= n:
                self._place, self.length = place, alike
                return

    def _alike(self, place: int) -> int:
        """How many tokens before a place are the text's last ones."""
        most = min(SEEN, place)
        differ = np.flatnonzero(
            self._tokens[place - most : place] != self._tokens[self._count - most : self._count]
        )
        return most - 1 - int(differ[-1]) if len(differ) else most

    def _put(self) -> None:
        for n, table in self._tables.items():
            if self._count >= n:
                table[self._slot(n)] = self._count

    def _slot(self, n: int) -> int:
        return (self._codes[n] * FACTOR & _MASK64) >> 48

    def _grow(self) -> None:
        """More room; of a text that is too long the older half goes."""
        if self._count < 2 * MOST_TOKENS:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        else:
            self.__init__(self._tokens[: self._count])


def _code(tokens: list[int]) -> int:
    code = 0
    for token in tokens:
        code = (code * FACTOR + token + 1) & _MASK64
    return code


def _hashes(text: np.ndarray, n: int) -> np.ndarray:
    """The slots of all n-grams of a text, as _slot makes them."""
    code = np.zeros(len(text) - n + 1, dtype=np.uint64)
    for i in range(n):
        code = code * np.uint64(FACTOR) + text[i : len(text) - n + 1 + i].astype(np.uint64)
        code += np.uint64(1)
    return (code * np.uint64(FACTOR)) >> np.uint64(48)
