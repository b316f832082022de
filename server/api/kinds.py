"""Kinds of value in a request, each of which both reads and describes: one source for the parser,
what its errors call allowed, /openapi.json and the tables in docs/.

Pure; called on rank 0's HTTP threads. A boolean is never taken for a number, though Python would.
JSON has one kind of number: 64.0 is the whole number 64. How kinds become the fields of an object
is in fields.py.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.api.openapi.words import Schema, any_of, enum, ref
from server.api.openapi.words import array as array_schema
from server.protocol.errors import ApiError, bad_request, wrong


class Refused(Exception):
    """A value that is not allowed. What encloses it adds to the path on the way out, so that a
    request with nothing wrong in it has no path made."""

    def __init__(self, value: Any, allowed: str) -> None:
        super().__init__()
        self.path = ""
        self._value = value
        self._allowed = allowed

    def within(self, part: str | int) -> "Refused":
        """The same, told from one level further out: a field's name, or the place in an array."""
        self.path = (f"[{part}]" if isinstance(part, int) else f".{part}") + self.path
        return self

    def error(self) -> ApiError:
        """What the client is told."""
        return wrong(self.path.removeprefix("."), self._value, self._allowed)


class Unsupported(Refused):
    """A field or a word that the API has and this server has not. why: continues the sentence."""

    def __init__(self, why: str = "") -> None:
        super().__init__(None, why)

    def error(self) -> ApiError:
        name = self.path.removeprefix(".")
        message = f"{name!r} is not supported{self._allowed}."
        return bad_request(message, name, "unsupported_parameter")


class LoneSurrogate(Refused):
    """Text that cannot be encoded, so that no tokenizer takes it."""

    def __init__(self, value: str) -> None:
        super().__init__(value, "valid Unicode (it has a lone surrogate)")


@dataclass(frozen=True)
class Kind:
    """read: the value as the server wants it, or Refused. schema: the same as JSON Schema.
    allowed: the same in words that follow "It must be". name: of its component in the
    description; "": it is described in its place."""

    read: Callable[[Any], Any]
    schema: Schema
    allowed: str
    name: str = ""

    @property
    def described(self) -> Schema:
        """What stands in the description of whatever holds it."""
        return ref(self.name) if self.name else self.schema

    def showing(self, schema: Schema) -> "Kind":
        """The same kind, with more in its description."""
        return replace(self, schema=self.schema | schema)


def number(least: float, most: float, *, above: bool = False) -> Kind:
    """A finite number in [least, most]. With above, least itself is not allowed."""
    allowed = f"a number {'above' if above else 'from'} {least:g} to {most:g}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(value, allowed)
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(value, allowed)
        if not least <= value <= most or (above and value == least):
            raise Refused(value, allowed)
        return float(value)

    low = {"exclusiveMinimum" if above else "minimum": least}
    return Kind(read, {"type": "number", **low, "maximum": most}, allowed)


def whole(least: int, most: int, *, point: bool = True) -> Kind:
    """A whole number in [least, most]. Without point, 64.0 is none."""
    allowed = f"a whole number from {least} to {most}"

    def read(value: Any) -> int:
        got = int(value) if point and isinstance(value, float) and value.is_integer() else value
        if isinstance(got, bool) or not isinstance(got, int) or not least <= got <= most:
            raise Refused(value, allowed)
        return got

    return Kind(read, {"type": "integer", "minimum": least, "maximum": most}, allowed)


def text(least: int = 0, most: int | None = None) -> Kind:
    """A string that can be encoded as UTF-8, of so many characters."""
    count = f"{least} to {most}" if least else f"at most {most}"
    allowed = "a non-empty string" if most is None else f"a string of {count} characters"

    def read(value: Any) -> str:
        if len(_text(value)) < least or (most is not None and len(value) > most):
            raise Refused(value, allowed)
        return value

    schema: Schema = {"type": "string"}
    schema |= {"minLength": least} if least else {}
    schema |= {"maxLength": most} if most is not None else {}
    return Kind(read, schema, allowed)


def word(pattern: re.Pattern[str], allowed: str) -> Kind:
    """A string of which all is as the pattern, which takes nothing but ASCII."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Refused(value, allowed)
        return value

    return Kind(read, {"type": "string", "pattern": f"^{pattern.pattern}$"}, allowed)


def one_of(*values: Any) -> Kind:
    """One of these words, or this boolean."""
    shown = ", ".join(map(str, values))
    allowed = f"one of {shown}" if len(values) > 1 else repr(values[0])
    (kind,) = {type(value) for value in values}
    known = frozenset(values)

    def read(value: Any) -> Any:
        if type(value) is kind and value in known:
            return value
        raise Refused(value, allowed)

    return Kind(read, enum(*values), allowed)


def never(*idle: Any, why: str = "") -> Kind:
    """What is refused rather than ignored, as it would change the answer. idle: these ask for
    nothing. why: goes on from "is not supported"."""

    def read(value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in idle):
            raise Unsupported(why)

    return Kind(read, enum(*idle), f"absent: it is not supported{why}")


def array(kind: Kind, least: int = 0, most: int | None = None, of: str = "items") -> Kind:
    """An array; of: what its items are called."""
    count = f"{least} to {most}" if least else f"at most {most}"
    words = f"an array of {of}" if most is None else f"an array of {count} {of}"
    allowed = f"a non-empty {words.removeprefix('an ')}" if least and most is None else words
    read_one = kind.read

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) < least:
            raise Refused(value, allowed)
        if most is not None and len(value) > most:
            raise Refused(f"{len(value)} {of}", f"of at most {most}")
        found: list[Any] = []
        try:
            for item in value:
                found.append(read_one(item))  # noqa: PERF401, as its length tells the place
        except Refused as refused:
            refused.within(len(found))
            raise
        return found

    return Kind(read, array_schema(kind.described, least or None, most), allowed)


def table(
    kind: Kind, most: int, keys: re.Pattern[str], allowed_keys: str, of: str = "keys"
) -> Kind:
    """An object whose keys are the client's own."""
    allowed = f"an object of at most {most} {of}, each with {kind.allowed}"

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Refused(value, allowed)
        if len(value) > most:
            raise Refused(f"{len(value)} {of}", allowed)
        found = {}
        for key, inner in value.items():
            if not keys.fullmatch(encodable(key)):
                raise Refused(key, allowed_keys)
            try:
                found[key] = kind.read(inner)
            except Refused as refused:
                refused.within(key)
                raise
        return found

    schema = {
        "type": "object",
        "propertyNames": {"pattern": f"^{keys.pattern}$"},
        "additionalProperties": kind.described,
        "maxProperties": most,
    }
    return Kind(read, schema, allowed)


def either(kinds: Mapping[type, Kind], allowed: str) -> Kind:
    """Kinds that JSON's own types tell apart: str, list or dict."""

    readers = {type: kind.read for type, kind in kinds.items()}

    def read(value: Any) -> Any:
        read_one = readers.get(type(value))
        if read_one is None:
            raise Refused(value, allowed)
        return read_one(value)

    return Kind(read, any_of(*(kind.described for kind in kinds.values())), allowed)


def as_one(kind: Kind, allowed: str) -> Kind:
    """The same kind, of which an error tells the whole: nobody finds a part of it by a path."""
    read_parts = kind.read

    def read(value: Any) -> Any:
        try:
            return read_parts(value)
        except LoneSurrogate as refused:
            refused.path = ""
            raise
        except Refused:
            raise Refused(value, allowed) from None

    return replace(kind, read=read, allowed=allowed)


def then(kind: Kind, make: Callable[[Any], Any]) -> Kind:
    """The same kind, from whose value the reader makes another. make may raise Refused."""
    return replace(kind, read=lambda value: make(kind.read(value)))


def as_given(kind: Kind) -> Kind:
    """The same kind, which checks a value and hands it on as it came, unknown fields included."""
    check = kind.read

    def read(value: Any) -> Any:
        check(value)
        return encodable(value)

    return replace(kind, read=read)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(value, "a string")
    return encodable(value)


def encodable(value: Any) -> Any:
    """The value, if JSON has all that is in it, keys included. It is no deeper than a body."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise LoneSurrogate(value) from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refused(value, "a finite number")
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else ():
            encodable(key)
        for place, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, str | float | dict | list):
                try:
                    encodable(inner)
                except Refused as refused:
                    refused.within(place)
                    raise
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(value, "an object")
    return encodable(value)


def _schema(value: Any) -> dict[str, Any]:
    """All of it is written out for the compiler of grammars."""
    if not isinstance(value, dict):
        raise Refused(value, SCHEMA.allowed)
    return encodable(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refused(value, "true or false")
    return value


FLAG = Kind(_flag, {"type": "boolean"}, "true or false")
TEXT = Kind(_text, {"type": "string"}, "a string")
OBJECT = Kind(_object, {"type": "object"}, "an object")
SCHEMA = Kind(_schema, {"type": "object"}, "a JSON schema (an object)")
ANYTHING = Kind(encodable, {}, "anything")
