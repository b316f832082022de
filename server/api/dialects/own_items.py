"""Items of /v1/responses for tools that the client runs: their calls, and what came of these.

Pure; called on rank 0's HTTP threads. Each is handed on as it came: the model is told what the
call's own field holds, whatever a later release adds to it.
"""

import json
from collections.abc import Mapping
from typing import Any

from server.api.dialects.own_tools import OWN_TOOLS, OwnTool
from server.api.dialects.responses_tools import TOOL
from server.api.fields import Field, Fields, needed, record, tagged
from server.api.kinds import OBJECT, TEXT, Kind, Refused, array, as_given, either, one_of, whole
from server.api.requests import INT64_MAX

# The name by which the model knows the tool of a call, and the field with what it is to do.
OWN_CALLS = {own.item: (kind, own.place) for kind, own in OWN_TOOLS.items()}
# The same for what came of them.
OWN_RESULTS = {
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "apply_patch_call_output": "output",
    "tool_search_output": "tools",
}
COUNT = whole(0, INT64_MAX)
COMMAND = record(
    {
        "type": one_of("exec"),
        "command": needed(array(TEXT, of="strings")),
        "env": OBJECT,
        "timeout_ms": COUNT,
        "working_directory": TEXT,
        "user": TEXT,
    }
)
COMMANDS = record(
    {
        "commands": needed(array(TEXT, of="strings")),
        "timeout_ms": COUNT,
        "max_output_length": COUNT,
    }
)
FILE: Fields = {"path": needed(TEXT)}
PATCH = tagged(
    "type",
    {
        "create_file": {**FILE, "diff": needed(TEXT)},
        "update_file": {**FILE, "diff": needed(TEXT)},
        "delete_file": FILE,
    },
    "one of create_file, update_file, delete_file",
    objects="an object with a type",
)
OUTCOME = record({"type": one_of("exit", "timeout"), "exit_code": whole(-INT64_MAX, INT64_MAX)})
OUTPUTS = array(record({"stdout": TEXT, "stderr": TEXT, "outcome": OUTCOME}), of="objects")
SHELL_OUTPUT = either({str: TEXT, list: OUTPUTS}, "an array of objects, or a string")
SEARCH = either({str: TEXT, dict: OBJECT}, "an object or a string")


def _whole(kind: Kind) -> Field:
    return needed(as_given(kind))


# One of the ids at least: some kinds have the one, some the other, and some of them may be null.
IDS: Fields = {"call_id": TEXT, "id": TEXT}
OWN_ITEMS: Mapping[str, Fields] = {
    "tool_search_call": {**IDS, "arguments": _whole(SEARCH)},
    "local_shell_call": {**IDS, "action": _whole(COMMAND)},
    "shell_call": {**IDS, "action": _whole(COMMANDS)},
    "apply_patch_call": {**IDS, "operation": _whole(PATCH)},
    "local_shell_call_output": {**IDS, "output": needed(TEXT)},
    "shell_call_output": {**IDS, "output": _whole(SHELL_OUTPUT)},
    "apply_patch_call_output": {
        **IDS,
        "output": TEXT,
        "status": one_of("completed", "failed", "in_progress", "incomplete"),
    },
    "tool_search_output": {**IDS, "tools": _whole(array(TOOL, of="tools"))},
}
READERS = {kind: record(fields).read for kind, fields in OWN_ITEMS.items()}


def told(own: OwnTool, arguments: str) -> dict[str, Any] | None:
    """What an item of a call has of its own; None of arguments that were cut, or that lack what
    such an item must have: clients take it for whole."""
    try:
        given = json.loads(arguments)
        if not isinstance(given, dict):
            return None
        item = {"type": own.item, **own.more, own.place: {**own.always, **given}}
        READERS[own.item](item)
    except (ValueError, RecursionError, Refused):
        return None
    return item
