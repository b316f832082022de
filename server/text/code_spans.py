"""Where in an answer code is quoted, as in Markdown: a call in there is an example of one.

Pure; rank 0's HTTP threads, one CodeSpans for each choice.
"""

import re

FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")
LINE_CHARS = 256  # of a line, as far as it is looked at


class CodeSpans:
    """Follows the content of an answer. quoted_until tells of code that is open at its end."""

    def __init__(self) -> None:
        self._fence = ""  # what opened the block of code that is open
        self._line = ""  # the beginning of the last line
        self._ticks = 0  # in it

    def add(self, text: str) -> None:
        """More content."""
        first, *lines = text.split("\n")
        self._more_of_line(first)
        for line in lines:
            self._end_line()
            self._more_of_line(line)

    def quoted_until(self, text: str, ended: bool) -> int:
        """Where in the text that follows the open code ends. 0: no code is open, or it is not
        closed; -1: that cannot be told before there is more. ended: there is no more."""
        if self._fence:
            mark, size = self._fence[0], len(self._fence)
            closing = re.search(rf"\n {{0,3}}{mark}{{{size},}}[ \t]*(?:\n{'|$' * ended})", text)
            return closing.end() if closing else (0 if ended else -1)
        if self._ticks % 2:
            closing = re.match(r"[^`\n]*(?P<end>[`\n])", text)
            if closing is None:
                return 0 if ended else -1
            return closing.end() if closing["end"] == "`" else 0
        return 0

    def _more_of_line(self, text: str) -> None:
        self._line = (self._line + text)[:LINE_CHARS]
        self._ticks += text.count("`")

    def _end_line(self) -> None:
        found = FENCE.fullmatch(self._line)
        if found is not None:
            fence, info = found["fence"], found["info"]
            if not self._fence:
                self._fence = "" if fence[0] == "`" and "`" in info else fence
            elif fence.startswith(self._fence) and not info.strip():
                self._fence = ""
        self._line, self._ticks = "", 0
