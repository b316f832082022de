"""Tools of the Messages API that Anthropic's servers run, and nobody here can.

Pure but for ids; called on rank 0's HTTP threads. A request may hold them: the model is told that
it does not have them, and the answer begins with a call of each that has failed, once a
conversation. Otherwise the client would show what the model invents as what was found.
"""

import re
import uuid
from collections.abc import Mapping
from typing import Any

UNAVAILABLE = re.compile(r"(web_search|web_fetch|code_execution)_[0-9]{8}")


def unavailable(tools: Any) -> tuple[str, ...]:
    """Names of such tools in a request's own list, whose fields were read."""
    types = [tool.get("type") for tool in tools or () if isinstance(tool, Mapping)]
    found = [UNAVAILABLE.fullmatch(kind) for kind in types if isinstance(kind, str)]
    return tuple(dict.fromkeys(match[1] for match in found if match))


def to_tell(names: tuple[str, ...], turns: list[Any]) -> tuple[str, ...]:
    """Those of which no earlier answer of the conversation has told. turns: as the client sent
    them, read."""
    blocks = (
        block
        for turn in turns
        if turn.get("role") == "assistant" and isinstance(turn.get("content"), list)
        for block in turn["content"]
    )
    told = {block["type"] for block in blocks if isinstance(block, Mapping)}
    return tuple(name for name in names if f"{name}_tool_result" not in told)


def told_to_the_model(names: tuple[str, ...]) -> str:
    """A part of the system message."""
    return (
        f"This server cannot run {' or '.join(names)}. Do not use it, do not make up what it would "
        "find, and say so where it matters."
    )


def told_to_the_client(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Blocks at the start of an answer: for each a call and its error."""
    blocks: list[dict[str, Any]] = []
    for name in names:
        id, result = f"srvtoolu_{uuid.uuid4().hex[:24]}", f"{name}_tool_result"
        error = {"type": f"{result}_error", "error_code": "unavailable"}
        blocks += [
            {"type": "server_tool_use", "id": id, "name": name, "input": {}},
            {"type": result, "tool_use_id": id, "content": error},
        ]
    return blocks
