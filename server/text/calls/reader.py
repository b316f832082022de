"""What a reader of tool calls is, and what it looks at text with. Pure; rank 0's HTTP threads.

A reader is given all text from where a call may begin. What it says must not depend on how much
more there is: it waits (More) until what it has found or refused can no longer change. So it does
not matter when it is asked, and streamed and whole answers are the same.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from server.text.calls.tools import Tool, Tools

MAX_MARKER = 600  # characters of a marker with the name in it, and with other attributes
# Characters that are read for calls and turn out to be none; what comes after them is text.
READ_IN_VAIN = 2**20
Finish = Literal["stop", "length"]  # how the model ended

_SPACE = re.compile(r"\s*")


class NotACall(ValueError):
    """The text is no call, or a cut one."""


class More(Exception):
    """It cannot be told before there is more text."""


@dataclass(frozen=True)
class Call:
    """arguments: JSON text of an object. id: the model's own, if it gave one."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True)
class Found:
    """One or more calls, and where the text after them begins."""

    calls: tuple[Call, ...]
    end: int


class Scan:
    """Text that may go on. What asks for something here raises More if the text ends in it.

    finish: how the answer ended, None while it goes on. reached: how far a search went. vain: over
    how many characters searches found nothing.
    """

    def __init__(self, text: str, finish: Finish | None) -> None:
        self.text = text
        self.finish = finish
        self.reached = self.vain = 0

    def more(self) -> None:
        """Raises More if the answer goes on, else nothing."""
        if self.finish is None:
            raise More

    def space(self, at: int) -> int:
        """Where the white space ends."""
        return _SPACE.match(self.text, at).end()

    def literal(self, at: int, *wanted: str) -> str | None:
        """Which of the wanted stands there."""
        for literal in wanted:
            if self.text.startswith(literal, at):
                return literal
        rest = self.text[at : at + max(map(len, wanted))]
        if any(literal.startswith(rest) for literal in wanted):
            self.more()
        return None

    def match(self, pattern: re.Pattern[str], at: int, head: str) -> re.Match[str] | None:
        """The marker there. head: what every marker of this pattern begins with."""
        found = pattern.match(self.text, at)
        if found is None:
            rest = self.text[at : at + MAX_MARKER]
            if len(rest) < MAX_MARKER and (rest.startswith(head) or head.startswith(rest)):
                self.more()
        return found


class Reader(Protocol):
    """openers: what calls of this format may begin with. A reader may have bare, too: what a call
    without any marker begins an answer with."""

    openers: tuple[str, ...]

    def read(self, scan: Scan, tools: Tools) -> Found:
        """The calls that the text begins with.

        Raises NotACall, or More where the answer goes on. Any other exception is as NotACall.
        """


def make_call(tool: Tool, arguments: Any, id: str | None = None) -> Call:
    """The call, if the tool takes the arguments. Raises NotACall."""
    if not isinstance(arguments, dict):
        raise NotACall("arguments that are no object")
    missing = tool.required - arguments.keys()
    if missing:
        raise NotACall(f"{len(missing)} required arguments are missing")
    if not (tool.open or arguments.keys() <= tool.properties.keys()):
        raise NotACall("arguments that the tool does not have")
    # Not NaN: it is no JSON.
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair, which UTF-8 cannot hold, stays the escape that it was.
    return Call(tool.name, text.encode("utf-8", "backslashreplace").decode(), id)
