"""A request's tools as readers of calls need them: names, arguments, which values are strings.

Pure; rank 0's HTTP threads. Schemas are a client's own: whatever is in them, nothing here raises.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from server.text.calls.literals import read_json, read_python

MAX_DEPTH = 16  # of schemas in schemas, references followed
MAX_LITERAL = 64 * 1024  # characters of a value that is read as Python's
TYPES = {"null", "boolean", "integer", "number", "string", "array", "object"}
# Schemas written by hand use words of programming languages.
WORDS = {
    "str": "string", "text": "string", "char": "string", "varchar": "string", "enum": "string",
    "int": "integer", "long": "integer", "float": "number", "double": "number", "num": "number",
    "bool": "boolean", "dict": "object", "map": "object", "list": "array", "arr": "array",
    "tuple": "array",
}  # fmt: skip
SEPARATORS = re.compile(r"[./:]+")  # between a namespace and a name
JOINT = "__"  # between them in the name of a tool
OF_TYPE = {
    type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string",
    list: "array", dict: "object",
}  # fmt: skip


class Tool:
    """A function. open: arguments may have names that it does not list.

    listed: it lists its arguments, so that in text another name is no argument's.
    """

    def __init__(self, name: str, schema: Any) -> None:
        self.name = name
        self._root = schema if isinstance(schema, dict) else {}
        given = _resolved(self._root, self._root)
        properties = given.get("properties")
        self.properties: dict[str, Any] = properties if isinstance(properties, dict) else {}
        required = given.get("required")
        self.required = {
            key for key in (required if isinstance(required, list) else ()) if isinstance(key, str)
        }
        self._others = given.get("additionalProperties")
        self.open = self._others is not False
        self.listed = "properties" in given and not self._others

    def takes(self, key: str) -> bool:
        """Whether an argument may have this name, where names stand in text."""
        return bool(key) and (key in self.properties or not self.listed)

    def inner(self, schema: Any, name: str) -> Any:
        """The schema of a property (or of "item", an array's) inside of another schema."""
        schema = _resolved(schema, self._root) if isinstance(schema, dict) else {}
        properties = schema.get("properties")
        if isinstance(properties, dict) and name in properties:
            return properties[name]
        return schema.get("items") if name == "item" else None

    def is_string(self, schema: Any) -> bool:
        """Whether a string may stand there."""
        return "string" in types_of(schema, self._root)

    def value(self, key: str, text: str, string: bool | None = None) -> Any:
        """The value of an argument that was written as text. string: what the model said it is."""
        return self.read(self.properties.get(key, self._others), text, string)

    def read(self, schema: Any, text: str, string: bool | None = None) -> Any:
        """What text says where schema is: the text itself where a string may stand; else what it
        says in a type of the schema; else the text."""
        kinds = types_of(schema, self._root)
        if "string" in kinds and (string is not False or len(kinds) == 1):
            return text
        if not kinds:
            if string is True:
                return text
            # Without a type a number may as well be a string; what has a structure is none.
            kinds = TYPES - {"string"} if string is False else {"array", "object"}
        for value in _meanings(text.strip(), kinds):
            kind = OF_TYPE.get(type(value))
            if kind in kinds or (kind == "integer" and "number" in kinds):
                return value
            if kind == "number" and "integer" in kinds and value.is_integer():
                return int(value)
        return text


class Tools:
    """The tools of a request, by name. plain: as mlx-lm's parsers can read them."""

    def __init__(self, tools: list[dict[str, Any]]) -> None:
        self.plain = [_plain(tool) for tool in tools]
        functions = [tool.get("function") or {} for tool in tools]
        self._tools = {
            function["name"]: Tool(function["name"], function.get("parameters"))
            for function in functions
            if isinstance(function.get("name"), str)
        }

    def find(self, written: Any) -> Tool | None:
        """The tool that a model means: of that name, or of the name without a namespace."""
        if not isinstance(written, str):
            return None
        for name in _meant(written.strip()):
            if name in self._tools:
                return self._tools[name]
        return None


def _meant(written: str) -> Iterator[str]:
    """What may be meant by a name as it was written, the longest first: all of it, also with a
    namespace joined to it as requests join them, and what comes after a namespace."""
    for start in (0, *(found.end() for found in SEPARATORS.finditer(written))):
        yield written[start:]
        yield SEPARATORS.sub(JOINT, written[start:])


def types_of(schema: Any, root: Any, depth: int = 0) -> set[str]:
    """The JSON types that a schema admits, as far as it says; empty if it does not."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return set()
    schema = _resolved(schema, root)
    named = schema.get("type")
    found = set()
    for word in named if isinstance(named, list) else [named]:
        if isinstance(word, str):
            word = WORDS.get(word.lower(), word.lower())
            found |= {word} & TYPES
    values = schema["enum"] if isinstance(schema.get("enum"), list) else []
    values = [*values, schema["const"]] if "const" in schema else values
    if not found:
        found |= {OF_TYPE[type(value)] for value in values if type(value) in OF_TYPE}
    if not found:
        for key in ("anyOf", "oneOf", "allOf"):
            options = schema.get(key)
            for option in options if isinstance(options, list) else ():
                found |= types_of(option, root, depth + 1)
    if not found:
        signs = {"properties": "object", "items": "array", "pattern": "string",
                 "minLength": "string", "maxLength": "string"}  # fmt: skip
        found = {kind for key, kind in signs.items() if key in schema}
    if found and schema.get("nullable") is True:  # as OpenAPI says it
        found.add("null")
    return found


def _resolved(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """The schema that a reference inside of root leads to; the schema itself if it has none."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        node = root
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            return schema
        schema = node
    return {}


def _meanings(text: str, kinds: set[str]):
    """What the text may say: as JSON, in words of Python, as a literal of Python."""
    try:
        yield read_json(text)
    except (ValueError, RecursionError):
        pass
    word = text.lower()
    if word in ("true", "false"):
        yield word == "true"
    if word in ("null", "none"):
        yield None
    if kinds & {"array", "object"} and text[:1] in ("[", "{", "(") and len(text) <= MAX_LITERAL:
        try:
            value = read_python(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return
        yield list(value) if isinstance(value, tuple) else value


def _plain(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool with all there is to a tool, and each property's schema an object.

    A schema may be true, and parameters may be absent; mlx-lm's parsers fail over either.
    """
    function = dict(tool.get("function") or {})
    parameters = dict(function.get("parameters") or {})
    properties = parameters.get("properties") or {}
    parameters["properties"] = {
        name: schema if isinstance(schema, dict) else {} for name, schema in properties.items()
    }
    return {**tool, "function": {**function, "parameters": parameters}}
