"""Llama 3's calls: {"name", "parameters"} objects with semicolons between, alone or after
<|python_tag|>; or <function=name>{...}</function>; or a list of Python calls. Pure; rank 0's HTTP
threads."""

from server.text.calls.json_text import read_block
from server.text.calls.pythonic import Pythonic
from server.text.calls.reader import Found, NotACall, Scan
from server.text.calls.tags import XML
from server.text.calls.tools import Tools

TAG, END = "<|python_tag|>", "<|eom_id|>"
LIST = Pythonic(TAG, END)


class Llama:
    """A Reader. The objects are all of the answer, so a bracket opens one only at its start."""

    openers = (TAG, XML.shape.bare)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        if scan.text.startswith(XML.shape.bare):
            return XML.read(scan, tools)
        at = scan.space(len(TAG) if scan.text.startswith(TAG) else 0)
        if scan.literal(at, "[") and not scan.literal(scan.space(at + 1), "{"):
            return LIST.read(scan, tools)
        found = read_block(scan, at, tools, END, again=TAG)
        after = scan.space(found.end)
        if after < len(scan.text) and not scan.literal(after, TAG):
            raise NotACall("text after the calls")
        return found


LLAMA_3 = Llama()
