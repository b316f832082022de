"""POST /v1/messages and /v1/messages/count_tokens, the way in: their fields, and a ChatRequest.

Pure; called on rank 0's HTTP threads. `context_management`, `metadata` and every
`cache_control` are ignored; of tools that Anthropic itself would run see server_tools.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.api.dialects.client_tools import as_function
from server.api.dialects.deferred_tools import deferred, shown
from server.api.dialects.messages_blocks import ASSISTANT_BLOCKS, CONTENT, TEXTS, USER_BLOCK
from server.api.dialects.server_tools import to_tell, told_to_the_model, unavailable
from server.api.dialects.thinking import EFFORT, THINKS, thinking_of
from server.api.dialects.turns import (
    NAME,
    Conversation,
    check_choice,
    check_continued,
    check_tools,
    function_tool,
    text_part,
)
from server.api.fields import Field, Fields, needed, read, record, tagged
from server.api.formats import IN_A_CHILD, PARAMETERS, check_names, only
from server.api.kinds import FLAG, SCHEMA, TEXT, array, either, never, then
from server.api.notes import note
from server.api.requests import (
    GENERATING,
    LIMIT,
    MAX_TOOLS,
    MAX_TURNS,
    MODEL,
    STOP_COST,
    STOP_STRINGS,
    check_model,
    common_of,
    limit_of,
    stop_strings,
)
from server.protocol.errors import bad_request
from server.protocol.requests import ChatRequest, Format, Served, ToolChoice

# Claude Code begins its system blocks with this line, different in each session: no two sessions
# would share a prefix.
SESSION_LINE = "x-anthropic-billing-header"
CHOICES = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}

BLOCKS_WORDS = "a string, null or an array of blocks"
TURN = tagged(
    "role",
    {
        "user": {"content": either({str: TEXT, list: array(USER_BLOCK)}, BLOCKS_WORDS)},
        "assistant": {"content": either({str: TEXT, list: ASSISTANT_BLOCKS}, BLOCKS_WORDS)},
        "system": {"content": CONTENT, "output_config": record({"effort": EFFORT})},
    },
    "one of user, assistant, system",
    name="MessagesTurn",
)
SYSTEM = either(
    {
        str: then(TEXT, lambda text: [{"text": text}]),
        list: then(
            array(text_part(TEXTS)), lambda said: [{"type": "text", "text": t} for t in said]
        ),
    },
    "a string or an array of text blocks",
)
CUSTOM_TOOL = tagged(
    "type",
    {
        "custom": {
            "input_schema": replace(PARAMETERS, needed=True),
            "name": needed(NAME),
            "description": TEXT,
            "strict": FLAG,
            "defer_loading": FLAG,
        }
    },
    "",
    default="custom",
    objects="an object",
    ignored="Those that the client runs are read by their types (`bash_...`); any other:",
    name="MessagesTool",
)


def _tool(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict) and (found := as_function(value)) is not None:
        return found
    read_one = CUSTOM_TOOL.read(value)
    if read_one is None and not unavailable([value]):
        note("tool of a type that is not known")  # of the others the answer says so
    return read_one


TOOL = replace(CUSTOM_TOOL, read=_tool)
TOOL_CHOICE = tagged(
    "type",
    {
        kind: {"disable_parallel_tool_use": FLAG}
        | ({"name": needed(TEXT)} if kind == "tool" else {})
        for kind in CHOICES
    },
    f"one of {', '.join(CHOICES)}",
    objects="an object with a type",
)
TOOLS_WORDS = f"tools, at most {MAX_TOOLS} of them functions"
FORMAT = tagged(
    "type",
    {"json_schema": {"schema": needed(SCHEMA)}},
    "'json_schema'",
    objects="an object with type json_schema",
)
# What a prompt is made of.
CONVERSATION: Fields = {
    **MODEL,
    "thread": never(why="; send the whole conversation"),  # a `continue` has only what is new
    "messages": needed(
        array(TURN, 1, MAX_TURNS, of="messages"),
        "Of text, or of `text`, `tool_use`, `tool_result`, `thinking`, `document` (of text) and "
        "`search_result` blocks. In the place of images and other documents the prompt says that "
        "they are left out; `redacted_thinking` and what Anthropic's servers did is ignored. An "
        "assistant's text at the end is continued.",
        cost="0.1 s thread, to render",
    ),
    "system": Field(
        SYSTEM,
        f"Also as a role inside messages. A first block that begins with `{SESSION_LINE}` is "
        "dropped: it differs in each session.",
    ),
    **THINKS,
    "output_config": Field(
        record({"format": FORMAT, "effort": EFFORT}),
        "`format`: type json_schema, whose `schema` the text fits. `effort` is as "
        "`reasoning_effort` in chat; the last one in a system turn of `messages` comes before it. "
        "Others are ignored.",
        IN_A_CHILD,
    ),
    "tools": Field(
        array(TOOL, of=TOOLS_WORDS),
        "Also those that the client runs and that are known by a type: `bash_...`, "
        "`text_editor_...`, `memory_...`, `computer_...`. Tools that Anthropic's servers run are "
        "left out; of `web_search`, `web_fetch` and `code_execution` the answer says so in an "
        "error block, once a conversation. Those with `defer_loading` are shown where a "
        "`tool_reference` names them.",
        cost="0.01 s thread",
    ),
    "tool_choice": Field(
        TOOL_CHOICE, f"Its type: {', '.join(CHOICES)}. With `disable_parallel_tool_use`."
    ),
}
MESSAGES: Fields = {
    **GENERATING,
    **CONVERSATION,
    "output_format": Field(FORMAT, "As `format` of `output_config`.", IN_A_CHILD),
    "max_tokens": Field(LIMIT, "Cut to what the context leaves.", needed=True, nullable=True),
    "stop_sequences": Field(then(STOP_STRINGS, stop_strings), "As `stop` in chat.", cost=STOP_COST),
}
BODY = record(MESSAGES, name="MessagesRequest")
COUNT_BODY = record(CONVERSATION, name="CountTokensRequest")


@dataclass(frozen=True)
class Echo:
    """What the answer repeats: the model's name as the client wrote it. unavailable: tools that the
    client asks for, nobody can run, and no earlier answer has spoken of."""

    model: str
    unavailable: tuple[str, ...] = ()


def parse(body: Mapping[str, Any], served: Served) -> tuple[ChatRequest, Echo]:
    """Checks a request for a message. Raises ApiError that names the field."""
    if "max_tokens" not in body:
        raise bad_request(f"'max_tokens' is required; it must be {LIMIT.allowed}.", "max_tokens")
    asked = read(BODY, body)
    stop = asked.get("stop_sequences", ())
    common = common_of(asked, served, max_tokens=limit_of(asked, body, "max_tokens"), stop=stop)
    request = _conversation(asked, body, common=common, format=_format(asked))
    if request.messages[-1]["role"] == "assistant":
        request = replace(check_continued(request, "messages"), continues=True)
    missing = to_tell(unavailable(body.get("tools")), body["messages"])
    if request.continues or asked.get("tool_choice", {}).get("type") == "none":
        missing = ()
    return request, Echo(asked.get("model", served.model_id), missing)


def parse_count(body: Mapping[str, Any], served: Served) -> ChatRequest:
    """Checks a request to count a prompt's tokens. Raises ApiError that names the field."""
    asked = read(COUNT_BODY, body)
    check_model(asked, served)
    request = _conversation(asked, body)
    last = request.messages[-1]
    return replace(request, continues=last["role"] == "assistant" and "tool_calls" not in last)


def _format(asked: Mapping[str, Any]) -> Format | None:
    """What the text must match. Raises ApiError 400."""
    given = {
        "output_config.format": asked.get("output_config", {}).get("format"),
        "output_format": asked.get("output_format"),
    }
    return only(
        [
            Format("json_schema", one["schema"], field=f"{field}.schema")
            for field, one in given.items()
            if one is not None
        ]
    )


def _conversation(asked: Mapping[str, Any], body: Mapping[str, Any], **more: Any) -> ChatRequest:
    check_names(
        (tool["name"], f"tools[{number}].name")
        for number, tool in enumerate(asked.get("tools", ()))
        if tool
    )
    tools = [function_tool(tool, "input_schema") for tool in asked.get("tools", ()) if tool]
    missing = unavailable(body.get("tools"))
    choice, parallel = _choice(asked.get("tool_choice"), check_tools(tools), missing)
    later = deferred(asked.get("tools", ()), [tool.get("type") for tool in body.get("tools") or ()])
    found = shown(body["messages"], tools, later)
    # Claude Code changes it on the way, in a system turn of its own.
    changed = [turn.get("output_config", {}).get("effort") for turn in asked["messages"]]
    efforts = [asked.get("output_config", {}).get("effort"), *changed]
    return ChatRequest(
        messages=_messages(asked, missing, found),
        tools=tools,
        deferred=later,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        **thinking_of(asked, next(filter(None, reversed(efforts)), None)),
        **more,
    )


def _messages(
    asked: Mapping[str, Any], missing: tuple[str, ...], found: Mapping[str, str]
) -> list[dict[str, Any]]:
    """found: what results show beside their own text, by the ids of their calls."""
    talk = Conversation()
    for i, block in enumerate(asked.get("system", ())):
        in_blocks = "type" in block
        if block["text"] and not (in_blocks and i == 0 and block["text"].startswith(SESSION_LINE)):
            talk.say("system", block["text"])
    if missing:
        talk.say("system", told_to_the_model(missing))
    for message in asked["messages"]:
        role, content = message["role"], message.get("content", "")
        if role == "system" and not content and talk.turns:
            continue  # it says something to the server alone
        if isinstance(content, str):
            talk.say(role, content)
        elif role == "user":
            _add_user(talk, content, found)
        else:
            _add_assistant(talk, content)
    return talk.turns


def _add_user(
    talk: Conversation, blocks: list[str | dict[str, Any]], found: Mapping[str, str]
) -> None:
    said = []
    for block in blocks:
        if isinstance(block, str):
            said.append(block)
        else:
            # Before what is said, wherever it stands: templates want results next to their calls.
            id, text = block["tool_use_id"], block.get("content", "")
            talk.result(id, "\n".join(filter(None, (text, found.get(id)))))
    if said or not blocks:
        talk.say("user", "\n".join(said))


def _add_assistant(talk: Conversation, blocks: list[dict[str, Any]]) -> None:
    talk.say("assistant", "")
    for block in blocks:
        if block["type"] == "text":
            talk.say("assistant", block["text"])
        elif block["type"] == "thinking":
            talk.think(block["thinking"])
        elif block["type"] == "tool_use":
            talk.call(block["id"], block["name"], block["input"])
        elif block["type"] == "compaction":
            talk.say("assistant", block.get("content", ""))


def _choice(
    asked: Mapping[str, Any] | None, tools: list[dict[str, Any]], missing: tuple[str, ...]
) -> tuple[ToolChoice, bool]:
    """The choice, and whether several calls may come at once."""
    if asked is None:
        return ToolChoice(), True
    name = asked.get("name")
    if name in missing or (asked["type"] == "any" and missing and not tools):
        return ToolChoice(), True  # to force it would only end the conversation
    choice = ToolChoice(CHOICES[asked["type"]], name)
    if name is None:
        check_choice(choice, tools, "tool_choice", {"type": asked["type"]})
    else:
        check_choice(choice, tools, "tool_choice.name", name)
    return choice, not asked.get("disable_parallel_tool_use", False)
