"""POST /v1/responses, the way in: its fields, and a ChatRequest from them.

Pure; called on rank 0's HTTP threads. The items of `input` are in responses_items.py, the tools in
responses_tools.py. What leans on something that this server does not keep is refused; `include`
and the like are ignored. Where a request goes on from an answer that is kept (kept_responses.py),
what was said before comes first.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.api.dialects.kept_responses import Item, KeptResponses, Shelf
from server.api.dialects.responses_items import ITEM, ITEMS, turns_of
from server.api.dialects.responses_tools import TOOL, TOOL_CHOICE, Called, Tools
from server.api.fields import Field, Fields, needed, read, record, tagged
from server.api.kinds import FLAG, SCHEMA, TEXT, array, either, never, table, text
from server.api.requests import (
    AS_MANY_AS_FIT,
    GENERATING,
    LIMIT,
    MAX_TOOLS,
    MAX_TURNS,
    STOPS,
    common_of,
    limit_of,
)
from server.protocol.errors import show, wrong
from server.protocol.requests import ChatRequest, Format, Served

MAX_METADATA, MAX_METADATA_CHARS = 16, 512  # OpenAI's own limits; a stream repeats it three times
MAX_LEFT_OUT = 10  # kinds that are named in the log
FORMAT = tagged(
    "type",
    {
        "text": {},
        "json_object": {},
        "json_schema": {"schema": needed(SCHEMA), "name": TEXT, "strict": FLAG},
    },
    "one of text, json_object, json_schema",
    default="text",
    objects="an object with a type",
)
RESPONSES: Fields = {
    **GENERATING,
    "input": needed(
        either(
            {str: TEXT, list: array(ITEM, most=MAX_TURNS)},
            f"a string or an array of at most {MAX_TURNS} items",
        ),
        f"Items: {', '.join(f'`{kind}`' for kind in ITEMS)}. Others are left out of the prompt, "
        "with a line in the log.",
        cost="0.1 s thread, to render",
    ),
    "instructions": Field(TEXT, "The system message."),
    **STOPS,
    "max_output_tokens": Field(LIMIT, "Cut to what the context leaves."),
    "text": Field(record({"format": FORMAT}), "`format`: type text, json_object or json_schema."),
    "tools": Field(
        array(TOOL, of=f"tools, at most {MAX_TOOLS} of them functions"),
        "Of type function, custom or namespace, and, where the client runs them, tool_search, "
        "local_shell, shell and apply_patch. Others are left out, with a line in the log.",
        cost="0.01 s thread",
    ),
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": Field(FLAG, "Default: true."),
    "reasoning": Field(record({"effort": TEXT}), "`effort` is handed to the chat template."),
    "metadata": Field(
        table(
            text(most=MAX_METADATA_CHARS),
            MAX_METADATA,
            re.compile(f"(?s:.{{0,{MAX_METADATA_CHARS}}})"),
            f"an object whose keys have at most {MAX_METADATA_CHARS} characters",
        ),
        "Given back.",
        cost="told three times in a stream",
    ),
    "store": Field(FLAG, "Default: true. false: the answer is not kept."),
    "previous_response_id": Field(
        TEXT, "Goes on from an answer that is kept; instructions and tools are those of this one."
    ),
    "background": never(False, why="; wait for the answer, or stream it"),
    "conversation": never(why="; use 'previous_response_id'"),
    "prompt": never(why="; send the whole prompt in 'input'"),
}
BODY = record(RESPONSES, name="ResponsesRequest")


@dataclass(frozen=True)
class Echo:
    """What the answer needs of the request.

    fields: those of the Response object that say what was asked for, defaults filled in. called:
    the request's tools, by the name that the model knows. left_out: what is not in the prompt,
    for the log. said: the items that the answer goes on from, if it is to be kept.
    """

    fields: dict[str, Any]
    called: Mapping[str, Called] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    said: tuple[Item, ...] | None = None


def parse(
    body: Mapping[str, Any], served: Served, kept: Shelf | None = None
) -> tuple[ChatRequest, Echo]:
    """Checks a request. kept: the answers that its client may go on from. Raises ApiError that
    names the field, or 404 for what is not kept."""
    kept = KeptResponses(0).of(None) if kept is None else kept
    asked = read(BODY, body)
    max_tokens = limit_of(asked, body, "max_output_tokens")
    common = common_of(asked, served, max_tokens=max_tokens)
    instructions = asked.get("instructions")
    tools = Tools(asked.get("tools", []))
    parallel = asked.get("parallel_tool_calls", True)
    format_, told_format = _format(asked.get("text", {}).get("format", {"type": "text"}))
    effort = asked.get("reasoning", {}).get("effort")
    previous, said = asked.get("previous_response_id"), _said(asked, kept)
    store = kept.keeps and asked.get("store", True)
    left_out = _left_out(body, asked)
    messages = _messages(instructions, said, tools, body["input"], left_out)
    functions, choice, told_choice = tools.choice(asked.get("tool_choice", "auto"))
    request = ChatRequest(
        messages=messages,
        tools=functions,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        template_kwargs={} if effort is None else {"reasoning_effort": effort},
        format=format_,
        common=common,
        text_formats=tools.formats,
        deferred=frozenset(tools.deferred),
        source="input",
    )
    fields = {
        "model": asked.get("model", served.model_id),
        "instructions": instructions,
        "max_output_tokens": None if max_tokens == AS_MANY_AS_FIT else max_tokens,
        "metadata": asked.get("metadata", {}),
        "parallel_tool_calls": parallel,
        "previous_response_id": previous,
        "reasoning": {"effort": effort, "summary": None},
        "store": store,
        "text": {"format": told_format},
        "tool_choice": told_choice,
        "tools": tools.told,
        "temperature": common.sampling.temperature,
        "top_p": common.sampling.top_p,
    }
    items = tuple(item for _, item in said)
    return request, Echo(fields, tools.called, left_out, items if store else None)


def _said(asked: Mapping[str, Any], kept: Shelf) -> list[tuple[str, Item]]:
    """The items of the whole conversation, each with the name of its place, for errors."""
    given = asked["input"]
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    said: list[tuple[str, Item]] = []
    if "previous_response_id" in asked:
        before = kept.conversation(asked["previous_response_id"])
        said += [("previous_response_id", item) for item in before]
    for i, item in enumerate(given):
        if item is not None:
            found = kept.item(item["id"]) if item["type"] == "item_reference" else item
            said.append((f"input[{i}]", found))
    if len(said) > MAX_TURNS:
        raise wrong("input", f"{len(said)} items with those before", f"of at most {MAX_TURNS}")
    return said


def _messages(
    instructions: str | None,
    said: list[tuple[str, Item]],
    tools: Tools,
    given: Any,
    left_out: tuple[str, ...],
) -> list[dict[str, Any]]:
    """given: the input as it came, for an error that may say what of it is left out."""
    turns = turns_of(instructions, said, tools.shown_name, tools.find)
    if len(turns) <= bool(instructions) and not any(item["type"] == "message" for _, item in said):
        why = [kind for kind in left_out if kind.startswith("items ")]
        allowed = "a string, or an array with at least one message"
        allowed += f" ({', '.join(why)} are left out of the prompt)" if why else ""
        raise wrong("input", given, allowed)
    return turns


def _left_out(body: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, ...]:
    """What is not in the prompt, each kind once."""
    kinds: dict[str, None] = {}
    if isinstance(body["input"], list):
        kinds |= dict.fromkeys(_unread("items", body["input"], asked["input"]))
    kinds |= dict.fromkeys(_unread("tools", body.get("tools") or [], asked.get("tools", [])))
    return tuple(kinds)[:MAX_LEFT_OUT]


def _unread(what: str, given: list[Any], got: list[dict[str, Any] | None]) -> Iterator[str]:
    for one, read_one in zip(given, got, strict=True):
        if read_one is None:
            yield f"{what} of type {show(one.get('type'))}"
        elif what == "tools" and read_one["type"] == "namespace":
            yield from _unread(what, one["tools"], read_one["tools"])


def _format(asked: dict[str, Any]) -> tuple[Format | None, dict[str, Any]]:
    """What the text must match, and how to tell the client."""
    kind = asked["type"]
    if kind == "text":
        return None, {"type": kind}
    if kind == "json_object":
        return Format(kind, field="text.format"), {"type": kind}
    strict, name = asked.get("strict", False), asked.get("name", "response")
    told = {"type": kind, "name": name, "schema": asked["schema"], "strict": strict}
    return Format(kind, asked["schema"], strict, "text.format"), told
