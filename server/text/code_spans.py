"""Where in an answer code is quoted, as in Markdown: a call in there is an example of one.

Pure; rank 0's HTTP threads, one CodeSpans for each choice.
"""

import re

FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")
RUNS = re.compile(r"`+|[^`]+")
LINE, PARAGRAPH = "\n", r"\n\s*\n"
LINE_CHARS = 256  # of a line, as far as it is looked at


class CodeSpans:
    """Follows the content of an answer. quoted_until tells of code that is open at its end."""

    def __init__(self) -> None:
        self._fence = ""  # what opened the block of code that is open
        self._line = ""  # the beginning of the last line
        self._run = 0  # backticks at its end
        self._span = 0  # backticks that opened the code that is open in it

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
        self._end_run()
        if self._span:
            # As many as opened it, in its line; several open more than a line, a paragraph at most.
            end = rf"(?P<close>(?<!`)`{{{self._span}}})(?:[^`]{'|$' * ended})"
            closing = re.search(rf"{end}|{PARAGRAPH if self._span > 1 else LINE}", text)
            if closing is None:
                return 0 if ended else -1
            return max(closing.end("close"), 0)
        return 0

    def _more_of_line(self, text: str) -> None:
        self._line = (self._line + text)[:LINE_CHARS]
        for run in RUNS.findall(text):
            if run[0] == "`":
                self._run += len(run)
            else:
                self._end_run()

    def _end_run(self) -> None:
        """A run of backticks opens code, or closes what a run of the same length opened."""
        if self._run and not self._span:
            self._span = self._run
        elif self._run == self._span:
            self._span = 0
        self._run = 0

    def _end_line(self) -> None:
        found = FENCE.fullmatch(self._line)
        if found is not None:
            fence, info = found["fence"], found["info"]
            if not self._fence:
                self._fence = "" if fence[0] == "`" and "`" in info else fence
            elif fence.startswith(self._fence) and not info.strip():
                self._fence = ""
        self._line, self._run, self._span = "", 0, 0
