"""Calls as a list of Python calls, [f(a='x'), g()]: LFM2, Llama 4. Pure; rank 0's HTTP threads."""

import ast
import re
from typing import Any

from server.text.calls.json_text import read_block
from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools

_NAME = re.compile(r"(?P<name>[\w.:/-]{1,256})\s*\(")
# A string, a bracket, or a quote that opens a string without an end.
_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""|' r"'''(?:[^'\\]|\\.|'(?!''))*'''|"
    r'"[^"\\]*(?:\\.[^"\\]*)*"|' r"'[^'\\]*(?:\\.[^'\\]*)*'|[()\[\]{}]|[\"']",
    re.DOTALL,
)  # fmt: skip
_PAIRS = {")": "(", "]": "[", "}": "{"}
# Templates write what is inside of containers as JSON.
_WORDS = {"true": True, "false": False, "null": None}


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
    opened, stack, source = name.end() - 1, [], []
    last = opened
    for token in _TOKEN.finditer(scan.text, opened):
        mark, scan.reached = token[0], token.end()
        source.append(scan.text[last : token.start()])
        last = token.end()
        # A string in Python has no line breaks; one of a model may.
        source.append(mark.replace("\r", "\\r").replace("\n", "\\n") if len(mark) > 1 else mark)
        if mark in _PAIRS.values():
            stack.append(mark)
        elif mark in _PAIRS:
            if stack.pop() != _PAIRS[mark]:
                raise NotACall("brackets that do not match")
            if not stack:
                return make_call(tool, _arguments("f" + "".join(source))), last
        elif len(mark) == 1:
            break
    scan.more()
    raise NotACall("a cut call")


def _arguments(source: str) -> dict[str, Any]:
    call = ast.parse(source, mode="eval").body
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise NotACall("arguments without names")
    return {k.arg: ast.literal_eval(_JsonWords().visit(k.value)) for k in call.keywords}


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node


LFM2 = Pythonic("<|tool_call_start|>", "<|tool_call_end|>")
LLAMA_4 = Pythonic("<|python_start|>", "<|python_end|>")
