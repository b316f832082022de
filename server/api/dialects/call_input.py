"""The text of a call that holds one, out of the JSON arguments that the model's call has.

Pure; called on rank 0's HTTP threads. Calls come in pieces, and so does their text go out; but what
a tool is called with has one form inside of the server: {"input": "..."}.
"""

import json
import re

from server.protocol.requests import INPUT

OPENING = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
# Whole characters of a JSON string; half of a pair waits for the other half.
WHOLE = re.compile(
    r"""(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"""
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})*"
)


class CallInput:
    """One call's, while it arrives. told: all of the text so far. opened: whether it has begun."""

    def __init__(self) -> None:
        self.told = ""
        self._held = ""
        self.opened = self._ended = False

    def add(self, arguments: str) -> str:
        """What this piece of the arguments adds to the text."""
        self._held += arguments
        if not self.opened:
            opening = OPENING.match(self._held)
            if opening is None:
                return ""
            self.opened, self._held = True, self._held[opening.end() :]
        if self._ended:
            return ""
        whole = WHOLE.match(self._held).group()
        self._held = self._held[len(whole) :]
        self._ended = self._held.startswith('"')
        text = json.loads(f'"{whole}"', strict=False)
        self.told += text
        return text


def input_of(arguments: str) -> str:
    """The text of the arguments, as far as they go."""
    try:
        value = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and isinstance(value.get(INPUT), str):
        return value[INPUT]
    one = CallInput()
    one.add(arguments)
    return one.told if one.opened else arguments if value is not None else ""
