"""JSON schemas of the request bodies, of the very tables that the parsers read by.

What depends on the model or on two fields at once (token ids within its vocabulary, a tool_choice
among the tools) is said in words.
"""

from server.api.dialects import (
    chat_request,
    completions,
    embeddings,
    messages_request,
    responses_request,
    tokenize,
)
from server.api.formats import FUNCTION_TOOL, STRUCTURED_OUTPUTS
from server.api.kinds import Kind
from server.api.openapi.words import Schema

BODIES: tuple[Kind, ...] = (
    chat_request.BODY,
    completions.BODY,
    responses_request.BODY,
    messages_request.BODY,
    messages_request.COUNT_BODY,
    embeddings.BODY,
    tokenize.BODY,
    tokenize.IDS_BODY,
)
PARTS: tuple[Kind, ...] = (
    chat_request.MESSAGE,
    FUNCTION_TOOL,
    STRUCTURED_OUTPUTS,
    responses_request.ITEM,
    messages_request.TURN,
    messages_request.TOOL,
)


def request_schemas(*models: str) -> dict[str, Schema]:
    """All schemas of requests, by the name of the component."""
    schemas = {kind.name: kind.schema for kind in (*BODIES, *PARTS)}
    return schemas | {kind.name: _serving(kind.schema, models) for kind in BODIES}


def _serving(schema: Schema, models: tuple[str, ...]) -> Schema:
    """The schema of a body, with the models that this server has."""
    if "anyOf" in schema:
        return schema | {"anyOf": [_serving(one, models) for one in schema["anyOf"]]}
    properties = dict(schema["properties"])
    properties["model"] = {**properties["model"], "enum": [*models, None]}
    return schema | {"properties": properties}
