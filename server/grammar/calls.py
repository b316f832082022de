"""The schema of forced tool calls. Pure; rank 0's HTTP threads.

A forced call is plain JSON, whatever the model's own way to write calls: a named tool's arguments
alone, or, where any tool will do, an array of {"name", "arguments"}. forced_calls reads that text
back as it streams.
"""

from typing import Any

from server.protocol.requests import ToolChoice

# What these hold is data, not schemas: a "$ref" in it is no reference.
DATA = ("const", "enum", "default", "examples")
# What these hold is schemas by name, and a name may look like a keyword.
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def arguments_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """The schema of one tool's arguments: always an object, empty where none are declared."""
    parameters = tool["function"].get("parameters")
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    # $id would change what "#" in a reference means once the schema is inside another.
    schema = {key: value for key, value in parameters.items() if key not in ("$id", "$schema")}
    return {**schema, "type": "object"}


def calls_schema(tools: list[dict[str, Any]], choice: ToolChoice, parallel: bool) -> dict[str, Any]:
    """The schema of the text that choice ("named" or "required") forces."""
    if choice.mode == "named":
        return arguments_schema(find_tool(tools, choice.name))
    schemas = [arguments_schema(tool) for tool in tools]
    calls = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [_call(tool, number) for number, tool in enumerate(tools)]},
        "$defs": {str(n): _moved(schema, f"#/$defs/{n}") for n, schema in enumerate(schemas)},
    }
    return calls if parallel else {**calls, "maxItems": 1}


def find_tool(tools: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The tool of that name. Raises ValueError; requests are checked before."""
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    raise ValueError(f"no tool is named {name!r}")


def _call(tool: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool["function"]["name"]},
            "arguments": {"$ref": f"#/$defs/{number}"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(node: Any, root: str, names: bool = False) -> Any:
    """The schema as it must read at root in another: references to "#" begin there.

    names: the keys of node are a client's own, not keywords.
    """
    if isinstance(node, list):
        return [_moved(item, root) for item in node]
    if not isinstance(node, dict):
        return node
    moved = {}
    for key, value in node.items():
        if not names and key in DATA:
            moved[key] = value
        elif not names and key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = root + value[1:]
        else:
            moved[key] = _moved(value, root, names=not names and key in MAPS)
    return moved
