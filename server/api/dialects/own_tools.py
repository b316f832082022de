"""Tools of the Responses API that the client runs, and whose calls are items of their own.

Pure; called on rank 0's HTTP threads. Shells and apply_patch are known by a type alone, as OpenAI's
models know them; any other has to be told what they do and take. A search for tools comes with its
own description. (Those of the Messages API are in client_tools.py.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]
SEARCH = "tool_search"
TEXT: Schema = {"type": "string"}
SOME: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "array", "items": SOME, "minItems": 1}
WHOLE: Schema = {"type": "integer", "minimum": 0}


@dataclass(frozen=True)
class OwnTool:
    """item: the type of its calls. place: their field with what is to be done. prefix: of their
    ids. description, schema: what the model is told, where the client does not say. always: what
    the field has beside what the model wrote. more: other fields of the item."""

    item: str
    place: str
    prefix: str
    description: str = ""
    schema: Schema | None = None
    always: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def _takes(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


# By the tool's type, which is its name for the model, too.
OWN_TOOLS: Mapping[str, OwnTool] = {
    SEARCH: OwnTool("tool_search_call", "arguments", "tsc_", more={"execution": "client"}),
    "local_shell": OwnTool(
        "local_shell_call",
        "action",
        "lsh_",
        "Runs a command on the user's machine. It is a list of the program and its arguments.",
        _takes("command", command=TEXTS, working_directory=TEXT, timeout_ms=WHOLE),
        always={"type": "exec", "env": {}},
    ),
    "shell": OwnTool(
        "shell_call",
        "action",
        "sh_",
        "Runs commands in a shell on the user's machine, side by side. Each is one line of text.",
        _takes("commands", commands=TEXTS, timeout_ms=WHOLE, max_output_length=WHOLE),
    ),
    "apply_patch": OwnTool(
        "apply_patch_call",
        "operation",
        "apc_",
        "Creates, updates or deletes a file. diff, of create_file and update_file, is a diff in "
        "V4A format: hunks that begin with @@, and lines that begin with a space, - or +.",
        _takes(
            "type",
            "path",
            type=TEXT | {"enum": ["create_file", "update_file", "delete_file"]},
            path=SOME,
            diff=TEXT,
        )
        | {"anyOf": [{"required": ["diff"]}, {"properties": {"type": {"enum": ["delete_file"]}}}]},
    ),
}


def runnable(tool: dict[str, Any] | None) -> dict[str, Any] | None:
    """A tool that has been read, with its name and what it takes; None for one that a server would
    have to run."""
    if tool is None or tool["type"] not in OWN_TOOLS:
        return tool
    kind, own = tool["type"], OWN_TOOLS[tool["type"]]
    if kind == SEARCH:
        return {**tool, "name": SEARCH} if tool.get("execution") == "client" else None
    if tool.get("environment", {}).get("type", "local") != "local":
        return None  # in a container of OpenAI's
    return {**tool, "name": kind, "description": own.description, "parameters": own.schema}
