"""Finds the first of several markers in text that may go on. Pure; rank 0's HTTP threads."""

import re
from collections.abc import Iterable


class MarkerSearch:
    """Where no marker begins with another, what it finds does not depend on how text was cut."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = tuple(markers)
        longest_first = sorted(self._markers, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._beginnings = {
            marker[:size] for marker in self._markers for size in range(1, len(marker))
        }
        self._longest = max(map(len, self._beginnings), default=0)

    def search(self, text: str) -> re.Match[str] | None:
        """The first marker."""
        return self._pattern.search(text)

    def held(self, text: str) -> int:
        """How many characters at the end of a text without a marker may be the beginning of one."""
        for size in range(min(self._longest, len(text)), 0, -1):
            if text[-size:] in self._beginnings:
                return size
        return 0
