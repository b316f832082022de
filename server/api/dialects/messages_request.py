"""POST /v1/messages and /v1/messages/count_tokens, the way in: a ChatRequest from a Messages one.

Pure; called on rank 0's HTTP threads. Tools that Anthropic itself would run are ignored, as are
`thinking`, `output_config`, `context_management`, `metadata` and every `cache_control`.
"""

from collections.abc import Mapping
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
from server.api.fields import Body, array, mapping, string
from server.api.requests import MAX_INT, check_model, check_turns, parse_common, parse_stop
from server.protocol.errors import bad_request, wrong
from server.protocol.requests import ChatRequest, Served, ToolChoice

ROLES = ("user", "assistant", "system")
TEXT = {"text": "text"}
# Claude Code begins its system blocks with this line, different in each session: no two sessions
# would share a prefix.
SESSION_LINE = "x-anthropic-billing-header"


@dataclass(frozen=True)
class Echo:
    """What the answer repeats: the model's name as the client wrote it."""

    model: str


def parse(body: Body, served: Served) -> tuple[ChatRequest, Echo]:
    """Checks a request for a message. Raises ApiError that names the field."""
    common = parse_common(body, served)
    if common.max_tokens is None:
        allowed = f"a whole number from 1 to {MAX_INT}, or -1 or null: as many as fit"
        raise bad_request(f"'max_tokens' is required; it must be {allowed}.", "max_tokens")
    request = _conversation(body)
    if request.messages[-1]["role"] == "assistant":
        # An answer would begin a new turn, where such a client wants its own begun one continued.
        raise wrong("messages", "assistant", "ended by a message that is not the assistant's")
    stop = parse_stop(array(body, "stop_sequences"), "stop_sequences")
    common = replace(common, n=1, stop=stop)
    return replace(request, common=common), Echo(string(body, "model") or served.model_id)


def parse_count(body: Body, served: Served) -> ChatRequest:
    """Checks a request to count a prompt's tokens. Raises ApiError that names the field."""
    check_model(body, served)
    return _conversation(body)


def _conversation(body: Body) -> ChatRequest:
    tools = _tools(body)
    choice, parallel = _tool_choice(body, tools)
    return ChatRequest(
        messages=_messages(body), tools=tools, tool_choice=choice, parallel_tool_calls=parallel
    )


def _messages(body: Body) -> list[dict[str, Any]]:
    talk = Conversation()
    _add_system(talk, body.get("system"))
    messages = array(body, "messages")
    if not messages:
        raise wrong("messages", messages, "a non-empty array of messages")
    check_turns(messages, "messages")
    for i, message in enumerate(messages):
        name = f"messages[{i}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise wrong(f"{name}.role", role, f"one of {', '.join(ROLES)}")
        content, name = message.get("content"), f"{name}.content"
        if role == "system" or not isinstance(content, list):
            talk.say(role, text_of(content, name, TEXT))
        elif role == "user":
            _add_user(talk, content, name)
        else:
            _add_assistant(talk, content, name)
    return talk.turns


def _add_system(talk: Conversation, system: Any) -> None:
    if system is None:
        return
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system
    if not isinstance(blocks, list):
        raise wrong("system", system, "a string or an array of text blocks")
    text_of(blocks, "system", TEXT)  # checks them all, so that what follows need not
    if system is blocks and blocks and blocks[0]["text"].startswith(SESSION_LINE):
        blocks = blocks[1:]
    for block in blocks:
        if block["text"]:
            talk.say("system", block["text"])


def _add_user(talk: Conversation, blocks: list[Any], name: str) -> None:
    said = []
    for i, block in enumerate(blocks):
        at = f"{name}[{i}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            said.append(text_in(block, "text", at))
        elif kind == "tool_result":
            # Before what is said, wherever it stands: templates want results next to their calls.
            result = text_of(block.get("content"), f"{at}.content", TEXT)
            talk.result(text_in(block, "tool_use_id", at), result)
        else:
            raise wrong(f"{at}.type", kind, "'text' or 'tool_result' (this server takes text only)")
    if said or not blocks:
        talk.say("user", "\n".join(said))


def _add_assistant(talk: Conversation, blocks: list[Any], name: str) -> None:
    talk.say("assistant", "")
    for i, block in enumerate(blocks):
        at = f"{name}[{i}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            talk.say("assistant", text_in(block, "text", at))
        elif kind == "thinking":
            talk.think(text_in(block, "thinking", at))
        elif kind == "tool_use":
            given = block.get("input")
            if not isinstance(given, dict):
                raise wrong(f"{at}.input", given, "an object")
            talk.call(text_in(block, "id", at), text_in(block, "name", at), given)
        elif kind != "redacted_thinking":  # sealed: only who made it can read it
            raise wrong(f"{at}.type", kind, "'text', 'thinking' or 'tool_use'")


def _tools(body: Body) -> list[dict[str, Any]]:
    tools = []
    for i, tool in enumerate(array(body, "tools") or []):
        name = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise wrong(name, tool, "an object")
        if tool.get("type") in (None, "custom"):
            if not isinstance(tool.get("input_schema"), dict):
                schema = tool.get("input_schema")
                raise wrong(f"{name}.input_schema", schema, "a JSON schema (an object)")
            tools.append(function_tool(tool, "input_schema", name))
    return check_tools(tools)


def _tool_choice(body: Body, tools: list[Mapping[str, Any]]) -> tuple[ToolChoice, bool]:
    """The choice, and whether several calls may come at once."""
    value = mapping(body, "tool_choice")
    if value is None:
        return ToolChoice(), True
    modes = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in modes:
        raise wrong("tool_choice.type", kind, "one of auto, any, tool, none")
    name = text_in(value, "name", "tool_choice") if kind == "tool" else None
    at = "tool_choice.name" if kind == "tool" else "tool_choice"
    choice = check_choice(ToolChoice(modes[kind], name), tools, at)
    return choice, not flag_in(value, "disable_parallel_tool_use", "tool_choice")
