"""Calls as elements of markup: a call's element with one for each argument, values as plain text.

    BLOCK CALL(name) ARGUMENT(key) value /ARGUMENT ... /CALL /BLOCK

Nothing quotes the values, so the text of an argument may hold any of the markers. What decides:

- An argument ends where its closing marker is followed by what can follow: another argument that
  the tool has and that was not there yet, or the end of the call.
- Inside of a value, an argument's opening marker and the next closing one belong together.
- A closing of a whole call that no other call opens belongs to the value before it, so of several
  the last is the call's.
- Where that leads nowhere, or not to all that the tool requires, the ends are looked for later.
- Where there is none at all, a value without an end of this kind is read again: pairs are not
  counted, and closing markers that were forgotten are forgiven. An argument on a line of its own
  ends the one before it, the end of the call its last one, another call of a tool the call before.

Only the first reading is tried while the answer goes on; the other needs its end. Pure; rank 0's
HTTP threads.
"""

import re
from dataclasses import dataclass

from server.text.calls.json_text import as_object, is_json, read_object
from server.text.calls.reader import (
    READ_IN_VAIN,
    Call,
    Found,
    More,
    NotACall,
    Scan,
    make_call,
)
from server.text.calls.tools import Tool, Tools

MAX_ARGUMENTS = 1000  # of a call
MAX_CHOICES = 4  # closing markers that are tried as text once they were taken as markers
CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)


@dataclass(frozen=True)
class Shape:
    """The markers of a format. call_open has a group name; argument_open has a group key, and may
    have one said, which is "true" or "string" where the model says that the value is a string.

    *_head: what the marker begins with. bare: what a call without a block begins with; empty: there
    is none. blocks: what may stand around calls, opened and closed.
    lines: a line break at both ends of a value is layout. call_close: None where the block's end is
    the call's. cdata: values may be wrapped as XML does.
    """

    blocks: tuple[tuple[str, str], ...]
    bare: str
    call_head: str
    call_open: re.Pattern[str]
    call_close: str | None
    argument_head: str
    argument_open: re.Pattern[str]
    argument_close: str
    lines: bool = False
    cdata: bool = False


@dataclass
class _Argument:
    """An argument that is being read: its marker, and from where its end is looked for."""

    marker: re.Match[str]
    at: int
    end: int = 0  # of its value


@dataclass(frozen=True)
class _Ended:
    """Where a value ends, what comes next (an argument, or where the call ends), and how to go on
    if this was no end after all."""

    end: int
    argument: re.Match[str] | None
    call: int
    at: int


class Elements:
    """A Reader for one Shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.openers = tuple(opener for opener, _ in shape.blocks)
        self.openers += (shape.bare,) if shape.bare else ()
        closers = "|".join(re.escape(closer) for _, closer in shape.blocks)
        argument, call = re.escape(shape.argument_close), re.escape(shape.call_close or "")
        marks = rf"(?P<close>{argument})|(?P<open>{_ungrouped(shape.argument_open)})"
        self._marks = re.compile(marks + (rf"|(?P<call>{call})" if call else ""))
        opening = "|".join(map(re.escape, self.openers))
        closing = rf"{argument}\s*{call}\s*"
        # After a bare call, the end of another is as good as with its block.
        self._edges = re.compile(rf"(?P<close>{closing}(?:{closers or '(?!)'}))|{opening}")
        self._bare_edges = re.compile(rf"(?P<close>{closing}(?:{closers})?)|{opening}")

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        block = next((block for block in self.shape.blocks if scan.text.startswith(block[0])), None)
        return self.read_calls(scan, len(block[0]) if block else 0, tools, block)

    def read_calls(self, scan: Scan, at: int, tools: Tools, block: tuple[str, str] | None) -> Found:
        """The calls from at on, which is inside of the block, if there is one."""
        calls: list[Call] = []
        ends = [end for end in (self.shape.call_close, block and block[1]) if end]
        if scan.finish and all(scan.text.find(end, at) < 0 for end in ends):
            raise NotACall("no end of a call")
        while True:
            opened = self.open_call(scan, scan.space(at), tools)
            tool = tools.find(opened["name"]) if opened else None
            if tool is None:
                break
            one = _OneCall(self, scan, tool, tools, block)
            try:
                end = one.read(opened.end())
                calls.append(one.call())
            except More:
                raise
            except Exception:  # also of ast and json
                if not calls:
                    raise
                break  # this one alone is text
            read, at = one, end
            if not block:
                break
        if not calls:
            raise NotACall("no call of a tool")
        end = self._closed(scan, at, block)
        while read.goes_on and not self._ends(scan, end, block, end > at):
            later = read.further()
            if later is None:
                break
            at, end = later, self._closed(scan, later, block)
        calls[-1] = read.call()
        return Found(tuple(calls), end)

    def _closed(self, scan: Scan, at: int, block: tuple[str, str] | None) -> int:
        """After the end of the block, or of one that was never opened, if it stands there."""
        closers = (block[1],) if block else tuple(closer for _, closer in self.shape.blocks)
        after = scan.space(at)
        closer = scan.literal(after, *closers) if closers else None
        return after + len(closer) if closer else at

    def open_call(self, scan: Scan, at: int, tools: Tools) -> re.Match[str] | None:
        """The marker of a call."""
        return scan.match(self.shape.call_open, at, self.shape.call_head)

    def opens_anew(self, scan: Scan, at: int, tools: Tools) -> bool:
        """Whether another call of a tool begins there, with a block around it or without."""
        opener = next((opener for opener, _ in self.shape.blocks if scan.literal(at, opener)), "")
        if not (opener or self.shape.bare):
            return False
        opened = self.open_call(scan, scan.space(at + len(opener)), tools)
        if opened is None or tools.find(opened["name"]) is None:
            return False
        ends = (self.shape.call_close, *(closer for _, closer in self.shape.blocks))
        inner = (self.shape.argument_head, "{", *filter(None, ends))
        return scan.literal(scan.space(opened.end()), *inner) is not None

    def argument(self, scan: Scan, at: int, tool: Tool, seen: set[str]) -> re.Match[str] | None:
        """The marker of an argument that may come here."""
        found = scan.match(self.shape.argument_open, at, self.shape.argument_head)
        key = found["key"].strip() if found else ""
        return found if key not in seen and tool.takes(key) else None

    def is_stranger(self, scan: Scan, at: int, seen: set[str]) -> bool:
        """Whether a marker of an argument stands there whose name was not there yet."""
        found = scan.match(self.shape.argument_open, at, self.shape.argument_head)
        return found is not None and found["key"].strip() not in seen

    def call_end(
        self, scan: Scan, at: int, block: tuple[str, str] | None, tools: Tools | None = None
    ) -> int | None:
        """Where a call ends that may end here; its block's end is not part of it. tools: of which
        another call may begin without that end."""
        shape = self.shape
        if shape.call_close and scan.literal(at, shape.call_close):
            end = at + len(shape.call_close)
            if not block:
                return end
            after = scan.space(end)
            if after >= len(scan.text):
                scan.more()
                # Without the block's end it may be a value that was cut.
                return end if scan.finish == "stop" else None
            if scan.literal(after, block[1]):
                return end
            if tools:
                return end if self.opens_anew(scan, after, tools) else None
            return end if scan.literal(after, shape.call_head) else None
        if block and scan.literal(at, block[1]):
            return at
        return None

    def _ends(self, scan: Scan, at: int, block: tuple[str, str] | None, closed: bool) -> bool:
        """Whether the calls end here; if not, the last value goes on to a later end. closed: the
        end of a block was there."""
        edges = self._edges if block else self._bare_edges
        edge = edges.search(scan.text, at)
        if edge is None:
            scan.more()
            rest = scan.text[at:].strip()
            goes_on = any(opener.startswith(rest) for opener in self.openers)
            if not rest:
                goes_on = closed or not self.shape.blocks
            if scan.finish == "length" and not goes_on:
                raise NotACall("a value that may have been cut")
            return True
        if edge["close"] is not None:
            return False
        if not scan.text[at : edge.start()].strip():
            return True
        scan.more()
        found = [mark["close"] is not None for mark in edges.finditer(scan.text, at)]
        return 2 * sum(found) <= len(found)


class _OneCall:
    """Reads one call: the arguments so far, and where it could have decided otherwise."""

    def __init__(
        self, format: Elements, scan: Scan, tool: Tool, tools: Tools, block: tuple[str, str] | None
    ) -> None:
        self._format = format
        self._scan = scan
        self._tool = tool
        self._tools = tools
        self._block = block
        self._arguments: list[_Argument] = []
        self._json: object = None
        self._last: _Ended | None = None
        self._forgiving = False  # in the second reading
        self._unpaired: set[int] = set()  # arguments in whose values markers are no pairs

    def read(self, at: int) -> int:
        """Where the call ends that has its arguments from at on. Raises NotACall, More."""
        at = self._scan.space(at)
        close = self._format.shape.call_close
        if close and is_json(self._scan, at):
            self._json, at = read_object(self._scan, at)
            end = self._scan.space(at)
            if not self._scan.literal(end, close):
                raise NotACall("JSON that is no arguments")
            return end + len(close)
        for forgiving in (False, True) if self._scan.finish else (False,):
            self._forgiving, self._arguments, self._last = forgiving, [], None
            first = self._format.argument(self._scan, at, self._tool, set())
            if first is None:
                end = self._format.call_end(self._scan, at, self._block)
            else:
                end = self._follow(_Argument(first, first.end()))
            while end is not None and self._lacks():
                end = self.further() if self.goes_on else None
            if end is not None:
                return end
        raise NotACall("arguments without an end")

    @property
    def goes_on(self) -> bool:
        """Whether there is a value that may go on after what was taken for its end."""
        return self._last is not None

    def further(self) -> int | None:
        """Takes the end of the last value for text. Where the call then ends, if it does."""
        before, ended = list(self._arguments), self._last
        last = self._arguments.pop()
        end = self._follow(_Argument(last.marker, ended.at))
        if end is None:
            self._arguments, self._last = before, ended
        return end

    def _lacks(self) -> bool:
        """Whether an argument is missing that the tool requires."""
        return not self._tool.required <= {known.marker["key"].strip() for known in self._arguments}

    def call(self) -> Call:
        """What was read. Raises NotACall."""
        if self._json is not None:
            return make_call(self._tool, as_object(self._json))
        return make_call(self._tool, dict(self._value(argument) for argument in self._arguments))

    def _follow(self, argument: _Argument) -> int | None:
        """From the first argument to the end of the call; None if there is none."""
        undone: list[tuple[int, _Argument]] = []  # how many arguments stand, and the next to retry
        for _ in range(MAX_CHOICES):
            while True:
                ended = self._end(argument)
                if ended is None:
                    break
                # If this was no end, the value goes on after it.
                retry = _Argument(argument.marker, ended.at)
                undone.append((len(self._arguments), retry))
                argument.end = ended.end
                self._arguments.append(argument)
                if ended.argument is None:
                    self._last = ended
                    return ended.call
                argument = _Argument(ended.argument, ended.argument.end())
            if not undone:
                return None
            stands, argument = undone.pop()
            del self._arguments[stands:]
        return None

    def _end(self, argument: _Argument) -> _Ended | None:
        """Where the argument's value ends."""
        key = argument.marker.start()
        ended = None if key in self._unpaired else self._search(argument, True)
        if ended is None and self._forgiving:
            self._unpaired.add(key)
            ended = self._search(argument, False)
        return ended

    def _search(self, argument: _Argument, pairs: bool) -> _Ended | None:
        """As _end. pairs: markers in the value come in pairs, and none was forgotten."""
        scan, format = self._scan, self._format
        if len(self._arguments) > MAX_ARGUMENTS:
            raise NotACall("too many arguments")
        seen = {known.marker["key"].strip() for known in self._arguments}
        seen.add(argument.marker["key"].strip())
        depth = 0
        for mark in format._marks.finditer(scan.text, argument.at):
            at = scan.reached = mark.end()
            if mark["open"] is not None:
                if not pairs and scan.text[mark.start() - 1] == "\n":
                    new = format.argument(scan, mark.start(), self._tool, seen)
                    if new:
                        return _Ended(mark.start(), new, 0, at)
                depth += pairs
                continue
            if mark["close"] is None:
                if not pairs:
                    end = format.call_end(scan, mark.start(), self._block, self._tools)
                    if end is not None and (self._block or self._nothing_but_calls(end)):
                        return _Ended(mark.start(), None, end, at)
                continue
            if depth:
                depth -= 1
                continue
            after = scan.space(at)
            new = format.argument(scan, after, self._tool, seen)
            if new:
                return _Ended(mark.start(), new, 0, at)
            if not pairs and format.is_stranger(scan, after, seen):
                raise NotACall("an argument that the tool does not have")
            end = format.call_end(scan, after, self._block, None if pairs else self._tools)
            if end is None and not pairs and format.opens_anew(scan, after, self._tools):
                end = at
            if end is not None:
                return _Ended(mark.start(), None, end, at)
        scan.more()
        scan.vain += len(scan.text) - argument.at
        if scan.vain > READ_IN_VAIN:
            raise NotACall("too much was read in vain")
        return None

    def _nothing_but_calls(self, at: int) -> bool:
        """Whether the answer ends there or goes on with another call."""
        at = self._scan.space(at)
        return at == len(self._scan.text) or self._format.opens_anew(self._scan, at, self._tools)

    def _value(self, argument: _Argument) -> tuple[str, object]:
        marker, shape = argument.marker, self._format.shape
        text = self._scan.text[marker.end() : argument.end]
        if shape.lines:
            if text.startswith("\r\n"):
                text = text[2:].removesuffix("\n").removesuffix("\r")
            else:
                text = text.removeprefix("\n").removesuffix("\n")
        wrapped = CDATA.fullmatch(text) if shape.cdata else None
        if wrapped:
            text = wrapped[1]
        said = marker.groupdict().get("said")
        key = marker["key"].strip()
        said_string = None if said is None else said in ("true", "string")
        return key, self._tool.value(key, text, said_string)


def _ungrouped(pattern: re.Pattern[str]) -> str:
    """The pattern's text without names of groups, to stand inside of another."""
    return re.sub(r"\(\?P<\w+>", "(?:", pattern.pattern)
