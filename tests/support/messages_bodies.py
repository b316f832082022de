"""Bodies of the Messages API, parsed."""

from server.api.dialects.messages import (
    MessagesDialect,
    parse,
)
from tests.support.played import (
    SERVED,
    USAGE,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD = {"name": "add", "description": "Adds.", "input_schema": SCHEMA}
HI = [{"role": "user", "content": "hi"}]
CACHE = {"type": "ephemeral"}
ASK = {"model": "served-model", "max_tokens": 50, "messages": HI}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def request_of(**body):
    return parse({"max_tokens": 5, "messages": HI} | body, SERVED)[0]


def dialect_of() -> MessagesDialect:
    return MessagesDialect(parse({"max_tokens": 5, "messages": HI}, SERVED)[1], USAGE.prompt)


def user(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}
