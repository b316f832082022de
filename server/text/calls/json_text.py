"""Calls that are written as JSON, or as dicts of Python, which some models make of it.

Pure; rank 0's HTTP threads.
"""

import re
from dataclasses import dataclass
from typing import Any

from server.text.calls.brackets import bracket_end
from server.text.calls.literals import JSON, PYTHON, read_json, read_python
from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools

ARGUMENTS = ("arguments", "parameters", "args", "input")
NAMES = ("name", "function", "tool", "tool_name")
# What a call without arguments may have.
BESIDE = {"name", "tool_name", "id", "tool_call_id", "type", "index"}
SEPARATORS = ",;"

FENCE = "```"
_FENCE = re.compile(r"```\w*\s*")
_STRAY = re.compile(r"[}\]\s]*")
# Up to the first key or value, which tells whether this is JSON or Python.
_OPENING = re.compile(r"[{\[\s]*")


def read_object(scan: Scan, at: int) -> tuple[Any, int]:
    """The object or array that begins there, and where it ends. Raises NotACall, More."""
    if not is_json(scan, at):
        raise NotACall("no JSON")
    first = _OPENING.match(scan.text, at).end()
    if scan.text[first : first + 1] == "'":
        end = bracket_end(scan, at, PYTHON)
        return read_python(scan.text[at:end]), end
    end = bracket_end(scan, at, JSON)
    return read_json(scan.text[at:end]), end


def calls_of(value: Any, tools: Tools) -> list[Call]:
    """A call as an object, or a list of such."""
    if isinstance(value, list):
        return [call for item in value for call in calls_of(item, tools)]
    if not isinstance(value, dict):
        raise NotACall("no object of a call")
    id = value.get("id")
    if isinstance(value.get("function"), dict):
        value = value["function"]
    tool = tools.find(next((value[key] for key in NAMES if key in value), None))
    if tool is None:
        raise NotACall("no such tool")
    key = next((key for key in ARGUMENTS if key in value), None)
    if key is None and not value.keys() <= BESIDE:
        raise NotACall("an object without arguments")
    arguments = value.get(key) if key else None
    return [make_call(tool, as_object(arguments), id if isinstance(id, str) and id else None)]


def as_object(arguments: Any) -> Any:
    """Arguments that may be JSON text in a string, or none."""
    if isinstance(arguments, str):
        arguments = read_json(arguments) if arguments.strip() else None
    return {} if arguments is None else arguments


def read_block(scan: Scan, at: int, tools: Tools, *closers: str, again: str = "") -> Found:
    """Objects of calls up to a closer, which may be missing at the end of the answer and before
    again, which opens the next block. A fence around them and brackets too many are left out."""
    calls: list[Call] = []
    ends = (*closers, again) if again else closers
    fenced = scan.literal(at, FENCE)
    if fenced:
        at = _FENCE.match(scan.text, at).end()
    while True:
        value, at = read_object(scan, at)
        calls += calls_of(value, tools)
        at = _STRAY.match(scan.text, at).end()
        if scan.text[at : at + 1] in tuple(SEPARATORS):
            at = scan.space(at + 1)
        if fenced and scan.literal(at, FENCE):
            at = scan.space(at + len(FENCE))
        closer = scan.literal(at, *ends) if ends else None
        if closer or at >= len(scan.text):
            break
    if not closer:
        scan.more()
    if not calls:
        raise NotACall("no call")
    return Found(tuple(calls), at if closer in (None, again) else at + len(closer))


@dataclass(frozen=True)
class JsonAfter:
    """A Reader: after the opener objects of calls to the answer's end, as a grammar makes them."""

    opener: str

    @property
    def openers(self) -> tuple[str, ...]:
        """As in Reader."""
        return (self.opener,)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        return read_block(scan, scan.space(len(self.opener)), tools)


def is_json(scan: Scan, at: int) -> bool:
    """Whether an object or array begins there. Raises More."""
    if at >= len(scan.text):
        scan.more()
    return scan.text[at : at + 1] in ("{", "[")
