"""Writes the grammar of an answer that is a call or has a format. Pure; rank 0's HTTP threads.

After what opens a family's calls they are plain JSON, as forced ones are; harmony's (gpt-oss) stay
its own, as its answers have more parts than one.
"""

import json
from dataclasses import dataclass
from typing import Any

# The texts of a marker. Added tokens have their ids, as llguidance takes most for no text.
Opener = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Harmony:
    """Ids of the tokens that harmony's messages are made of."""

    start: int
    channel: int
    constrain: int
    message: int
    end: int


def either_grammar(answer: str, calls: str, opener: Opener) -> str:
    """The answer's grammar, or after the opener the calls'; both as text for llguidance."""
    marker = " ".join(
        _literal(text) if token is None else f"({_literal(text)} | <[{token}]>)"
        for text, token in opener
    )
    choice = f"start: @answer | {marker} /\\n?/ @calls\n"
    return _joined(choice, {"answer": answer, "calls": calls})


def harmony_grammar(answer: str, arguments: list[tuple[str, str]], tokens: Harmony) -> str:
    """Thoughts, then the answer or one call. arguments: each tool's name, and the grammar of its
    arguments."""
    channel, message = f"<[{tokens.channel}]>", f"<[{tokens.message}]>"
    json_message = f'<[{tokens.constrain}]> "json" {message}'
    calls = [
        f"{_literal(name + ' ')} {json_message} @call_{number}"
        for number, (name, _) in enumerate(arguments)
    ]
    rules = [
        "start: thought* (final | call)",
        f'thought: {channel} "analysis" {message} /(.|\\n)*/ <[{tokens.end}]>'
        f' <[{tokens.start}]> "assistant"',
        f'final: {channel} "final" (" " {json_message} | {message}) @answer',
        f'call: {channel} "commentary to=functions." ({" | ".join(calls)})',
    ]
    parts = {f"call_{number}": text for number, (_, text) in enumerate(arguments)}
    return _joined("\n".join(rules) + "\n", {"answer": answer, **parts})


def _joined(start: str, parts: dict[str, str]) -> str:
    """The Lark rules start, with @name for each of the parts."""
    grammars = [{"name": "start", "lark_grammar": start}]
    grammars += [{**_grammar(text), "name": name} for name, text in parts.items()]
    return json.dumps({"grammars": grammars})


def _grammar(text: str) -> dict[str, Any]:
    """One grammar's text as a part of another's. Lark has no JSON around it."""
    try:
        (grammar,) = json.loads(text)["grammars"]
    except ValueError:
        return {"lark_grammar": text}
    return grammar


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
