"""JSON within limits: counted before it is parsed, as the parser holds Python's lock to its end.

Python's parser makes some ten million values a second, and nothing else of the process runs
meanwhile: neither the engine's thread nor the watchdog's. So a text may hold what takes a fraction
of a second. Called on rank 0's HTTP threads, for bodies and for JSON inside of their strings.
"""

import json
import re
import sys
from typing import Any

from server.api.kinds import LoneSurrogate, Refused, encodable

MAX_VALUES = 2**21  # some 0.3 s; room for the token ids of sixteen prompts of 128k
KEY_VALUES = 4  # what a key costs: it is hashed, and looked up among those before it
MAX_JSON_DEPTH = 100
MAX_DIGITS = sys.get_int_max_str_digits()  # of an integer: Python's own limit, as more take long
# What Python's parser tells without its place; strings are matched to be skipped.
STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
CONSTANT = re.compile(STRING + r"|(NaN|-?Infinity)", re.DOTALL)
LONG_INTEGER = re.compile(
    STRING + rf"|(?<![\d.eE+-])(-?\d{{{MAX_DIGITS + 1},}})(?![\d.eE])", re.DOTALL
)


class NotTaken(ValueError):
    """JSON that a request may not hold. The message goes on from what holds it."""


class TooManyValues(NotTaken):
    """The text holds more than may be parsed at once."""


class NoNumber(ValueError):
    """NaN and the like, which Python's parser would take."""


def loads(text: str, allowance: int = MAX_VALUES) -> Any:
    """json.loads, strict, for a text that costs at most the allowance. Raises TooManyValues,
    JSONDecodeError, RecursionError."""
    if cost(text, allowance) > allowance:
        raise TooManyValues(
            f"holds more than {allowance} JSON values (a key counts as {KEY_VALUES}); that many "
            "would keep the server from everything else while they are read."
        )
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError:
        raise
    except NoNumber as error:
        message, pattern = f"{error} is not a JSON number", CONSTANT
    except ValueError:
        message, pattern = f"an integer has more than {MAX_DIGITS} digits", LONG_INTEGER
    at = next((match.start(1) for match in pattern.finditer(text) if match[1]), 0)
    raise json.JSONDecodeError(message, text, at)


def _refuse(text: str) -> None:
    raise NoNumber(text)


def cost(text: str, enough: int) -> int:
    """At least the number of values that parsing makes: each but the first comes after one of a
    few characters. What strings hold does not count, once the plain count is more than enough."""
    counted = _count(text)
    if counted <= enough:
        return counted
    # Without escaped quotes every other part is a string. Pairs of backslashes go first: the one
    # before a quote is then an escape.
    text = text.replace("\\\\", "").replace('\\"', "")
    if text.count('"') > 2 * enough:
        return text.count('"') // 2
    return _count("".join(text.split('"')[::2]))


def _count(text: str) -> int:
    return 1 + sum(map(text.count, "[{,")) + KEY_VALUES * text.count(":")


def check_depth(root: Any) -> bool:
    """Whether it is nested no deeper than MAX_JSON_DEPTH. Walks without recursion, as what parsed
    may still be too deep for a template."""
    level = [root]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return True
    return False


class InnerJson:
    """The JSON texts inside of one request's strings: what all of them hold has one limit.

    Tool calls carry their arguments so, and a schema may come so.
    """

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def loads(self, text: str) -> Any:
        """Raises NotTaken, another ValueError (it is not JSON), RecursionError."""
        try:
            return encodable(self.parse(text))
        except LoneSurrogate:
            raise NotTaken("holds text that is not valid Unicode (a lone surrogate).") from None
        except Refused:
            raise NotTaken("holds a number that JSON does not have.") from None

    def parse(self, text: str) -> Any:
        """The same for who looks at all that is in it."""
        spent = cost(text, self._left)
        if spent > self._left:
            raise TooManyValues(f"holds, with others like it, more than {MAX_VALUES} JSON values.")
        self._left -= spent
        return json.loads(text)
