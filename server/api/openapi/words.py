"""The few words of JSON Schema that the description of the routes is written in.

Pure data; every function makes a fresh dict. Requests (api/fields) are open and say "or null", as
null means absent there; answers are closed and have all their fields.
"""

from typing import Any

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A schema among the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def integer(least: int | None = None, most: int | None = None) -> Schema:
    return {"type": "integer", **_present(minimum=least, maximum=most)}


def number(least: float | None = None, most: float | None = None) -> Schema:
    return {"type": "number", **_present(minimum=least, maximum=most)}


def string(**limits: Any) -> Schema:
    return {"type": "string", **limits}


def boolean() -> Schema:
    return {"type": "boolean"}


def anything() -> Schema:
    return {}


def enum(*values: Any) -> Schema:
    return {"enum": list(values)}


def array(items: Schema, least: int | None = None, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, **_present(minItems=least, maxItems=most)}


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def optional(schema: Schema) -> Schema:
    """The schema, or null."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return any_of(schema, {"type": "null"})


def told(optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object in an answer: exactly these fields, all of them but the optional ones."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def note(schema: Schema, text: str) -> Schema:
    """The schema with a description."""
    return {**schema, "description": text}


def _present(**limits: Any) -> Schema:
    return {name: value for name, value in limits.items() if value is not None}
