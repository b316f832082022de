"""Where a bracket in other text is closed. Pure; rank 0's HTTP threads.

Quotes tell what is inside of a string, so that no bracket and no marker in one ends anything.
"""

import re

from server.text.calls.reader import NotACall, Scan

_PAIRS = {")": "(", "]": "[", "}": "{"}


def bracket_end(scan: Scan, at: int, language: re.Pattern[str]) -> int:
    """After the bracket that closes the one that stands there. language: JSON or PYTHON of
    literals. Raises NotACall, More."""
    stack = []
    for token in language.finditer(scan.text, at):
        mark, scan.reached = token[0], token.end()
        if mark in ("(", "[", "{"):
            stack.append(mark)
        elif mark in _PAIRS:
            if stack.pop() != _PAIRS[mark]:
                raise NotACall("brackets that do not match")
            if not stack:
                return token.end()
        elif mark in ('"', "'", '"""', "'''"):
            break
    scan.more()
    raise NotACall("brackets without an end")
