"""Calls as call:name{key:value,...}, with strings between markers: Gemma 4, FunctionGemma.

Models write plain quotes around strings, too, and namespaces before names. Pure; rank 0's HTTP
threads.
"""

import re
from dataclasses import dataclass
from typing import Any

from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tool, Tools

MAX_DEPTH = 64  # of containers in containers

_HEAD = re.compile(r"call:\s*(?P<name>[^\s{}<>]{1,256})\s*\{")
_BARE = re.compile(r"[^,{}\[\]<\n]*")
_KEY = re.compile(r"(?P<key>[^\s:,{}\[\]\"'<]{1,256})\s*:")
_PLAIN = {
    '"': re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL),
    "'": re.compile(r"'([^'\\]*(?:\\.[^'\\]*)*)'", re.DOTALL),
}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}


@dataclass(frozen=True)
class Gemma:
    """A Reader. opener, closer: of a call. quote: at both ends of a string."""

    opener: str
    closer: str
    quote: str

    @property
    def openers(self) -> tuple[str, ...]:
        """As in Reader."""
        return (self.opener,)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        calls: list[Call] = []
        at = scan.space(len(self.opener))
        while True:
            head = scan.match(_HEAD, at, "call:")
            if head is None:
                raise NotACall("no name of a call")
            tool = tools.find(head["name"])
            if tool is None:
                raise NotACall("no such tool")
            arguments, at = self._object(scan, head.end(), tool, 0)
            calls.append(make_call(tool, arguments))
            at = scan.space(at)
            if scan.text[at : at + 1] == ",":
                at = scan.space(at + 1)
            closer = scan.literal(at, self.closer)
            if closer or at >= len(scan.text):
                return Found(tuple(calls), at + len(closer or ""))

    def _object(
        self, scan: Scan, at: int, tool: Tool | None, depth: int
    ) -> tuple[dict[str, Any], int]:
        """After its brace. tool: whose arguments these are."""
        found: dict[str, Any] = {}
        at = scan.space(at)
        while not scan.literal(at, "}"):
            key, at = self._key(scan, at)
            if key in found:
                raise NotACall("an argument twice")
            found[key], at = self._value(scan, scan.space(at), depth, tool, key)
            at = self._next(scan, at, "}")
        return found, at + 1

    def _key(self, scan: Scan, at: int) -> tuple[str, int]:
        quoted = self._string(scan, at)
        if quoted is not None:
            key, at = quoted
            at = scan.space(at)
            if not scan.literal(at, ":"):
                raise NotACall("a key without a value")
            return key, at + 1
        key = _KEY.match(scan.text, at)
        if key is None:
            if re.fullmatch(r"[^\s:,{}\[\]\"'<]{0,256}\s*", scan.text[at : at + 300]):
                scan.more()
            raise NotACall("no key")
        return key["key"], key.end()

    def _value(
        self, scan: Scan, at: int, depth: int, tool: Tool | None = None, key: str = ""
    ) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            raise NotACall("nested too deep")
        string = self._string(scan, at)
        if string is not None:
            return string
        if scan.literal(at, "{"):
            return self._object(scan, at + 1, None, depth + 1)
        if scan.literal(at, "["):
            found = []
            at = scan.space(at + 1)
            while not scan.literal(at, "]"):
                item, at = self._value(scan, at, depth + 1)
                found.append(item)
                at = self._next(scan, at, "]")
            return found, at + 1
        bare = _BARE.match(scan.text, at)
        if bare.end() >= len(scan.text):
            scan.more()
        text = bare[0].strip()
        if not text:
            raise NotACall("no value")
        return (tool or Tool("", None)).value(key, text, string=False), bare.end()

    def _string(self, scan: Scan, at: int) -> tuple[str, int] | None:
        """A string, and where its end marker ends."""
        if scan.literal(at, self.quote):
            start = at + len(self.quote)
            end = scan.text.find(self.quote, start)
            if end < 0:
                scan.more()
                raise NotACall("a cut string")
            return scan.text[start:end], end + len(self.quote)
        pattern = _PLAIN.get(scan.text[at : at + 1])
        if pattern is None:
            return None
        found = pattern.match(scan.text, at)
        if found is None:
            scan.more()
            raise NotACall("a cut string")
        text = _ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[0]), found[1])
        return text, found.end()

    def _next(self, scan: Scan, at: int, end: str) -> int:
        """After a value: the next one, or the end."""
        at = scan.reached = scan.space(at)
        if scan.literal(at, ","):
            return scan.space(at + 1)
        if not scan.literal(at, end):
            raise NotACall("text after a value")
        return at


GEMMA_4 = Gemma("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = Gemma("<start_function_call>", "<end_function_call>", "<escape>")
