"""Readers for single JSON fields: the type, the range, and an error that names all of it.

`null` means absent, as openai-python sends it for every optional field. A boolean is never taken
for a number, though Python would. JSON has one kind of number: 64.0 is the whole number 64.
"""

import math
from collections.abc import Mapping
from typing import Any

from server.protocol.errors import wrong

Body = Mapping[str, Any]


def number(body: Body, name: str, least: float, most: float, *, above: bool = False):
    """A finite number in [least, most], or None. With above, least itself is not allowed."""
    value = body.get(name)
    if value is None:
        return None
    low = "above" if above else "from"
    allowed = f"a number {low} {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, value, allowed)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong(name, value, allowed)
    if not least <= value <= most or (above and value == least):
        raise wrong(name, value, allowed)
    return float(value)


def integer(body: Body, name: str, least: int, most: int) -> int | None:
    """A whole number in [least, most], or None."""
    value = body.get(name)
    if value is None:
        return None
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int) or not least <= whole <= most:
        raise wrong(name, value, f"a whole number from {least} to {most}")
    return whole


def boolean(body: Body, name: str) -> bool:
    """A boolean; absent is False."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def string(body: Body, name: str) -> str | None:
    """A string that can be encoded as UTF-8, or None."""
    value = body.get(name)
    if value is None:
        return None
    return check_text(value, name)


def check_text(value: Any, name: str) -> str:
    """Refuses what is not a string, and strings with lone surrogates (no tokenizer takes them)."""
    if not isinstance(value, str):
        raise wrong(name, value, "a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise wrong(name, value, "valid Unicode (it has a lone surrogate)") from None
    return value


def mapping(body: Body, name: str) -> Mapping[str, Any] | None:
    """A JSON object, or None."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value


def array(body: Body, name: str) -> list[Any] | None:
    """A JSON array, or None."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise wrong(name, value, "an array")
    return value
