"""Tools that a prompt shows where a search has found them, and how the Messages API tells of them.

Pure; called on rank 0's HTTP threads. A client with many tools lets the model look for them with
another tool. Their definitions stand in the prompt as that tool's result. In the list at its
beginning they would change all that follows with every search, and a long conversation would be
computed anew. In the Messages API they come with the others, with `defer_loading`, and the result
refers to them; for Responses see responses_tools.py.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SERVER_SEARCH = "tool_search_tool_"  # types of searches that Anthropic's servers would run


def defined(functions: Iterable[Mapping[str, Any]]) -> str:
    """What defines these, as the prompt shows it; empty for none. functions: in chat's format."""
    lines = [
        f"<function>{json.dumps(one['function'], ensure_ascii=False)}</function>"
        for one in functions
    ]
    return "\n".join(["<functions>", *lines, "</functions>"]) if lines else ""


def deferred(tools: Iterable[Any], types: Iterable[Any]) -> frozenset[str]:
    """Names of tools to leave out of the list. tools: as read, None for some. types: of all that
    the client sent. None are left out where nobody could search, or nothing would be left."""
    known = [tool for tool in tools if tool]
    names = frozenset(tool["name"] for tool in known if tool.get("defer_loading"))
    by_servers = any(isinstance(kind, str) and kind.startswith(SERVER_SEARCH) for kind in types)
    return frozenset() if by_servers or len(names) == len(known) else names


def shown(
    turns: Iterable[Mapping[str, Any]], tools: Iterable[Mapping[str, Any]], names: frozenset[str]
) -> dict[str, str]:
    """What to add to results, by the ids of their calls: definitions of those tools of these names
    that each is the first to refer to. turns: as the client sent them, read. tools: in chat's
    format."""
    left = {tool["function"]["name"]: tool for tool in tools}
    added = {}
    for result in _results(turns) if names else ():
        found = [name for name in _referred(result["content"]) if name in names]
        if new := [left.pop(name) for name in dict.fromkeys(found) if name in left]:
            added[result["tool_use_id"]] = defined(new)
    return added


def _results(turns: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Those with parts."""
    for turn in turns:
        if turn.get("role") == "user" and isinstance(turn.get("content"), list):
            blocks = (block for block in turn["content"] if isinstance(block, Mapping))
            for block in blocks:
                if block.get("type") == "tool_result" and isinstance(block.get("content"), list):
                    yield block


def _referred(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == "tool_reference":
            yield part["tool_name"]
