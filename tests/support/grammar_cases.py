"""Schemas for walks over a grammar's masks, and refusals."""

import pytest

from server.grammar.grammars import Grammars
from server.protocol.errors import ApiError
from server.protocol.requests import Format

PADDING = 48  # logits past the demo model's tokens, as large models have them
SEEDS = range(4)
ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string", "maxLength": 20}, "number": {"type": "integer"}},
    "required": ["street", "number"],
    "additionalProperties": False,
}
SCHEMAS = {
    "scalars": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "score": {"type": "number", "minimum": -1.5, "maximum": 1.5},
            "ok": {"type": "boolean"},
            "nothing": {"type": "null"},
            "kind": {"enum": ["a", "b c", 7, None]},
            "fixed": {"const": {"x": [1, 2]}},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["name", "age", "score", "ok", "nothing", "kind", "fixed", "code", "day"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "home": {"$ref": "#/$defs/address"},
            "others": {"type": "array", "items": {"$ref": "#/$defs/address"}, "maxItems": 2},
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string", "maxLength": 5}],
                "items": False,
                "minItems": 2,
            },
        },
        "required": ["home", "others", "pair"],
        "additionalProperties": False,
        "$defs": {"address": ADDRESS},
    },
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["value", "left"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 4}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "either": {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 6}]},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
}


def refusal(grammars: Grammars, wanted: Format) -> ApiError:
    with pytest.raises(ApiError) as caught:
        grammars.compile(wanted)
    return caught.value


def tool(name: str, parameters: dict | None = None, **more) -> dict:
    function = {"name": name, **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}
