"""POST /v1/chat/completions, the way in: its fields, and a ChatRequest from them.

Pure; called on rank 0's HTTP threads.
"""

from collections.abc import Mapping
from typing import Any

from server.api.dialects.thinking import CHAT_THINKS, thinking_of
from server.api.dialects.turns import check_continued, texts
from server.api.fields import Field, Fields, needed, read, record
from server.api.formats import FORMATS, TOOLS, format_of, tools_of
from server.api.json_limits import InnerJson, NotTaken
from server.api.kinds import (
    FLAG,
    OBJECT,
    TEXT,
    Refused,
    array,
    as_given,
    either,
    one_of,
    then,
    whole,
)
from server.api.requests import CHOICES, GENERATING, MAX_TURNS, choices_of, common_of
from server.protocol.errors import bad_request
from server.protocol.requests import NOT_TEMPLATE_VARIABLES, ChatRequest, Served

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def _variables(given: dict[str, Any]) -> dict[str, Any]:
    for name in sorted(NOT_TEMPLATE_VARIABLES & given.keys()):
        raise Refused(name, "variables of the template: an argument of the rendering is none")
    return dict(given)


CONTENT = texts({"text": "text", "refusal": "refusal"}, joint="")
CALLED: Fields = {
    "name": needed(TEXT),
    "arguments": either({str: TEXT, dict: OBJECT}, "a string, null or an object"),
}
CALL = as_given(
    record(
        {"id": TEXT, "type": TEXT, "function": needed(record(CALLED, "an object with a name"))},
        "an object with a function",
    )
)
MESSAGE = record(
    {
        "role": needed(one_of(*ROLES)),
        "content": CONTENT,
        "refusal": Field(TEXT, "Of an earlier answer; it stands for a content that is not there."),
        "name": TEXT,
        "tool_call_id": TEXT,
        "tool_calls": Field(
            array(CALL, of="tool calls"), "Functions with a name, and arguments as JSON text."
        ),
        "function_call": Field(
            as_given(record(CALLED)), "As one of `tool_calls`, of older clients."
        ),
        "reasoning_content": TEXT,
        "reasoning": TEXT,
    },
    "an object with role and content",
    name="ChatMessage",
)
VARIABLES = then(OBJECT, _variables).showing(
    {"propertyNames": {"not": {"enum": sorted(NOT_TEMPLATE_VARIABLES)}}}
)
# What a prompt is made of.
CONVERSATION: Fields = {
    "messages": needed(
        array(MESSAGE, 1, MAX_TURNS, of="messages"),
        f"Roles: {', '.join(ROLES)}. Content is text, null or parts: text and refusals; in the "
        "place of images, audio and files the prompt says that they are left out. "
        "`reasoning_content`, `reasoning` and `tool_calls` of earlier turns go into the "
        "template.",
        cost="0.1 s thread, to render",
    ),
    "chat_template_kwargs": Field(
        VARIABLES,
        "Variables of the chat template; arguments of the rendering itself (`tokenize`, "
        "`chat_template`...): 400.",
        cost="as a conversation",
    ),
    **CHAT_THINKS,
    **TOOLS,
}
CHAT: Fields = {
    **GENERATING,
    **CHOICES,
    **CONVERSATION,
    **FORMATS,
    "continue_final_message": Field(
        FLAG, "The answer goes on with the last message, an assistant's text. Not with a format."
    ),
    "add_generation_prompt": Field(FLAG, "Not true with `continue_final_message`; else ignored."),
    "logprobs": FLAG,
    "top_logprobs": Field(whole(0, 20), "Needs logprobs.", cost="nothing before the answer"),
}
BODY = record(CHAT, name="ChatRequest")


def parse(body: Mapping[str, Any], served: Served) -> ChatRequest:
    """Checks a chat request. Raises ApiError."""
    asked = read(BODY, body)
    common = common_of(asked, served, logprobs=_alternatives(asked), **choices_of(asked, body))
    continues = asked.get("continue_final_message", False)
    if continues and asked.get("add_generation_prompt"):
        raise bad_request(
            "'continue_final_message' cannot be used with 'add_generation_prompt', which begins a "
            "new message.",
            "continue_final_message",
        )
    request = ChatRequest(
        **prompt_of(asked),
        format=format_of(asked),
        continues=continues,
        common=common,
    )
    return check_continued(request, "continue_final_message") if continues else request


def prompt_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a ChatRequest has of CONVERSATION, whose fields have been read. Raises ApiError."""
    tools, choice, parallel = tools_of(asked)
    thinking = thinking_of(asked, asked.get("reasoning_effort"))
    thinking["template_kwargs"] |= asked.get("chat_template_kwargs", {})
    return {
        "messages": _turns(asked["messages"]),
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        **thinking,
    }


def _alternatives(asked: Mapping[str, Any]) -> int | None:
    """How many alternatives to tell beside each token; None for no log-probabilities."""
    top = asked.get("top_logprobs", 0)
    if asked.get("logprobs"):
        return top
    if top:
        raise bad_request("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    return None


def _turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As chat templates expect them: text content, tool arguments as objects."""
    inner = InnerJson()
    for i, message in enumerate(messages):
        refusal = message.pop("refusal", "")
        _modernize(message, i)
        if "content" not in message:
            # In the order in which it is written: a template may print a turn as it is.
            message = messages[i] = {"role": message["role"], "content": refusal} | message
        if "tool_calls" in message:
            message["tool_calls"] = [
                _tool_call(call, f"messages[{i}].tool_calls[{j}]", inner)
                for j, call in enumerate(message["tool_calls"])
            ]
    return messages


def _modernize(message: dict[str, Any], place: int) -> None:
    """Calls and results in the form that came before tools, which templates do not know. They have
    no ids, but a result follows its call."""
    if "function_call" in message:
        call = {"id": f"call{place:05}", "type": "function"}  # as strict templates want them
        call["function"] = message.pop("function_call")
        message["tool_calls"] = [*message.get("tool_calls", ()), call]
    if message["role"] == "function":
        message["role"] = "tool"
        message.setdefault("tool_call_id", f"call{max(0, place - 1):05}")


def _tool_call(call: dict[str, Any], name: str, inner: InnerJson) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = inner.loads(arguments)
        except NotTaken as error:
            name += ".function.arguments"
            raise bad_request(f"{name!r} {error}", name) from None
        except (ValueError, RecursionError):
            pass  # the model's own malformed call, sent back to it: the template shows it as text
    return {**call, "function": {**function, "arguments": arguments}}
