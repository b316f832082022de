"""Calls that may stand without a marker, as all of an answer: Llama 3 and 4, Gemma 3. Pure; rank
0's HTTP threads.

Llama 3: {"name", "parameters"} objects with semicolons between, alone or after <|python_tag|>; or
<function=name>{...}</function>. Llama 4: the same objects, or a list of Python calls, alone or in
<|python_start|> and <|python_end|>; its template puts content into these, and objects after them.
Gemma 3, whose template has no calls: either, as Google's guides ask for them, also in a block of
code.
"""

from server.text.calls.json_text import FENCE, read_block
from server.text.calls.pythonic import Pythonic, read_calls
from server.text.calls.reader import Found, NotACall, Scan
from server.text.calls.tags import XML
from server.text.calls.tools import Tools

TAG, END = "<|python_tag|>", "<|eom_id|>"
START, STOP = "<|python_start|>", "<|python_end|>"


class Llama:
    """A Reader. The objects are all of the answer, so a bracket opens one only at its start."""

    openers = (TAG, XML.shape.bare)
    bare = ("{", "[")  # what calls without a marker begin with

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        if scan.text.startswith(XML.shape.bare):
            return XML.read(scan, tools)
        at = scan.space(len(TAG) if scan.text.startswith(TAG) else 0)
        if scan.literal(at, "[") and not scan.literal(scan.space(at + 1), "{"):
            return read_calls(scan, at, tools, END)
        return _at_the_end(scan, read_block(scan, at, tools, END, again=TAG), again=TAG)


class Llama4:
    """A Reader."""

    openers = (START, STOP)
    bare = ("{", "[")

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        opener = next((opener for opener in self.openers if scan.text.startswith(opener)), "")
        found = read_calls(scan, len(opener), tools, STOP)
        return found if opener else _at_the_end(scan, found)


class Gemma3:
    """A Reader."""

    _code = Pythonic(FENCE + "tool_code", FENCE)
    openers = (*_code.openers, FENCE + "json")
    bare = ("{", "[")

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        if scan.text.startswith(self._code.openers):
            return self._code.read(scan, tools)
        fenced = scan.text.startswith(FENCE)
        at = scan.space(len(self.openers[1]) if fenced else 0)
        closers = (FENCE,) if fenced else ()
        return _at_the_end(scan, read_calls(scan, at, tools, *closers))


def _at_the_end(scan: Scan, found: Found, again: str = "") -> Found:
    """What was found, where nothing stands after it but again, which opens the next block."""
    after = scan.space(found.end)
    if again and after < len(scan.text) and scan.literal(after, again):
        return found
    if after < len(scan.text):
        raise NotACall("text after the calls")
    scan.more()
    return found


LLAMA_3, LLAMA_4, GEMMA_3 = Llama(), Llama4(), Gemma3()
