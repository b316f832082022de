"""Calls as a list of Python calls, [f(a='x'), g()]: LFM2, Llama 4. Pure; rank 0's HTTP threads."""

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
    """A Reader. opener, closer: around the list, which may be missing around a list that begins the
    answer."""

    def __init__(self, opener: str, closer: str) -> None:
        self.openers = (opener,)
        self._closer = closer

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        opener = self.openers[0]
        return self.read_list(scan, len(opener) * scan.text.startswith(opener), tools)

    def read_list(self, scan: Scan, at: int, tools: Tools) -> Found:
        """The list from at on, or calls without brackets around them."""
        at = scan.space(at)
        listed = scan.literal(at, "[")
        inner = scan.space(at + 1) if listed else at
        if scan.literal(inner, "{"):
            return read_block(scan, at, tools, self._closer)
        calls: list[Call] = []
        at = inner
        while True:
            call, at = _call(scan, at, tools)
            calls.append(call)
            at = scan.space(at)
            if scan.literal(at, ","):
                at = scan.space(at + 1)
            if listed:
                ended = scan.literal(at, "]")
                at = scan.space(at + 1) if ended else at
            else:
                ended = scan.literal(at, self._closer) or at == len(scan.text)
            if ended:
                break
        closer = scan.literal(at, self._closer)
        if closer is None and at < len(scan.text):
            raise NotACall("text after the list")
        return Found(tuple(calls), at + len(closer or ""))


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
LLAMA_4 = Pythonic("<|python_start|>", "<|python_end|>")
