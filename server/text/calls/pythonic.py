"""Calls as Python's: in a list, [f(a='x'), g()] (LFM2, Llama 4), or one after another (Olmo 3,
Gemma 3). Pure; rank 0's HTTP threads.
"""

import ast
import re
from typing import Any

from server.text.calls.brackets import bracket_end
from server.text.calls.json_text import read_block
from server.text.calls.literals import PYTHON, python_tree
from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools

_NAME = re.compile(r"(?P<name>[\w.:/-]{1,256})\s*\(")
# Before a value. Tools have arguments that no Python has: "from", "-A", "output.mode".
_KEY = re.compile(r"([\w.$-]+)(\s*=)(?!=)")


class Pythonic:
    """A Reader. opener, closer: around the calls; they may be missing around a list that begins the
    answer."""

    def __init__(self, opener: str, closer: str) -> None:
        self.openers = (opener,)
        self._closer = closer

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        opener = self.openers[0]
        at = len(opener) * scan.text.startswith(opener)
        return read_calls(scan, at, tools, self._closer)


def read_calls(scan: Scan, at: int, tools: Tools, *closers: str) -> Found:
    """A list of Python calls, or these without brackets around them, or objects of JSON; then a
    closer, which may be missing at the end of the answer."""
    at = scan.space(at)
    listed = scan.literal(at, "[") is not None
    if scan.literal(scan.space(at + 1) if listed else at, "{"):
        return read_block(scan, at, tools, *closers)
    calls, at = _listed(scan, at, tools) if listed else _unlisted(scan, at, tools, *closers)
    closer = scan.literal(at, *closers) if closers else None
    if closer is None:
        if listed and at < len(scan.text):
            raise NotACall("text after the list")
        scan.more()
    return Found(calls, at + len(closer or ""))


def _listed(scan: Scan, at: int, tools: Tools) -> tuple[tuple[Call, ...], int]:
    """The calls in the list that begins there, and where the text after it does."""
    calls: list[Call] = []
    at = scan.space(at + 1)
    while not (calls and scan.literal(at, "]")):
        call, at = _call(scan, at, tools)
        calls.append(call)
        at = _past_comma(scan, at)
    return tuple(calls), scan.space(at + 1)


def _unlisted(scan: Scan, at: int, tools: Tools, *closers: str) -> tuple[tuple[Call, ...], int]:
    """The same of calls one after another. Each stands for itself; text may follow the last."""
    calls: list[Call] = []
    while not (calls and (at == len(scan.text) or (closers and scan.literal(at, *closers)))):
        try:
            call, at = _printed(scan, at, tools)
        except NotACall:
            if not calls:
                raise
            break
        calls.append(call)
        at = _past_comma(scan, at)
    return tuple(calls), at


def _printed(scan: Scan, at: int, tools: Tools) -> tuple[Call, int]:
    """A call, printed or not."""
    printed = scan.literal(at, "print(")
    call, at = _call(scan, at + len(printed or ""), tools)
    if not printed:
        return call, at
    at = scan.space(at)
    if not scan.literal(at, ")"):
        raise NotACall("more than a call is printed")
    return call, at + 1


def _past_comma(scan: Scan, at: int) -> int:
    at = scan.space(at)
    return scan.space(at + 1) if scan.literal(at, ",") else at


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
    return make_call(tool, _arguments(scan.text[opened:end])), end


def _arguments(source: str) -> dict[str, Any]:
    source, names = _renamed(source)
    call = python_tree("f" + source)
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise NotACall("arguments without names")
    if len(set(names)) < len(names):
        raise NotACall("an argument twice")
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return {name: values[f"a{number}"] for number, name in enumerate(names)}


def _renamed(source: str) -> tuple[str, list[str]]:
    """The arguments in brackets with the names a0, a1, ...; and what their names were."""
    names: list[str] = []
    parts: list[str] = []

    def renamed(key: re.Match[str]) -> str:
        names.append(key[1])
        return f"a{len(names) - 1}{key[2]}"

    at = depth = 0
    for token in PYTHON.finditer(source):
        between = source[at : token.start()]
        parts += [_KEY.sub(renamed, between) if depth == 1 else between, token[0]]
        depth += (token[0] in ("(", "[", "{")) - (token[0] in (")", "]", "}"))
        at = token.end()
    return "".join(parts), names


LFM2 = Pythonic("<|tool_call_start|>", "<|tool_call_end|>")
OLMO_3 = Pythonic("<function_calls>", "</function_calls>")
