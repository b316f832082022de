"""mlx-lm's own parser, for a format that there is no reader for here.

It is believed where it finds calls of the request's tools, with all that they require. Rank 0's
HTTP threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.text.calls.json_text import as_object
from server.text.calls.reader import Call, Found, NotACall, Scan, make_call
from server.text.calls.tools import Tools

MAX_TRIES = 16  # closing markers that are tried


@dataclass(frozen=True)
class Borrowed:
    """A Reader. parser: as mlx-lm's are; raises whatever it likes."""

    opener: str
    closer: str
    parser: Callable[[str, Any], Any]

    @property
    def openers(self) -> tuple[str, ...]:
        """As in Reader."""
        return (self.opener,)

    def read(self, scan: Scan, tools: Tools) -> Found:
        """As in Reader."""
        text = scan.text
        at = start = len(self.opener)
        for _ in range(MAX_TRIES if self.closer else 0):
            end = text.find(self.closer, at)
            if end < 0:
                break
            at = end + len(self.closer)
            try:
                return Found(self._calls(text[start:end], tools), at)
            except Exception:  # this marker was part of a value, perhaps
                continue
        scan.more()
        if self.closer:
            raise NotACall("no call before any end marker")
        return Found(self._calls(text[start:], tools), len(text))

    def _calls(self, text: str, tools: Tools) -> tuple[Call, ...]:
        parsed = self.parser(text.strip(), tools.plain)
        found = []
        for call in parsed if isinstance(parsed, list) else [parsed]:
            tool = tools.find(call["name"])
            if tool is None:
                raise NotACall("no such tool")
            id = call.get("id")
            arguments = as_object(call.get("arguments"))
            found.append(make_call(tool, arguments, id if isinstance(id, str) and id else None))
        if not found:
            raise NotACall("no call")
        return tuple(found)
