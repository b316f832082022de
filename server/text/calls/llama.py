"""Llama 3's calls: {"name", "parameters"} objects with semicolons between, alone or after
<|python_tag|>; or <function=name>{...}</function>. Pure; rank 0's HTTP threads."""

from server.text.calls.json_text import read_block
from server.text.calls.reader import Finish, Found, NotACall, Scan
from server.text.calls.tags import XML
from server.text.calls.tools import Tools

TAG, END = "<|python_tag|>", "<|eom_id|>"


class Llama:
    """A Reader. The objects are all of the answer, so a brace opens one only at its start."""

    openers = (TAG, XML.shape.call_head)

    def read(self, text: str, tools: Tools, finish: Finish | None) -> Found:
        """As in Reader."""
        if text.startswith(XML.shape.call_head):
            return XML.read(text, tools, finish)
        scan = Scan(text, finish)
        at = scan.space(len(TAG) if text.startswith(TAG) else 0)
        found = read_block(scan, at, tools, END)
        if scan.space(found.end) < len(text):
            raise NotACall("text after the calls")
        return found


LLAMA_3 = Llama()
