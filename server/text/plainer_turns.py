"""A conversation in the ways that stricter chat templates take it, one after another.

Many templates know no developer, take a system turn only as the first or not at all, and insist on
turns of user and assistant that alternate; agents send none of it so. Nothing that was said is
lost. Tried on rank 0's HTTP threads only where the template refuses what came before.
"""

from collections.abc import Iterator
from typing import Any

JOINT = "\n\n"  # between texts that become one
INSTRUCTS = ("system", "developer")
JOINED = ("system", "user", "assistant")  # whose turns in a row become one

Turns = list[dict[str, Any]]


def plainer(turns: Turns) -> Iterator[Turns]:
    """The same conversation, each time with less that a template could refuse."""
    first = system_first(turns)
    yield first
    joined = join(first)
    yield joined
    after_tools = _part_of_results(joined)
    yield after_tools
    yield _without_system(joined)
    yield _without_system(after_tools)


def system_first(turns: Turns) -> Turns:
    """With a system turn at most at the start: later ones become the user's."""
    return [
        {**m, "role": "user" if i else "system"} if m["role"] in INSTRUCTS else m
        for i, m in enumerate(turns)
    ]


def join(turns: Turns) -> Turns:
    """With turns of one role in a row as one."""
    found: Turns = []
    for turn in turns:
        if found and turn["role"] in JOINED and turn["role"] == found[-1]["role"]:
            found[-1] = _as_one(found[-1], turn)
        else:
            found.append(turn)
    return found


def _part_of_results(turns: Turns) -> Turns:
    """With what a user says right after a tool's result as part of it, as some templates count
    the user's turns against the assistant's answers."""
    found: Turns = []
    for turn in turns:
        if found and turn["role"] == "user" and found[-1]["role"] == "tool":
            found[-1] = {**found[-1], "content": _texts(found[-1], turn, "content")}
        else:
            found.append(turn)
    return found


def _without_system(turns: Turns) -> Turns:
    """With the system's turn as the beginning of the user's."""
    if not turns or turns[0]["role"] != "system":
        return turns
    return join([{**turns[0], "role": "user"}, *turns[1:]])


def _as_one(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    turn = {**one, **other, "content": _texts(one, other, "content")}
    for name in ("reasoning_content", "reasoning"):
        if name in one or name in other:
            turn[name] = _texts(one, other, name)
    if calls := [*one.get("tool_calls", ()), *other.get("tool_calls", ())]:
        turn["tool_calls"] = calls
    return turn


def _texts(one: dict[str, Any], other: dict[str, Any], name: str) -> str:
    return JOINT.join(filter(None, (one.get(name), other.get(name))))
