"""What several APIs need to put their requests as a ChatRequest.

Pure; called on rank 0's HTTP threads. Responses and Messages tell a conversation in smaller items
than chat templates take: Conversation joins these, so that templates which insist on one system
message at the start and on turns that alternate take them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from server.api.fields import Fields, needed, record, tagged
from server.api.kinds import TEXT, Kind, Refused, array, either, text, then
from server.api.notes import MEDIA, omitted
from server.api.requests import MAX_TOOLS
from server.protocol.errors import bad_request, wrong
from server.protocol.requests import ChatRequest, ToolChoice

JOINT = "\n\n"  # between messages that become one turn
NAME = text(least=1)  # of a function


class Conversation:
    """Grows by items; `turns` are messages as templates expect them.

    A turn's texts are joined at the end: to append each to a growing one would copy megabytes for
    every item.
    """

    def __init__(self) -> None:
        self._turns: list[dict[str, Any]] = []

    @property
    def turns(self) -> list[dict[str, Any]]:
        """What has been said so far."""
        joined = (
            {
                name: value.text() if isinstance(value, _Texts) else value
                for name, value in t.items()
            }
            for t in self._turns
        )
        return list(joined)

    def say(self, role: str, text: str) -> None:
        """Text of a role. Instructions before any turn become one system message."""
        if role == "developer" and not self._after_start():
            role = "system"  # few templates know developers, and there it means the same
        turn = self._turn(role)
        # The model's own words come back as they were; other people's stay apart.
        turn["content"].add(text, "" if role == "assistant" else JOINT)

    def think(self, text: str) -> None:
        """What the model thought before it spoke."""
        turn = self._turn("assistant")
        turn.setdefault("reasoning_content", _Texts()).add(text, "")

    def call(self, id: str, name: str, arguments: Any) -> None:
        """A tool call of the model's."""
        function = {"name": name, "arguments": arguments}
        calls = self._turn("assistant").setdefault("tool_calls", [])
        calls.append({"id": id, "type": "function", "function": function})

    def result(self, id: str, text: str) -> None:
        """What came of a tool call."""
        self._turns.append({"role": "tool", "tool_call_id": id, "content": text})

    def _after_start(self) -> bool:
        return any(turn["role"] != "system" for turn in self._turns)

    def _turn(self, role: str) -> dict[str, Any]:
        if not self._turns or self._turns[-1]["role"] != role:
            self._turns.append({"role": role, "content": _Texts()})
        return self._turns[-1]


class _Texts:
    """Texts that become one."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def add(self, text: str, joint: str) -> None:
        """One more; joint stands before it, unless there was no text yet."""
        self._parts += [joint, text] if self._parts else [text] if text else []

    def text(self) -> str:
        return "".join(self._parts)


# Of a part's type: its fields, and what makes a text of them.
Readable = Mapping[str, tuple[Fields, Callable[[dict[str, Any]], str]]]


def text_part(kinds: Mapping[str, str], also: Readable | None = None) -> Kind:
    """A part of a content, read as its text. kinds: part type -> its field with the text. also:
    other parts that are text. An image, or what else no model here reads, is read as a few words
    in its place.
    """
    fields: dict[str, Fields] = {kind: {name: needed(TEXT)} for kind, name in kinds.items()}
    fields |= {kind: own for kind, (own, _) in (also or {}).items()}
    others = {kind: then(record(own), make) for kind, (own, make) in (also or {}).items()}
    words = " or ".join(map(repr, (*kinds, *others))) + ", or an image or file, which is left out"

    def read(value: Any) -> str:
        if not isinstance(value, dict):
            raise Refused(value, "an object with a type")
        kind = value.get("type")
        if not isinstance(kind, str):
            raise Refused(kind, words).within("type")
        if kind in others:
            return others[kind].read(value)
        if kind not in kinds:
            if kind in MEDIA:
                return omitted(MEDIA[kind])
            raise Refused(kind, words).within("type")
        try:
            return TEXT.read(value.get(kinds[kind]))
        except Refused as refused:
            refused.within(kinds[kind])
            raise

    # There may be many, so a part is read as its text at once; as tagged would read it else.
    left_out: Mapping[str, Fields] = {kind: {} for kind in MEDIA}
    return replace(tagged("type", {**fields, **left_out}, words), read=read)


def texts(kinds: Mapping[str, str], joint: str = "\n", also: Readable | None = None) -> Kind:
    """A string or an array of parts (see text_part), read as one string."""
    return either(
        {str: TEXT, list: then(array(text_part(kinds, also)), joint.join)},
        "a string, null or an array of text parts",
    )


def check_continued(request: ChatRequest, name: str) -> ChatRequest:
    """The request, if its answer can go on with the last message. name: what asks for it. Raises
    ApiError 400."""
    last = request.messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        found = "a message with tool calls" if last.get("tool_calls") else last["role"]
        allowed = "ended by an assistant's message of text, to continue it"
        raise wrong("messages", found, f"{allowed}, or by one that is not the assistant's")
    forced = request.tool_choice.mode in ("required", "named")
    if request.format is not None or forced:
        other = request.format.field if request.format is not None else "tool_choice"
        raise bad_request(
            f"{name!r}: an answer that goes on with the last message cannot be used with {other!r},"
            " which says what all of it must be.",
            other,
        )
    return request


def function_tool(tool: Mapping[str, Any], schema_key: str) -> dict[str, Any]:
    """A tool in chat's format, from one whose fields lie flat. Absent fields stay absent."""
    function: dict[str, Any] = {"name": tool["name"]}
    if "description" in tool:
        function["description"] = tool["description"]
    if schema_key in tool:
        function["parameters"] = tool[schema_key]
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def check_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools, if there are not too many. Raises ApiError 400."""
    if len(tools) > MAX_TOOLS:
        raise wrong("tools", f"{len(tools)} functions", f"of at most {MAX_TOOLS}")
    return tools


def check_choice(
    choice: ToolChoice, tools: Collection[Mapping[str, Any]], field: str, given: Any
) -> ToolChoice:
    """The choice, if the tools allow it. field, given: where the client asks for it, and how.
    Raises ApiError 400: what is not there can't be forced."""
    names = [tool["function"]["name"] for tool in tools]
    if choice.mode == "required" and not names:
        of = "of type " if isinstance(given, Mapping) else ""
        raise wrong(field, given, f"{of}'auto' or 'none', as 'tools' has none to be called")
    if choice.mode == "named" and choice.name not in names:
        raise wrong(field, given, "the name of one of those in 'tools'")
    return choice
