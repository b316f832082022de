"""Llama 3's calls: {"name", "parameters"} objects with semicolons between, alone or after
<|python_tag|>; or <function=name>{...}</function>. Pure; rank 0's HTTP threads."""

from server.text.calls.json_text import read_block
from server.text.calls.reader import Found, NotACall, Scan
from server.text.calls.tags import XML
from server.text.calls.tools import Tools

TAG, END = "<|python_tag|>", "<|eom_id|>"


class Llama:
    """A Reader. The objects are all of the answer, so a brace opens one only at its start."""

    openers = (TAG, XML.shape.call_head)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        if scan.text.startswith(XML.shape.call_head):
            return XML.read(scan, tools)
        at = scan.space(len(TAG) if scan.text.startswith(TAG) else 0)
        found = read_block(scan, at, tools, END)
        if scan.space(found.end) < len(scan.text):
            raise NotACall("text after the calls")
        return found


LLAMA_3 = Llama()
