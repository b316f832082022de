"""Bodies of chats and completions, parsed."""

import json

import pytest

from server.api.dialects.chat import parse as parse_chat
from server.api.dialects.completions import parse as parse_completion
from server.protocol.errors import ApiError
from server.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    Served,
)

SERVED = Served("demo", ("alias",))
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "f"}}


def chat(**fields) -> ChatRequest:
    return parse_chat({"messages": MESSAGES} | fields, SERVED)


def completion(**fields) -> CompletionRequest:
    return parse_completion({"prompt": "hi"} | fields, SERVED)


def refusal(parse, status: int = 400, **fields) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    error = caught.value
    assert error.status == status, error
    json.dumps(error.body())
    assert len(error.message) < 1000
    return error
