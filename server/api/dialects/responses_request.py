"""POST /v1/responses, the way in: its fields, and a ChatRequest from them.

Pure; called on rank 0's HTTP threads. The server keeps no responses, so what leans on a kept one
is refused. Tools that OpenAI itself would run are ignored, as are `store`, `include` and the
like; reasoning items of earlier answers are, too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.api.dialects.turns import (
    NAME,
    Conversation,
    check_choice,
    check_tools,
    function_tool,
    texts,
)
from server.api.fields import Field, Fields, needed, read, record, tagged
from server.api.json_limits import InnerJson, TooManyValues
from server.api.kinds import (
    ANYTHING,
    FLAG,
    SCHEMA,
    TEXT,
    array,
    as_one,
    either,
    never,
    one_of,
    table,
    text,
)
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
from server.protocol.errors import bad_request, wrong
from server.protocol.requests import ChatRequest, Format, Served, ToolChoice

ROLES = ("user", "assistant", "system", "developer")
MAX_METADATA, MAX_METADATA_CHARS = 16, 512  # OpenAI's own limits; a stream repeats it three times
PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}

STATELESS = ", as this server keeps no responses; "
CONTENT = texts(PARTS)
# What is missing is told in this order.
ITEMS: Mapping[str, Fields] = {
    "message": {"role": needed(one_of(*ROLES)), "content": CONTENT},
    "function_call": {
        "arguments": needed(TEXT, "JSON text."),
        "call_id": needed(TEXT),
        "name": needed(TEXT),
    },
    "function_call_output": {"output": CONTENT, "call_id": needed(TEXT)},
    "reasoning": {},
}
ITEM = tagged(
    "type",
    ITEMS,
    f"one of {', '.join(ITEMS)}",
    default="message",  # the SDK's short form of a message has no type
    objects="an object",
    never={"item_reference": f"{STATELESS}send the item itself ('store': false)"},
    name="ResponsesItem",
)
TOOL = tagged(
    "type",
    {
        "function": {
            "name": needed(NAME),
            "description": TEXT,
            "parameters": SCHEMA,
            "strict": FLAG,
        }
    },
    "",
    objects="an object",
    ignored="A tool that the server would have to run.",
)
TOOL_CHOICE_WORDS = "'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'"
TOOL_CHOICE = either(
    {
        str: as_one(one_of("none", "auto", "required"), TOOL_CHOICE_WORDS),
        dict: tagged(
            "type",
            {
                "function": {"name": needed(TEXT)},
                "allowed_tools": {
                    "mode": needed(one_of("auto", "required")),
                    "tools": Field(
                        array(ANYTHING, most=MAX_TOOLS, of="tools"),
                        "With a name; others are ignored.",
                    ),
                },
            },
            TOOL_CHOICE_WORDS,
            whole=True,
        ),
    },
    TOOL_CHOICE_WORDS,
)
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
        f"Items: {', '.join(f'`{kind}`' for kind in ITEMS)}. Those of `reasoning` are ignored; "
        "`item_reference`: 400.",
        cost="0.1 s thread, to render",
    ),
    "instructions": Field(TEXT, "The system message."),
    **STOPS,
    "max_output_tokens": Field(LIMIT, "Cut to what the context leaves."),
    "text": Field(record({"format": FORMAT}), "`format`: type text, json_object or json_schema."),
    "tools": Field(
        array(TOOL, of=f"tools, at most {MAX_TOOLS} of them functions"),
        "Of other kinds are ignored.",
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
    "background": never(False, why=f"{STATELESS}wait for the answer, or stream it"),
    **{
        name: never(why=f"{STATELESS}send the whole conversation in 'input'")
        for name in ("previous_response_id", "conversation", "prompt")
    },
}
BODY = record(RESPONSES, name="ResponsesRequest")


@dataclass(frozen=True)
class Echo:
    """Fields of the Response object that say what was asked for, defaults filled in."""

    fields: dict[str, Any]


def parse(body: Mapping[str, Any], served: Served) -> tuple[ChatRequest, Echo]:
    """Checks a request. Raises ApiError that names the field."""
    asked = read(BODY, body)
    max_tokens = limit_of(asked, body, "max_output_tokens")
    common = common_of(asked, served, max_tokens=max_tokens)
    instructions = asked.get("instructions")
    tools = [function_tool(tool, "parameters") for tool in asked.get("tools", ()) if tool]
    tools, choice, told_choice = _choice(asked.get("tool_choice", "auto"), check_tools(tools))
    parallel = asked.get("parallel_tool_calls", True)
    format_, told_format = _format(asked.get("text", {}).get("format", {"type": "text"}))
    effort = asked.get("reasoning", {}).get("effort")
    request = ChatRequest(
        messages=_messages(instructions, asked["input"]),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        template_kwargs={} if effort is None else {"reasoning_effort": effort},
        format=format_,
        common=common,
    )
    return request, Echo(
        {
            "model": asked.get("model", served.model_id),
            "instructions": instructions,
            "max_output_tokens": None if max_tokens == AS_MANY_AS_FIT else max_tokens,
            "metadata": asked.get("metadata", {}),
            "parallel_tool_calls": parallel,
            "reasoning": {"effort": effort, "summary": None},
            "text": {"format": told_format},
            "tool_choice": told_choice,
            "tools": [_flat(tool["function"]) for tool in tools],
            "temperature": common.sampling.temperature,
            "top_p": common.sampling.top_p,
        }
    )


def _messages(instructions: str | None, items: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    talk = Conversation()
    if instructions:
        talk.say("system", instructions)
    if isinstance(items, str):
        items = [{"type": "message", "role": "user", "content": items}]
    said, inner = [item for item in items if item["type"] != "reasoning"], InnerJson()
    if not said:
        raise wrong("input", items, "at least one message" if instructions else "a non-empty array")
    for i, item in enumerate(items):
        if item["type"] == "message":
            talk.say(item["role"], item.get("content", ""))
        elif item["type"] == "function_call":
            arguments = _arguments(item["arguments"], f"input[{i}]", inner)
            talk.call(item["call_id"], item["name"], arguments)
        elif item["type"] == "function_call_output":
            talk.result(item["call_id"], item.get("output", ""))
    return talk.turns


def _arguments(text: str, name: str, inner: InnerJson) -> Any:
    try:
        return inner.loads(text) if text.strip() else {}
    except TooManyValues as error:
        raise bad_request(f"{name + '.arguments'!r} {error}", name) from None
    except (ValueError, RecursionError):
        return text  # the model's own malformed call, sent back to it: the template shows it


def _flat(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
        "strict": function.get("strict", False),
    }


def _choice(
    asked: str | dict[str, Any], tools: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], ToolChoice, Any]:
    """The tools that may be called, how, and how to tell the client."""
    if isinstance(asked, str):
        choice = ToolChoice(asked)
    elif asked["type"] == "function":
        choice = ToolChoice("named", asked["name"])
        asked = {"type": asked["type"], "name": choice.name}
    else:
        listed = asked.get("tools", [])
        names = [tool.get("name") for tool in listed if isinstance(tool, dict)]
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        choice = ToolChoice(asked["mode"])
        asked = {"type": asked["type"], "mode": choice.mode, "tools": listed}
    return tools, check_choice(choice, tools, "tool_choice"), asked


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
