"""What of a JSON schema no grammar of ours can hold an answer to: found, and left out.

Pure; rank 0's HTTP threads. A strict schema is refused for it, with the place; from another it is
left out, which is noted in the log.
"""

import re
from collections.abc import Iterator
from typing import Any

# Keywords that llguidance does not know. It ignores them by itself where it may.
KEYWORDS = frozenset({
    "not", "if", "then", "else", "uniqueItems", "propertyNames", "contains", "minContains",
    "maxContains", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedProperties", "unevaluatedItems",
})  # fmt: skip
# Look-around, word boundaries and references back: what no finite automaton has.
BEYOND_REGEX = re.compile(r"(?:[^\\]|^)(?:\\\\)*(?:\(\?(?:<?[=!])|\\[1-9bBk])")
# Where schemas stand in a schema: under one, in a list, or by names of the client's own.
ONE = ("items", "additionalProperties", "additionalItems")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
MOST_TOLD = 5


def beyond(pattern: Any) -> bool:
    """Whether a pattern has what no grammar can express."""
    return isinstance(pattern, str) and BEYOND_REGEX.search(pattern) is not None


def unenforced(schema: Any, place: str = "#") -> Iterator[str]:
    """The places of what cannot be enforced, as references into the schema."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in KEYWORDS and value is not False:
            yield f"{place}/{key}"
        elif key == "pattern" and beyond(value):
            yield f"{place}/pattern"
        if key == "patternProperties" and isinstance(value, dict):
            yield from (f"{place}/{key}/{name}" for name in value if beyond(name))
        for name, part in _parts(key, value):
            yield from unenforced(part, f"{place}/{key}{name}")


def lenient(schema: Any) -> Any:
    """A copy without the patterns that would have the whole schema refused."""
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "pattern" and beyond(value):
            continue
        if key in NAMED and isinstance(value, dict):
            odd = key == "patternProperties"
            value = {n: lenient(v) for n, v in value.items() if not (odd and beyond(n))}
        elif key in LISTS and isinstance(value, list):
            value = [lenient(part) for part in value]
        elif key in ONE:
            value = lenient(value)
        found[key] = value
    given = schema.get("patternProperties")
    if isinstance(given, dict) and any(map(beyond, given)):
        found.pop("additionalProperties", None)  # it would exclude what the pattern had allowed
    return found


def told(places: Iterator[str]) -> str:
    """A few of the places, for a log line or an error; "" if there is none."""
    found = list(places)
    more = f" and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    return ", ".join(place[:100] for place in found[:MOST_TOLD]) + more


def _parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if key in NAMED and isinstance(value, dict):
        yield from ((f"/{name}", part) for name, part in value.items())
    elif key in LISTS and isinstance(value, list):
        yield from ((f"/{n}", part) for n, part in enumerate(value))
    elif key in ONE:
        yield "", value
