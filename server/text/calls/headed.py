"""Calls as a header with the name, then the arguments as JSON: Kimi K2, DeepSeek V3 to V3.1,
harmony (gpt-oss), Solar Open, Mistral. Pure; rank 0's HTTP threads.

JSON tells where the arguments end, whatever stands in their strings; the markers after them may be
missing, as the answer's end does as well.
"""

import re
from dataclasses import dataclass

from server.text.calls.json_text import as_object, calls_of, is_json, read_object
from server.text.calls.literals import read_json
from server.text.calls.reader import Call, Found, More, NotACall, Scan, make_call
from server.text.calls.tools import Tool, Tools

_STRAY = re.compile(r"[}\]\s]*")  # brackets too many
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@dataclass(frozen=True)
class Headed:
    """A Reader. sections: what may stand around calls. head: the header, with a group name and
    perhaps one id; it begins with start. ends: what may stand after the arguments, in this order.

    others: what else may follow where those are missing; None: anything. strangers: with an id, a
    name that is no tool's is a call, too.
    """

    sections: tuple[tuple[str, str], ...]
    start: str
    head: re.Pattern[str]
    ends: tuple[str, ...]
    others: tuple[str, ...] | None = ()
    strangers: bool = False

    @property
    def openers(self) -> tuple[str, ...]:
        """As in Reader."""
        return (*(opener for opener, _ in self.sections), self.start)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        calls: list[Call] = []
        section = next((pair for pair in self.sections if scan.text.startswith(pair[0])), None)
        at = len(section[0]) if section else 0
        while True:
            after = scan.space(at)
            if section and calls and scan.literal(after, section[1]):
                return Found(tuple(calls), after + len(section[1]))
            if calls and not scan.literal(after, self.start):
                return Found(tuple(calls), at)
            try:
                call, at = self._call(scan, after, tools)
            except More:
                raise
            except Exception:  # also of ast and json
                if not calls:
                    raise
                return Found(tuple(calls), at)  # the next one alone is text
            calls.append(call)

    def _call(self, scan: Scan, at: int, tools: Tools) -> tuple[Call, int]:
        header = scan.match(self.head, at, self.start)
        if header is None:
            raise NotACall("no header of a call")
        groups = header.groupdict()
        id = groups.pop("id", None)
        name = next(name for name in groups.values() if name)
        tool = tools.find(name)
        if tool is None:
            if not (id and self.strangers):
                raise NotACall("no such tool")
            tool = Tool(name.removeprefix("functions."), None)
        arguments, at = self._arguments(scan, scan.space(header.end()))
        return make_call(tool, arguments, id), at

    def _arguments(self, scan: Scan, at: int) -> tuple[object, int]:
        """The object, and where its end markers end."""
        end = self._ended(scan, at)
        if end is not None:  # no arguments at all
            return {}, end
        if scan.text[at : at + 1] == '"':
            string = _STRING.match(scan.text, at)
            if string is None:
                scan.more()
                raise NotACall("cut arguments")
            arguments, at = read_json(string[0]), string.end()
        else:
            arguments, at = read_object(scan, at)
        stray = _STRAY.match(scan.text, at).end()
        end = self._ended(scan, stray)
        if end is not None:
            return as_object(arguments), end
        if stray < len(scan.text) and self.others is not None:
            others = (self.start, *(mark for pair in self.sections for mark in pair), *self.others)
            if not scan.literal(stray, *others):
                raise NotACall("text after the arguments")
        return as_object(arguments), at

    def _ended(self, scan: Scan, at: int) -> int | None:
        """After the end markers that stand there; None if there are none."""
        ended = None
        for literal in self.ends:
            after = scan.space(at)
            if scan.literal(after, literal):
                at = ended = after + len(literal)
        return ended


KIMI_K2 = Headed(
    (
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        ("<|tool_call_section_begin|>", "<|tool_call_section_end|>"),
    ),
    "<|tool_call_begin|>",
    re.compile(
        r"<\|tool_call_begin\|>\s*(?:(?P<id>(?P<name>[^\s<>]{1,200}):\d{1,6})"
        r"|(?P<plain>[^\s<>]{1,200}))\s*"
        r"<\|tool_call_argument_begin\|>"
    ),
    ("<|tool_call_end|>",),
    # Its header is made of tokens of its own and a number: it is nothing but a call, and a client
    # tells the model better than we that there is no such tool.
    strangers=True,
)
DEEPSEEK_V3 = Headed(
    (("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),),
    "<｜tool▁call▁begin｜>",
    re.compile(
        r"<｜tool▁call▁begin｜>\s*(?:function\s*<｜tool▁sep｜>\s*(?P<typed>[^\s<>{}\"`]{1,256})"
        r"|(?P<name>[^\s<>]{1,256})\s*<｜tool▁sep｜>)\s*(?:```(?:json)?\s*(?=[{\"`])|(?=[{\"<]))"
    ),
    ("```", "<｜tool▁call▁end｜>"),
)
SOLAR = Headed(
    (("<|tool_calls|>", "<|calls|>"),),
    "<|tool_call:begin|>",
    re.compile(
        r"<\|tool_call:begin\|>\s*(?P<id>[\w-]{1,64})?\s*"
        r"<\|tool_call:name\|>\s*(?P<name>[^\s<>]{1,256})\s*<\|tool_call:args\|>"
    ),
    ("<|tool_call:end|>",),
)
HARMONY = Headed(
    (),
    "to=",
    re.compile(r"to=(?P<name>[^\s<>]{1,200})(?:(?!<\|message\|>)[^\n]){0,128}<\|message\|>"),
    ("<|call|>", "<|end|>", "<|return|>"),
    others=("<|start|>",),
)


class Mistral:
    """A Reader: [TOOL_CALLS] before each name[ARGS]{...}, or before one list of calls."""

    openers = ("[TOOL_CALLS]",)
    _named = Headed(
        (),
        "[TOOL_CALLS]",
        re.compile(
            r"\[TOOL_CALLS\]\s*(?P<name>[^\s\[\]{}]{1,256})\s*"
            r"(?:\[CALL_ID\]\s*(?P<id>[\w-]{1,64})\s*)?(?:\[ARGS\]\s*|(?=\{))"
        ),
        (),
        others=None,
    )

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        at = scan.space(len(self.openers[0]))
        if not is_json(scan, at):
            return self._named.read(scan, tools)
        value, at = read_object(scan, at)
        calls = calls_of(value, tools)
        if not calls:
            raise NotACall("an empty list of calls")
        return Found(tuple(calls), at)


MISTRAL = Mistral()
