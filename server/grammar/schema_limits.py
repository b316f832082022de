"""What a JSON schema may be before a grammar is made of it. Pure; rank 0's HTTP threads.

The limits keep schemas within what compiles in a fraction of a second and steps in a few
milliseconds; what is within them and still too hard is caught by checker.py.
"""

import json
from collections.abc import Iterator
from typing import Any

from server.protocol.errors import bad_request

MAX_SCHEMA_BYTES = 512 * 1024
MAX_SCHEMA_DEPTH = 64  # levels of JSON, not of the values that it describes
MAX_PROPERTIES = 2000  # over all objects of the schema; optional ones are what steps are slow for
MAX_ENUM_VALUES = 20_000  # over all enums of the schema
MAX_TOOLS_BYTES = 2 * 2**20  # of the schemas of all tools that a forced call may choose from
# Of the search for endless recursion; what takes more is let through, and ends with its tokens.
MAX_ROUNDS = 50
MAX_VISITS = 200_000  # of objects: half a megabyte of nested ones would take a second a round


def check_schema(schema: Any, field: str) -> None:
    """Raises ApiError 400 for a schema that is too large, or that only an endless value matches."""
    measure_schema(schema, field)
    _limit(len(json.dumps(schema)), MAX_SCHEMA_BYTES, "bytes", field)
    objects = list(_objects(schema))
    properties = sum(_length(node.get("properties"), dict) for node in objects)
    _limit(properties, MAX_PROPERTIES, "properties", field)
    _limit(
        sum(_length(node.get("enum"), list) for node in objects),
        MAX_ENUM_VALUES,
        "enum values",
        field,
    )
    if not _ends(schema, objects):
        raise bad_request(f"The schema in {field!r} requires itself: no value ends.", field)


def _limit(count: int, most: int, what: str, field: str) -> None:
    if count > most:
        raise bad_request(f"The schema in {field!r} has {count} {what}; at most {most}.", field)


def _length(value: Any, kind: type) -> int:
    return len(value) if isinstance(value, kind) else 0


def measure_schema(schema: Any, field: str) -> int:
    """Bytes that the schema has at least, found without writing it: that may take seconds.

    Raises ApiError 400 where it is too deep or too large. Without recursion, level by level, as
    what follows recurses.
    """
    size, level = 0, [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        size += sum(map(_own_size, level))
        if size > MAX_SCHEMA_BYTES:
            raise bad_request(
                f"The schema in {field!r} has more than {MAX_SCHEMA_BYTES} bytes.", field
            )
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return size
    raise bad_request(
        f"The schema in {field!r} is nested deeper than {MAX_SCHEMA_DEPTH} levels.", field
    )


def _own_size(node: Any) -> int:
    """Bytes of a node without its children, at least; 1 for each member where it has too many."""
    if not isinstance(node, dict | list) or len(node) > MAX_SCHEMA_BYTES:
        return len(node) if isinstance(node, dict | list | str) else 1
    names = node if isinstance(node, dict) else ()
    values = node.values() if isinstance(node, dict) else node
    texts = sum(len(value) if isinstance(value, str) else 1 for value in values)
    return texts + sum(map(len, names))


def _children(node: Any) -> list[Any]:
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [value for value in values if isinstance(value, dict | list)]


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in the schema, the innermost first."""
    for child in _children(schema):
        yield from _objects(child)
    if isinstance(schema, dict):
        yield schema


def _ends(root: Any, objects: list[dict[str, Any]]) -> bool:
    """Whether a finite value can match, as far as required members alone tell.

    A grammar for an endless value compiles; the answer would only end at the token limit.
    """
    ending: set[int] = set()

    def ends(node: Any) -> bool:
        return not isinstance(node, dict) or id(node) in ending

    for _ in range(min(MAX_ROUNDS, 1 + MAX_VISITS // (len(objects) + 1))):
        found = {id(node) for node in objects if not ends(node) and _could_end(node, root, ends)}
        if not found:
            return ends(root)
        ending |= found
        if ends(root):
            return True
    return True


def _could_end(node: dict[str, Any], root: Any, ends) -> bool:
    """Whether a value can match this node, given which other nodes' values are known to end."""
    if "const" in node or "enum" in node:
        return True
    if isinstance(node.get("$ref"), str) and not ends(_resolve(root, node["$ref"])):
        return False
    if not all(ends(part) for part in _list(node.get("allOf"))):
        return False
    for key in ("anyOf", "oneOf"):
        if _list(node.get(key)) and not any(ends(part) for part in node[key]):
            return False
    if node.get("type") in ("object", ["object"]):
        properties = node.get("properties")
        members = properties if isinstance(properties, dict) else {}
        return all(
            ends(members.get(name)) for name in _list(node.get("required")) if isinstance(name, str)
        )
    least = node.get("minItems")
    if node.get("type") in ("array", ["array"]) and isinstance(least, int) and least > 0:
        first = _list(node.get("prefixItems"))[:least]
        rest = node.get("items") if least > len(first) else None
        return all(ends(item) for item in [*first, rest])
    return True


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resolve(root: Any, reference: str) -> Any:
    """What a reference inside the schema points at; None if it is none of ours to judge."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    node = root
    for part in reference[2:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        node = node.get(part) if isinstance(node, dict) else None
    return node
