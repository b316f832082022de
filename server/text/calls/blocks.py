"""Calls as JSON after one marker, up to another: Granite 3 and Phi 4, Nemotron, Hunyuan and Jamba,
Command A and R, Apertus, InternLM. Pure; rank 0's HTTP threads.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.text.calls.headed import Headed
from server.text.calls.json_text import SEPARATORS, as_object, calls_of, is_json, read_object
from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools


def by_name(value: Any, tools: Tools) -> list[Call]:
    """Objects whose one key is the tool's name, and its value the arguments."""
    if isinstance(value, list):
        return [call for item in value for call in by_name(item, tools)]
    if not isinstance(value, dict) or len(value) != 1:
        raise NotACall("no object of a call")
    ((name, arguments),) = value.items()
    tool = tools.find(name)
    if tool is None:
        raise NotACall("no such tool")
    return [make_call(tool, as_object(arguments))]


@dataclass(frozen=True)
class Block:
    """A Reader. closers: what may end the calls. calls: what a value of JSON says."""

    opener: str
    closers: tuple[str, ...] = ()
    calls: Callable[[Any, Tools], list[Call]] = calls_of

    @property
    def openers(self) -> tuple[str, ...]:
        """As in Reader."""
        return (self.opener,)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        found: list[Call] = []
        at = scan.space(len(self.opener))
        while True:
            value, at = read_object(scan, at)
            found += self.calls(value, tools)
            after = scan.space(at)
            if scan.text[after : after + 1] in tuple(SEPARATORS):
                after = scan.space(after + 1)
            closer = scan.literal(after, *self.closers) if self.closers else None
            # Granite writes no closer: what is no JSON any more is text.
            if closer or not is_json(scan, after):
                break
            at = after
        if not found:
            raise NotACall("no call")
        return Found(tuple(found), after + len(closer) if closer else at)


class Hunyuan:
    """A Reader. In the block stands a list, or a call with a header of its own for each."""

    openers = ("<tool_calls>",)
    _list = Block("<tool_calls>", ("</tool_calls>",))
    _headed = Headed(
        (("<tool_calls>", "</tool_calls>"),),
        "<tool_call>",
        re.compile(
            r"<tool_call>\s*(?:function\s*<tool_sep>\s*)?(?P<name>[^\s<>{}]{1,256})\s*"
            r"(?:```(?:json)?\s*)?(?=\{)"
        ),
        ("```", "</tool_call>"),
    )

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        at = scan.space(len(self.openers[0]))
        return (self._list if is_json(scan, at) else self._headed).read(scan, tools)


HUNYUAN = Hunyuan()
NEMOTRON = Block("<TOOLCALL>", ("</TOOLCALL>",))
GRANITE = Block("<|tool_call|>", ("<|/tool_call|>",))
COMMAND_A = Block("<|START_ACTION|>", ("<|END_ACTION|>",))
COMMAND_R = Block("Action: ```json", ("```",))
APERTUS = Block("<|tools_prefix|>", ("<|tools_suffix|>",), by_name)
INTERNLM = Block("<|action_start|><|plugin|>", ("<|action_end|>",))
