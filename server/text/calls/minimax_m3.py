"""MiniMax M3's calls: elements named as the arguments are, each tag after a token of its own.

Containers are elements in elements, a list's being named item. Pure; rank 0's HTTP threads.
"""

import re
from typing import Any

from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tool, Tools

MARK = "]<]minimax[>["
MAX_DEPTH = 64  # of elements in elements

_TAG = re.compile(re.escape(MARK) + r"<(?P<close>/?)(?P<name>[^<>/\n]{1,256})>")
_INVOKE = re.compile(re.escape(MARK) + r"<invoke name=[\"']?(?P<name>[^\"'<>\n]{1,256})[\"']?\s*>")
_OPEN, _CLOSE = f"{MARK}<tool_call>", f"{MARK}</tool_call>"
_END = f"{MARK}</invoke>"
_ENDS = (_CLOSE, f"{MARK}<invoke name=")  # of a call whose own end was forgotten


class MiniMaxM3:
    """A Reader."""

    openers = (_OPEN, f"{MARK}<invoke name=")

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        inside = scan.text.startswith(_OPEN)
        at = len(_OPEN) if inside else 0
        calls: list[Call] = []
        while True:
            after = scan.space(at)
            if calls and scan.literal(after, _CLOSE):
                return Found(tuple(calls), after + len(_CLOSE))
            if calls and after >= len(scan.text):
                scan.more()
            opened = scan.match(_INVOKE, after, f"{MARK}<invoke name=")
            tool = tools.find(opened["name"]) if opened else None
            if tool is None:
                if calls:
                    return Found(tuple(calls), at)
                raise NotACall("no call of a tool")
            try:
                call, at = _invoke(scan, opened.end(), tool)
            except NotACall:
                if not calls:
                    raise
                return Found(tuple(calls), at)  # the next one alone is text
            calls.append(call)


def _invoke(scan: Scan, at: int, tool: Tool) -> tuple[Call, int]:
    arguments: dict[str, Any] = {}
    while True:
        at = scan.space(at)
        end = scan.literal(at, _END, *_ENDS)
        if end:
            return make_call(tool, arguments), at + len(_END) * (end == _END)
        tag = scan.match(_TAG, at, f"{MARK}<")
        if tag is None or tag["close"] or tag["name"] in arguments or not tool.takes(tag["name"]):
            raise NotACall("no argument")
        arguments[tag["name"]], at = _argument(scan, tag, tool, arguments)


def _argument(scan: Scan, tag: re.Match[str], tool: Tool, seen: dict[str, Any]) -> tuple[Any, int]:
    """The value of an argument: text, unless it is made of elements and may be."""
    name, depth = tag["name"], 0
    for inner in _TAG.finditer(scan.text, tag.end()):
        scan.reached = inner.end()
        if inner["name"] != name:
            continue
        if not inner["close"]:
            depth += 1
        elif depth:
            depth -= 1
        elif _goes_on(scan, scan.space(inner.end()), tool, {*seen, name}):
            text = scan.text[tag.end() : inner.start()]
            schema = tool.properties.get(name)
            if MARK in text and not tool.is_string(schema):
                return _elements(text, 0, tool, schema, 0)[0], inner.end()
            return tool.value(name, text), inner.end()
    scan.more()
    raise NotACall("a cut argument")


def _goes_on(scan: Scan, at: int, tool: Tool, seen: set[str]) -> bool:
    """Whether another argument or the call's end is there."""
    if scan.literal(at, _END, *_ENDS):
        return True
    tag = scan.match(_TAG, at, f"{MARK}<")
    return bool(tag and not tag["close"] and tag["name"] not in seen and tool.takes(tag["name"]))


def _elements(text: str, at: int, tool: Tool, schema: Any, depth: int) -> tuple[Any, int]:
    """What the elements from at on say, and where the next closing tag begins."""
    if depth > MAX_DEPTH:
        raise NotACall("nested too deep")
    found: list[tuple[str, Any]] = []
    start = at
    while True:
        tag = _TAG.search(text, at)
        if tag is None or tag["close"]:
            break
        name = tag["name"]
        value, at = _elements(text, tag.end(), tool, tool.inner(schema, name), depth + 1)
        closing = _TAG.match(text, at)
        if closing is None or closing["name"] != name:
            raise NotACall("elements that do not match")
        found.append((name, value))
        at = closing.end()
    end = tag.start() if tag else len(text)
    if not found:
        return tool.read(schema, text[start:end]), end
    if all(name == "item" for name, _ in found):
        return [value for _, value in found], end
    return dict(found), end
