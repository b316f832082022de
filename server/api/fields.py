"""Objects of a request: their fields by name, each with its kind and what there is to say of it.

Pure; called on rank 0's HTTP threads. `null` means absent, as openai-python sends it for every
optional field; fields that no table names are ignored. **To add a field, add it to its API's
table**: it is then read, refused with words, described at /openapi.json and listed in docs/ (tests
say which rows change). What two fields say together is for the API's own file in dialects/.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.api.kinds import Kind, Refused, Unsupported
from server.api.openapi.words import Schema, any_of, enum, note, optional


@dataclass(frozen=True)
class Field:
    """note: more than the kind says, for the description and the docs. cost: what its largest
    value takes before the request has a place, for docs/operations.md; "": next to nothing.
    needed: it must be there. nullable: null means something, though the field is needed."""

    kind: Kind
    note: str = ""
    cost: str = ""
    needed: bool = False
    nullable: bool = False

    @property
    def schema(self) -> Schema:
        """What stands in the description of the object."""
        schema = self.kind.described
        if not self.needed or self.nullable:
            schema = optional(schema)
        return note(schema, self.note) if self.note else schema


# By name. A kind alone is a field of which there is no more to say, and which may be absent.
Fields = Mapping[str, Field | Kind]


def needed(kind: Kind, note: str = "", cost: str = "") -> Field:
    """A field that must be there."""
    return Field(kind, note, cost, needed=True)


def described(fields: Fields) -> dict[str, Field]:
    """All of them as Fields."""
    return {name: f if isinstance(f, Field) else Field(f) for name, f in fields.items()}


def record(fields: Fields, allowed: str = "an object", name: str = "") -> Kind:
    """An object with these fields. What it reads is a dict of those that are there."""
    every = described(fields)
    readers = {key: field.kind.read for key, field in every.items()}
    must = [key for key, field in every.items() if field.needed]

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Refused(value, allowed)
        found: dict[str, Any] = {}
        key = ""
        try:
            # The shorter of the two: a client may send a hundred thousand fields.
            for key in value if len(value) < len(readers) else readers:
                if (given := value.get(key)) is not None and key in readers:
                    found[key] = readers[key](given)
            for key in must:
                if key not in found and not (every[key].nullable and key in value):
                    raise Refused(None, every[key].kind.allowed)
        except Refused as refused:
            refused.within(key)
            raise
        return found

    return Kind(read, object_schema(every), allowed, name)


def tagged(
    tag: str,
    kinds: Mapping[str, Fields],
    allowed: str,
    *,
    default: str | None = None,
    objects: str | None = None,
    whole: bool = False,
    ignored: str = "",
    never: Mapping[str, str] | None = None,
    name: str = "",
) -> Kind:
    """An object whose field `tag` says which others it has; read, the tag is among them.

    default: the tag of an object without one. objects: what to say of what is no object. whole:
    another tag is told as the object's fault, not its own.
    ignored: what objects with another tag are; they are read as None. never: tags that are known
    and not supported, and why.
    """
    readers = {key: record(fields).read for key, fields in kinds.items()}
    why = never or {}
    words = allowed if objects is None else objects
    objects = objects or f"an object with a {tag}"

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Refused(value, objects)
        kind = value.get(tag)
        if kind is None:
            kind = default
        if isinstance(kind, str) and kind in readers:
            found = readers[kind](value)
            found[tag] = kind
            return found
        if isinstance(kind, str) and kind in why:
            raise Unsupported(why[kind]).within(tag)
        if ignored:
            return None
        raise Refused(value, allowed) if whole else Refused(kind, allowed).within(tag)

    cases = any_of(*_cases(tag, kinds, default, ignored, why))
    return Kind(read, cases, words, name)


def _cases(
    tag: str,
    kinds: Mapping[str, Fields],
    default: str | None,
    ignored: str,
    never: Iterable[str],
) -> Iterator[Schema]:
    for key, fields in kinds.items():
        own = described(fields)
        own = {tag: Field(Kind(_unread, enum(key), ""), needed=key != default)} | own
        yield object_schema(own)
    if ignored:
        known = [*kinds, *never, *([] if default is None else [None])]
        other = Field(Kind(_unread, {"not": enum(*known)}, ""), needed=default is not None)
        yield note(object_schema({tag: other}), f"{ignored} Ignored.")


def _unread(value: Any) -> Any:
    raise AssertionError("the tag is read by what it tells apart")


def object_schema(fields: Mapping[str, Field]) -> Schema:
    """JSON Schema of an object with these fields, and any others."""
    must = [name for name, field in fields.items() if field.needed]
    properties = {name: field.schema for name, field in fields.items()}
    schema: Schema = {"type": "object", "properties": properties}
    return schema | ({"required": must} if must else {})


def read(kind: Kind, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a body that are there, typed. Raises ApiError that names what is wrong."""
    try:
        return kind.read(body)
    except Refused as refused:
        raise refused.error() from None
