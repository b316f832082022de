"""POST /v1/responses, the way in: a Responses request as a ChatRequest.

Pure; called on rank 0's HTTP threads. The server keeps no responses, so what leans on a kept one
is refused. Tools that OpenAI itself would run are ignored, as are `store`, `include` and the
like; reasoning items of earlier answers are, too.
"""

from dataclasses import dataclass, replace
from typing import Any

from server.api.dialects.turns import (
    Conversation,
    check_choice,
    check_tools,
    flag_in,
    function_tool,
    text_in,
    text_of,
)
from server.api.fields import Body, array, boolean, check_text, mapping, string
from server.api.json_limits import InnerJson, TooManyValues
from server.api.requests import (
    AS_MANY_AS_FIT,
    MAX_TOOLS,
    check_turns,
    parse_common,
    parse_max_tokens,
)
from server.protocol.errors import ApiError, bad_request, wrong
from server.protocol.requests import ChatRequest, Format, Served, ToolChoice

ROLES = ("user", "assistant", "system", "developer")
ITEMS = ("message", "function_call", "function_call_output", "reasoning")
MAX_METADATA, MAX_METADATA_CHARS = 16, 512  # OpenAI's own limits; a stream repeats it three times
PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


@dataclass(frozen=True)
class Echo:
    """Fields of the Response object that say what was asked for, defaults filled in."""

    fields: dict[str, Any]


def parse(body: Body, served: Served) -> tuple[ChatRequest, Echo]:
    """Checks a request. Raises ApiError that names the field."""
    common = parse_common(body, served)
    _refuse_state(body)
    instructions = string(body, "instructions")
    tools = _tools(body)
    tools, choice, told_choice = _tool_choice(body.get("tool_choice"), tools)
    parallel = body.get("parallel_tool_calls") is None or boolean(body, "parallel_tool_calls")
    format_, told_format = _format(body)
    effort = (mapping(body, "reasoning") or {}).get("effort")
    if effort is not None:
        check_text(effort, "reasoning.effort")
    max_tokens = parse_max_tokens(body, "max_output_tokens")
    request = ChatRequest(
        messages=_messages(instructions, body.get("input")),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        template_kwargs={} if effort is None else {"reasoning_effort": effort},
        format=format_,
        common=replace(common, n=1, max_tokens=max_tokens),
    )
    return request, Echo(
        {
            "model": string(body, "model") or served.model_id,
            "instructions": instructions,
            "max_output_tokens": None if max_tokens == AS_MANY_AS_FIT else max_tokens,
            "metadata": _metadata(body),
            "parallel_tool_calls": parallel,
            "reasoning": {"effort": effort, "summary": None},
            "text": {"format": told_format},
            "tool_choice": told_choice,
            "tools": [_flat(tool["function"]) for tool in tools],
            "temperature": common.sampling.temperature,
            "top_p": common.sampling.top_p,
        }
    )


def _refuse_state(body: Body) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if body.get(name) is not None:
            raise _stateless(name, "send the whole conversation in 'input'")
    if boolean(body, "background"):
        raise _stateless("background", "wait for the answer, or stream it")


def _stateless(name: str, instead: str) -> ApiError:
    return bad_request(
        f"{name!r} is not supported, as this server keeps no responses; {instead}.",
        name,
        "unsupported_parameter",
    )


def _messages(instructions: str | None, items: Any) -> list[dict[str, Any]]:
    talk = Conversation()
    if instructions:
        talk.say("system", instructions)
    before = len(talk.turns)
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise wrong("input", items, "a string or an array of items")
    check_turns(items, "input")
    added, inner = False, InnerJson()
    for i, item in enumerate(items):
        added = _add_item(talk, item, f"input[{i}]", inner) or added
    if not added:
        raise wrong("input", items, "at least one message" if before else "a non-empty array")
    return talk.turns


def _add_item(talk: Conversation, item: Any, name: str, inner: InnerJson) -> bool:
    """Whether the item added to the conversation."""
    if not isinstance(item, dict):
        raise wrong(name, item, "an object")
    # The SDK's short form of a message has no type.
    kind = "message" if item.get("type") is None else item["type"]
    if kind == "item_reference":
        raise _stateless(f"{name}.type", "send the item itself ('store': false)")
    if kind == "message":
        role = item.get("role")
        if role not in ROLES:
            raise wrong(f"{name}.role", role, f"one of {', '.join(ROLES)}")
        talk.say(role, text_of(item.get("content"), f"{name}.content", PARTS))
    elif kind == "function_call":
        arguments = _arguments(text_in(item, "arguments", name), name, inner)
        talk.call(text_in(item, "call_id", name), text_in(item, "name", name), arguments)
    elif kind == "function_call_output":
        output = text_of(item.get("output"), f"{name}.output", PARTS)
        talk.result(text_in(item, "call_id", name), output)
    elif kind != "reasoning":
        raise wrong(f"{name}.type", kind, f"one of {', '.join(ITEMS)}")
    return kind != "reasoning"


def _arguments(text: str, name: str, inner: InnerJson) -> Any:
    try:
        return inner.loads(text) if text.strip() else {}
    except TooManyValues as error:
        raise bad_request(f"{name + '.arguments'!r} {error}", name) from None
    except (ValueError, RecursionError):
        return text  # the model's own malformed call, sent back to it: the template shows it


def _tools(body: Body) -> list[dict[str, Any]]:
    tools = []
    for i, tool in enumerate(array(body, "tools") or []):
        if not isinstance(tool, dict):
            raise wrong(f"tools[{i}]", tool, "an object")
        if tool.get("type") == "function":
            tools.append(function_tool(tool, "parameters", f"tools[{i}]"))
    return check_tools(tools)


def _flat(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
        "strict": function.get("strict", False),
    }


def _tool_choice(
    value: Any, tools: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], ToolChoice, Any]:
    """The tools that may be called, how, and how to tell the client."""
    kind = value.get("type") if isinstance(value, dict) else value
    if value is None:
        choice, value = ToolChoice(), "auto"
    elif isinstance(value, str) and value in ("none", "auto", "required"):
        choice = ToolChoice(value)
    elif isinstance(value, dict) and kind == "function":
        name = text_in(value, "name", "tool_choice")
        choice, value = ToolChoice("named", name), {"type": "function", "name": name}
    elif isinstance(value, dict) and kind == "allowed_tools":
        if value.get("mode") not in ("auto", "required"):
            raise wrong("tool_choice.mode", value.get("mode"), "'auto' or 'required'")
        listed = array({"tool_choice.tools": value.get("tools")}, "tool_choice.tools") or []
        if len(listed) > MAX_TOOLS:
            raise wrong("tool_choice.tools", f"{len(listed)} tools", f"of at most {MAX_TOOLS}")
        names = [tool.get("name") for tool in listed if isinstance(tool, dict)]
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        choice = ToolChoice(value["mode"])
        value = {"type": "allowed_tools", "mode": value["mode"], "tools": listed}
    else:
        allowed = "'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'"
        raise wrong("tool_choice", value, allowed)
    return tools, check_choice(choice, tools, "tool_choice"), value


def _format(body: Body) -> tuple[Format | None, dict[str, Any]]:
    """What the text must match, and how to tell the client."""
    name = "text.format"
    value = mapping({name: (mapping(body, "text") or {}).get("format")}, name) or {"type": "text"}
    kind = value.get("type")
    if kind == "text":
        return None, {"type": kind}
    if kind == "json_object":
        return Format(kind, field=name), {"type": kind}
    if kind != "json_schema":
        raise wrong(f"{name}.type", kind, "'text', 'json_object' or 'json_schema'")
    schema = value.get("schema")
    if not isinstance(schema, dict):
        raise wrong(f"{name}.schema", schema, "a JSON schema (an object)")
    title = "response" if value.get("name") is None else text_in(value, "name", name)
    strict = flag_in(value, "strict", name)
    told = {"type": kind, "name": title, "schema": schema, "strict": strict}
    return Format(kind, schema, strict, name), told


def _metadata(body: Body) -> dict[str, str]:
    metadata = dict(mapping(body, "metadata") or {})
    allowed = (
        f"an object of at most {MAX_METADATA} keys and texts of {MAX_METADATA_CHARS} characters"
    )
    if len(metadata) > MAX_METADATA:
        raise wrong("metadata", f"{len(metadata)} keys", allowed)
    for key, value in metadata.items():
        if max(len(key), len(check_text(value, f"metadata.{key}"))) > MAX_METADATA_CHARS:
            raise wrong(f"metadata.{key}", value, allowed)
    return metadata
