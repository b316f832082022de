"""Calls that are written as JSON, and where JSON in other text ends. Pure; rank 0's HTTP threads.

Quotes tell what is inside of a string, so that no marker in an argument ends a call.
"""

import re
from typing import Any

from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools, read_json

ARGUMENTS = ("arguments", "parameters", "args", "input")
BESIDE = {"name", "id", "type", "index"}  # what a call without arguments may have
SEPARATORS = ",;"

# A string, a bracket, or a quote that opens a string without an end.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|"', re.DOTALL)
_PAIRS = {"}": "{", "]": "["}


def json_end(scan: Scan, at: int) -> int:
    """Where the object or array that begins there ends. Raises NotACall, More."""
    if scan.text[at : at + 1] not in ("{", "["):
        if at >= len(scan.text):
            scan.more()
        raise NotACall("no JSON")
    stack = []
    for token in _TOKEN.finditer(scan.text, at):
        mark, scan.reached = token[0], token.end()
        if mark in ("{", "["):
            stack.append(mark)
        elif mark in _PAIRS:
            if stack.pop() != _PAIRS[mark]:
                raise NotACall("brackets that do not match")
            if not stack:
                return token.end()
        elif mark == '"':
            break
    scan.more()
    raise NotACall("cut JSON")


def read_object(scan: Scan, at: int) -> tuple[Any, int]:
    """The JSON value that begins there, and where it ends."""
    end = json_end(scan, at)
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
    name = value.get("name", value.get("function", value.get("tool")))
    tool = tools.find(name)
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


def read_block(scan: Scan, at: int, tools: Tools, *closers: str, needed: bool = False) -> Found:
    """Objects of calls up to a closer, which may be missing at the end of the answer.

    needed: not even there.
    """
    calls: list[Call] = []
    while True:
        value, at = read_object(scan, at)
        calls += calls_of(value, tools)
        at = scan.space(at)
        if scan.text[at : at + 1] in tuple(SEPARATORS):
            at = scan.space(at + 1)
        closer = scan.literal(at, *closers) if closers else None
        if closer or at >= len(scan.text):
            break
    if not closer:
        scan.more()
    if not calls or (needed and not closer):
        raise NotACall("no call")
    return Found(tuple(calls), at + len(closer or ""))


def is_json(scan: Scan, at: int) -> bool:
    """Whether an object or array begins there. Raises More."""
    if at >= len(scan.text):
        scan.more()
    return scan.text[at : at + 1] in ("{", "[")
