"""POST /v1/responses, the items of `input`: which are understood, and what a template is told.

Pure; called on rank 0's HTTP threads. Clients send back whatever they were ever answered, by this
server or another, and new kinds of items come with their releases: one that is not understood is
left out of the prompt, and named for the log, since refusing it would end the client's session.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from server.api.dialects.own_items import OWN_CALLS, OWN_ITEMS, OWN_RESULTS
from server.api.dialects.turns import Conversation, texts
from server.api.fields import Fields, needed, record, tagged
from server.api.json_limits import InnerJson, NotTaken
from server.api.kinds import OBJECT, TEXT, Refused, array, either, one_of, then
from server.api.openapi.words import Schema
from server.protocol.errors import bad_request

ROLES = ("user", "assistant", "system", "developer")
PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
CONTENT = texts(PARTS)
SUMMARY = then(
    array(record({"text": TEXT}), of="parts with a text"),
    lambda parts: "\n".join(part["text"] for part in parts if "text" in part),
)
THOUGHT = either({str: TEXT, list: SUMMARY}, "a string, null or an array of parts with a text")
# What is missing is told in this order.
ITEMS: Mapping[str, Fields] = {
    "message": {"role": needed(one_of(*ROLES)), "content": CONTENT},
    "function_call": {
        "arguments": needed(TEXT, "JSON text."),
        "call_id": needed(TEXT),
        "name": needed(TEXT),
        "namespace": TEXT,
    },
    "function_call_output": {"output": CONTENT, "call_id": needed(TEXT)},
    "custom_tool_call": {
        "input": needed(TEXT, "Text as it is."),
        "call_id": needed(TEXT),
        "name": needed(TEXT),
        "namespace": TEXT,
    },
    "custom_tool_call_output": {"output": CONTENT, "call_id": needed(TEXT)},
    "reasoning": {"content": THOUGHT, "summary": SUMMARY},
    "mcp_call": {
        "arguments": TEXT,
        "id": needed(TEXT),
        "name": needed(TEXT),
        "output": TEXT,
        "error": either({str: TEXT, dict: OBJECT}, "a string, null or an object"),
    },
    **OWN_ITEMS,
    "item_reference": {
        "id": needed(TEXT, "Of an item of an answer that is kept. Its type may be absent.")
    },
}
KNOWN_ITEM = tagged(
    "type",
    ITEMS,
    f"one of {', '.join(ITEMS)}",
    default="message",  # the SDK's short form of a message has no type
    objects="an object",
    ignored="An item that this server does not know, or that only its maker can read.",
    name="ResponsesItem",
)


def _item(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return KNOWN_ITEM.read(value)
    if value.get("type") is None and "id" in value and not value.keys() & {"role", "content"}:
        value = {**value, "type": "item_reference"}  # the SDK's short form has no type
    found = KNOWN_ITEM.read(value)
    if found is not None and found["type"] in OWN_ITEMS and not value.keys() & {"call_id", "id"}:
        raise Refused(None, TEXT.allowed).within("call_id")
    return found


def _described(case: Schema) -> Schema:
    """Of the items with two ids, one is needed."""
    both = {"call_id", "id"} <= case.get("properties", {}).keys()
    return case | {"anyOf": [{"required": [id]} for id in ("call_id", "id")]} if both else case


ITEM = replace(
    KNOWN_ITEM,
    read=_item,
    schema={**KNOWN_ITEM.schema, "anyOf": [*map(_described, KNOWN_ITEM.schema["anyOf"])]},
)


def turns_of(
    instructions: str | None,
    items: list[tuple[str, dict[str, Any]]],
    shown_name: Callable[[str | None, str, bool], str],
    find: Callable[[list[Any]], str],
) -> list[dict[str, Any]]:
    """The turns of items that have been read, each with the name of its place, for errors.

    shown_name: by which name the model knows a tool, from its namespace and name, and whether it
    takes a text. find: what defines tools that a search has found. Raises ApiError.
    """
    talk, inner = Conversation(), InnerJson()
    if instructions:
        talk.say("system", instructions)
    for place, item in items:
        kind = item["type"]
        if kind == "message":
            talk.say(item["role"], item.get("content", ""))
        elif kind == "reasoning":
            # A summary is what is left of a thought that only its maker can read.
            if thought := item.get("content") or item.get("summary"):
                talk.think(thought)
        elif kind == "function_call":
            name = shown_name(item.get("namespace"), item["name"], False)
            talk.call(item["call_id"], name, _arguments(item["arguments"], place, inner))
        elif kind == "custom_tool_call":
            name = shown_name(item.get("namespace"), item["name"], True)
            talk.call(item["call_id"], name, {"input": item["input"]})
        elif kind in ("function_call_output", "custom_tool_call_output"):
            talk.result(item["call_id"], item.get("output", ""))
        elif kind == "mcp_call":
            arguments = _arguments(item.get("arguments", ""), place, inner)
            talk.call(item["id"], item["name"], arguments)
            talk.result(item["id"], _text(item.get("output", item.get("error", ""))))
        elif kind in OWN_CALLS:
            name, field = OWN_CALLS[kind]
            given = item.get(field, {})
            talk.call(_call_id(item), name, given if isinstance(given, dict) else {field: given})
        elif kind in OWN_RESULTS:
            result = item.get(OWN_RESULTS[kind], "")
            defined = find(result) if kind == "tool_search_output" else ""
            talk.result(_call_id(item), defined or _text(result))
    return talk.turns


def _call_id(item: Mapping[str, Any]) -> str:
    return item.get("call_id") or item.get("id", "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arguments(text: str, place: str, inner: InnerJson) -> Any:
    try:
        return inner.loads(text) if text.strip() else {}
    except NotTaken as error:
        raise bad_request(f"{place + '.arguments'!r} {error}", f"{place}.arguments") from None
    except (ValueError, RecursionError):
        return text  # the model's own malformed call, sent back to it: the template shows it
