"""Calls as a list of Python calls, [f(a='x'), g()]: LFM2, Llama 4. Pure; rank 0's HTTP threads."""

import ast
import re
from typing import Any

from server.text.calls.brackets import PYTHON, bracket_end, python_tree
from server.text.calls.json_text import read_block
from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools

_NAME = re.compile(r"(?P<name>[\w.:/-]{1,256})\s*\(")


class Pythonic:
    """A Reader. opener, closer: around the list."""

    def __init__(self, opener: str, closer: str) -> None:
        self.openers = (opener,)
        self._closer = closer

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        at = scan.space(len(self.openers[0]))
        if not scan.literal(at, "["):
            if scan.literal(at, "{"):
                return read_block(scan, at, tools, self._closer)
            raise NotACall("no list of calls")
        inner = scan.space(at + 1)
        if scan.literal(inner, "{"):
            return read_block(scan, at, tools, self._closer)
        calls: list[Call] = []
        at = inner
        while not (calls and scan.literal(at, "]")):
            call, at = _call(scan, at, tools)
            calls.append(call)
            at = scan.space(at)
            if scan.literal(at, ","):
                at = scan.space(at + 1)
        closer = scan.literal(scan.space(at + 1), self._closer)
        if closer is None and scan.space(at + 1) < len(scan.text):
            raise NotACall("text after the list")
        return Found(tuple(calls), scan.space(at + 1) + len(closer or ""))


def _call(scan: Scan, at: int, tools: Tools) -> tuple[Call, int]:
    name = _NAME.match(scan.text, at)
    if name is None:
        if re.fullmatch(r"[\w.:/-]{0,256}\s*", scan.text[at : at + 300]):
            scan.more()
        raise NotACall("no name of a call")
    tool = tools.find(name["name"])
    if tool is None:
        raise NotACall("no such tool")
    opened = name.end() - 1
    end = bracket_end(scan, opened, PYTHON)
    return make_call(tool, _arguments("f" + scan.text[opened:end])), end


def _arguments(source: str) -> dict[str, Any]:
    call = python_tree(source)
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise NotACall("arguments without names")
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords}


LFM2 = Pythonic("<|tool_call_start|>", "<|tool_call_end|>")
LLAMA_4 = Pythonic("<|python_start|>", "<|python_end|>")
