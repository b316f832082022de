"""Calls in <tool_call> tags: JSON (Hermes, Qwen 3), XML parameters (Qwen 3 Coder, Qwen 3.5,
Nemotron 3, Seed-OSS in tags of its own), or pairs of key and value (GLM, Laguna, LongCat).
Pure; rank 0's HTTP threads.

One reader for the three, as models of one kind sometimes write another. A line break at both ends
of a Qwen value is layout; GLM's templates add none.
"""

import re
from dataclasses import replace

from server.text.calls.elements import Elements, Shape
from server.text.calls.invokes import MINIMAX_M2
from server.text.calls.json_text import FENCE, as_object, is_json, read_block, read_object
from server.text.calls.reader import Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools

# <function=f>, <function="f">, <function name="f">.
_NAMED = r"(?:\s+name)?\s*=\s*[\"']?(?P<{}>[^<>\"'\n]{{1,256}})[\"']?\s*"
# The word after which pairs, JSON or the end may come.
_NAME = re.compile(r"(?P<name>[^\s<>{}\[\]\"]{1,256})\s*")


class Pairs(Elements):
    """GLM's: a name alone, then keys and values. prefix: of the tags' names."""

    def __init__(self, prefix: str = "") -> None:
        key, value = f"{prefix}arg_key", f"{prefix}arg_value"
        super().__init__(
            Shape(
                blocks=((f"<{prefix}tool_call>", f"</{prefix}tool_call>"),),
                bare="",
                call_head="",
                call_open=_NAME,
                call_close=None,
                argument_head=f"<{key}>",
                argument_open=re.compile(rf"<{key}>(?P<key>[^<]{{1,256}})</{key}>\s*<{value}>"),
                argument_close=f"</{value}>",
            )
        )

    def open_call(self, scan: Scan, at: int, tools: Tools) -> re.Match[str] | None:
        """A tool's name, if after it comes what may."""
        found = _NAME.match(scan.text, at)
        if (found.end() if found else at) == len(scan.text):
            scan.more()  # of a name that may have a namespace before it, or of what follows it
        if found is None:
            return None
        head, (_, close) = self.shape.argument_head, self.shape.blocks[0]
        return found if scan.literal(found.end(), head, close) else None


PAIRS = Pairs()
XML = Elements(
    Shape(
        blocks=(("<tool_call>", "</tool_call>"),),
        bare="<function=",
        call_head="<function",
        call_open=re.compile(rf"<function{_NAMED.format('name')}>"),
        call_close="</function>",
        argument_head="<parameter",
        argument_open=re.compile(rf"<parameter{_NAMED.format('key')}>"),
        argument_close="</parameter>",
        lines=True,
    )
)

SEED = Elements(
    replace(XML.shape, blocks=(("<seed:tool_call>", "</seed:tool_call>"),), lines=False)
)


class Tags:
    """A Reader. prefix: of the tags' names, which LongCat has."""

    def __init__(self, prefix: str = "") -> None:
        self._pairs = Pairs(prefix) if prefix else PAIRS
        self._block = self._pairs.shape.blocks[0]
        self.openers = (self._block[0], XML.shape.bare)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        opener, closer = self._block
        if not scan.text.startswith(opener):
            return XML.read(scan, tools)
        at = scan.space(len(opener))
        if is_json(scan, at) or scan.literal(at, FENCE):
            return read_block(scan, at, tools, closer, again=opener)
        if scan.literal(at, XML.shape.call_head):
            return XML.read_calls(scan, at, tools, self._block)
        if scan.literal(at, MINIMAX_M2.shape.call_head):
            return MINIMAX_M2.read_calls(scan, at, tools, self._block)
        named = self._with_json(scan, at, tools)
        return named or self._pairs.read_calls(scan, at, tools, self._block)

    def _with_json(self, scan: Scan, at: int, tools: Tools) -> Found | None:
        """A name, then the arguments as one object."""
        found = _NAME.match(scan.text, at)
        tool = tools.find(found["name"]) if found else None
        if tool is None or scan.text[found.end() : found.end() + 1] != "{":
            return None
        arguments, end = read_object(scan, found.end())
        end = scan.space(end)
        closer = scan.literal(end, self._block[1])
        if not closer and end < len(scan.text):
            raise NotACall("text after the arguments")
        return Found((make_call(tool, as_object(arguments)),), end + len(closer or ""))
