"""Blocks of which a turn of the Messages API is made, and how each is read for a prompt.

Pure but for notes; called on rank 0's HTTP threads. What a user or a tool gives is read as text: a
document's own, if it is text, and a few words in the place of an image. What Anthropic's servers
once did in an earlier turn, and cannot be told in a prompt, is left out.
"""

from typing import Any

from server.api.dialects.turns import Readable, text_part, texts
from server.api.fields import Fields, needed, tagged
from server.api.kinds import OBJECT, TEXT, Kind, array, then
from server.api.notes import MEDIA, note, omitted
from server.api.openapi.words import any_of

TEXTS = {"text": "text"}
# What servers other than this one did or sealed, in an answer that is history now.
FOREIGN = (
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "mcp_tool_use",
    "mcp_tool_result",
    "fallback",
)


def _document(block: dict[str, Any]) -> str:
    """A document's text, with its title and what is said of it, if it is text."""
    source = block.get("source")
    if source is None:
        return omitted("document")  # a PDF, a URL or a file of Anthropic's
    said = source["data"] if source["type"] == "text" else source.get("content", "")
    return "\n".join(filter(None, (block.get("title"), block.get("context"), said)))


def _search_result(block: dict[str, Any]) -> str:
    return "\n".join(filter(None, (block["title"], block["source"], block["content"])))


SOURCE = tagged(
    "type",
    {"text": {"data": needed(TEXT)}, "content": {"content": texts(TEXTS)}},
    "",
    objects="an object with a type",
    ignored="A document that is no text.",
)
DOCUMENT: Fields = {"source": SOURCE, "title": TEXT, "context": TEXT}
SEARCH_RESULT: Fields = {
    "title": needed(TEXT),
    "source": needed(TEXT),
    "content": needed(texts(TEXTS)),
}
READABLE: Readable = {
    "document": (DOCUMENT, _document),
    "search_result": (SEARCH_RESULT, _search_result),
    "tool_reference": ({"tool_name": needed(TEXT)}, lambda one: one["tool_name"]),
}
PART = text_part(TEXTS, READABLE)
CONTENT = texts(TEXTS, also=READABLE)
RESULT = tagged("type", {"tool_result": {"tool_use_id": needed(TEXT), "content": CONTENT}}, "")


def _user_block(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "tool_result":
        return RESULT.read(value)
    return PART.read(value)


def _assistant_block(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in FOREIGN:
        note(kind)
        return None
    if isinstance(kind, str) and kind in MEDIA:
        return {"type": "text", "text": omitted(MEDIA[kind])}
    return SAID.read(value)


# Read as a text, or as a result of a tool.
USER_BLOCK = Kind(_user_block, any_of(PART.schema, RESULT.schema), PART.allowed)
SAID = tagged(
    "type",
    {
        "text": {"text": needed(TEXT)},
        "tool_use": {"input": needed(OBJECT), "id": needed(TEXT), "name": needed(TEXT)},
        "thinking": {"thinking": needed(TEXT)},
        "redacted_thinking": {},  # sealed: only who made it can read it
        "compaction": {"content": TEXT},
    },
    "'text', 'thinking' or 'tool_use'",
)
ASSISTANT_BLOCK = Kind(
    _assistant_block,
    any_of(SAID.schema, tagged("type", {kind: {} for kind in FOREIGN}, "").schema),
    SAID.allowed,
)
ASSISTANT_BLOCKS = then(array(ASSISTANT_BLOCK), lambda blocks: [b for b in blocks if b])
