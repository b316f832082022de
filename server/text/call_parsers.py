"""Tool-call parsers for families that mlx-lm has none for, in the form of mlx-lm's own.

Each takes the text between a family's markers and the request's tools, and returns a call or a
list of calls as {"name", "arguments"}; it raises ValueError for anything else, so that a cut call
never passes for a whole one.
"""

import json
import re
from typing import Any

Call = dict[str, Any]

_HARMONY = re.compile(r"\s*([\w.-]+)(?:(?!<\|message\|>).)*<\|message\|>(.*)", re.DOTALL)
_DEEPSEEK_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_DEEPSEEK_FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_DSML_INVOKE = re.compile(r'<｜DSML｜invoke name="([^"]*)">(.*?)</｜DSML｜invoke>', re.DOTALL)
_DSML_PARAMETER = re.compile(
    r'<｜DSML｜parameter name="([^"]*)"(?: string="(true|false)")?>(.*?)</｜DSML｜parameter>',
    re.DOTALL,
)


def parse_harmony(text: str, tools: Any = None) -> Call:
    """gpt-oss: the name, the rest of the message's header, and JSON arguments."""
    match = _HARMONY.fullmatch(text)
    if match is None:
        raise ValueError("no header of a call")
    return {"name": match[1], "arguments": json.loads(match[2])}


def parse_deepseek(text: str, tools: Any = None) -> list[Call]:
    """DeepSeek V3 and R1 (with "function" and a fence) and V3.1 (without)."""
    bodies = _DEEPSEEK_CALL.findall(text)
    _nothing_beside(_DEEPSEEK_CALL, text)
    return [_deepseek_call(body) for body in bodies]


def _deepseek_call(body: str) -> Call:
    name, separator, arguments = body.partition("<｜tool▁sep｜>")
    if not separator:
        raise ValueError("no separator after a call's name")
    if name.strip() == "function" and "```" in arguments:
        name, _, arguments = arguments.partition("\n")
        fenced = _DEEPSEEK_FENCE.fullmatch(arguments)
        if fenced is None:
            raise ValueError("arguments without their fence")
        arguments = fenced[1]
    return {"name": name.strip(), "arguments": json.loads(arguments)}


def parse_dsml(text: str, tools: Any = None) -> list[Call]:
    """DeepSeek V3.2: an element for each parameter, which says whether it is a plain string."""
    invokes = _DSML_INVOKE.findall(text)
    _nothing_beside(_DSML_INVOKE, text)
    calls = []
    for name, body in invokes:
        _nothing_beside(_DSML_PARAMETER, body, needed=False)
        arguments = {
            key: json.loads(value) if kind == "false" else value
            for key, kind, value in _DSML_PARAMETER.findall(body)
        }
        calls.append({"name": name, "arguments": arguments})
    return calls


def parse_llama(text: str, tools: Any = None) -> list[Call]:
    """Llama 3: {"name", "parameters"} objects, with a semicolon or nothing between them."""
    calls, decoder, at = [], json.JSONDecoder(), 0
    while at < len(text):
        if text[at] in "; \t\r\n":
            at += 1
            continue
        call, at = decoder.raw_decode(text, at)
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ValueError("an object that is no call")
        arguments = call.get("parameters", call.get("arguments"))
        calls.append({"name": call["name"], "arguments": arguments})
    return calls


def _nothing_beside(pattern: re.Pattern[str], text: str, needed: bool = True) -> None:
    """Raises ValueError if there is more than the pattern's matches, or none of them."""
    rest, count = pattern.subn("", text)
    if rest.strip() or (needed and not count):
        raise ValueError("text that is no call")
