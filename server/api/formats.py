"""What an answer must look like: its format, and the tools it may or must call.

Pure; rank 0's HTTP threads. The fields are OpenAI's and, beside response_format, those that vLLM
has added over time (guided_json and its like, and structured_outputs) and SGLang's. Whether a
schema can be compiled is for Grammars to say.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from server.api.fields import Field, Fields, needed, record, tagged
from server.api.json_limits import InnerJson
from server.api.kinds import (
    FLAG,
    SCHEMA,
    TEXT,
    Refused,
    array,
    as_given,
    as_one,
    either,
    never,
    one_of,
    text,
    word,
)
from server.api.requests import MAX_TOOLS
from server.grammar.schema_limits import measure_schema
from server.protocol.errors import bad_request, show, wrong
from server.protocol.requests import Format, ToolChoice

# vLLM's names, in its guided_ fields and inside structured_outputs.
KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
IN_A_CHILD = "in a child"  # what compiling costs

SCHEMA_OR_TEXT = either({dict: SCHEMA, str: TEXT}, "a JSON schema (an object, or its JSON text)")
VLLM: Fields = {
    "json": Field(SCHEMA_OR_TEXT, "A JSON schema, or its JSON text.", IN_A_CHILD),
    "regex": Field(text(least=1), "The whole answer matches it.", IN_A_CHILD),
    "choice": Field(
        as_one(array(TEXT, least=1), "a non-empty array of strings"),
        "One of them is the answer.",
        IN_A_CHILD,
    ),
    "grammar": Field(text(least=1), "In Lark's notation.", IN_A_CHILD),
}
ONE_OF_VLLM = f"One of {', '.join(f'`{name}`' for name in KINDS)}"
RESPONSE_FORMAT = tagged(
    "type",
    {
        "text": {},
        "json_object": {},
        "json_schema": {
            "json_schema": needed(
                record(
                    {"name": TEXT, "schema": needed(SCHEMA), "strict": FLAG},
                    "an object with name and schema",
                )
            )
        },
    },
    "one of text, json_object, json_schema",
    objects="an object with a type",
)
UNSUPPORTED = never(False)
OUTPUTS = (*KINDS, "json_object")
ANY_OUTPUTS = record(
    {
        **VLLM,
        "json_object": FLAG,
        "structural_tag": UNSUPPORTED,
        "whitespace_pattern": UNSUPPORTED,
        "disable_any_whitespace": UNSUPPORTED,
        "disable_additional_properties": UNSUPPORTED,
    },
    name="StructuredOutputs",
)


def _outputs(value: Any) -> dict[str, Any]:
    found = ANY_OUTPUTS.read(value)
    if not found.keys() & OUTPUTS:
        raise Refused(value, f"an object with one of {', '.join(OUTPUTS)}")
    return found


STRUCTURED_OUTPUTS = replace(ANY_OUTPUTS, read=_outputs)
FORMATS: Fields = {
    "response_format": Field(
        RESPONSE_FORMAT, "Its type: text, json_object, json_schema.", cost=IN_A_CHILD
    ),
    **{f"guided_{name}": field for name, field in VLLM.items()},
    "structured_outputs": Field(
        STRUCTURED_OUTPUTS, f"{ONE_OF_VLLM} or `json_object`.", cost=IN_A_CHILD
    ),
    # SGLang's.
    "regex": Field(VLLM["regex"].kind, "As `guided_regex`.", IN_A_CHILD),
    "ebnf": Field(text(least=1), "In EBNF, from `root ::=` on.", IN_A_CHILD),
    "structural_tag": UNSUPPORTED,
    "guided_whitespace_pattern": UNSUPPORTED,
}
PARAMETERS = Field(
    as_given(record({"type": one_of("object")}, SCHEMA.allowed)), "The JSON schema of an object."
)
FUNCTION = record(
    {
        "name": needed(word(TOOL_NAME, "1 to 64 letters, digits, underscores, dots or dashes")),
        "description": TEXT,
        "parameters": PARAMETERS,
        "strict": FLAG,
    },
    "an object with a name",
)
FUNCTION_TOOL = as_given(
    tagged("type", {"function": {"function": needed(FUNCTION)}}, "'function'", name="FunctionTool")
)
NAMED = tagged("type", {"function": {"function": needed(record({"name": needed(TEXT)}))}}, "")
TOOL_CHOICE = as_one(
    either({str: one_of("none", "auto", "required"), dict: NAMED}, ""),
    "'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}",
)
TOOLS: Fields = {
    "tools": Field(array(FUNCTION_TOOL, most=MAX_TOOLS, of="function tools"), cost="0.01 s thread"),
    "tool_choice": Field(TOOL_CHOICE, "Only tools that are given."),
    "parallel_tool_calls": Field(FLAG, "Default: true."),
    "functions": never([], why="; use 'tools' instead"),
}


def format_of(asked: Mapping[str, Any]) -> Format | None:
    """What the answer must match, of FORMATS that have been read. Raises ApiError 400."""
    found = [*_response_format(asked), *_vllm(asked, "guided_")]
    outputs = asked.get("structured_outputs", {})
    found += _vllm(outputs, "", "structured_outputs.")
    if outputs.get("json_object"):
        found.append(Format("json_object", field="structured_outputs.json_object"))
    found += [Format(kind, asked[kind], field=kind) for kind in ("regex", "ebnf") if kind in asked]
    return only(found)


def only(found: list[Format]) -> Format | None:
    """The one format, if any. Raises ApiError 400 for more."""
    if len(found) > 1:
        names = " and ".join(repr(one.field) for one in found)
        message = f"Only one of {names} may be given: they cannot be used together."
        raise bad_request(message, found[1].field)
    return found[0] if found else None


def check_names(names: Iterable[tuple[str, str]]) -> set[str]:
    """The names of tools, if no two are the same. names: each with its field. Raises ApiError 400:
    nobody could tell which of them was called."""
    seen: set[str] = set()
    for name, field in names:
        if name in seen:
            raise bad_request(f"{field!r}: Two tools are named {show(name)}.", field)
        seen.add(name)
    return seen


def tools_of(asked: Mapping[str, Any]) -> tuple[list[dict[str, Any]], ToolChoice, bool]:
    """The tools of a chat request, which of them must be called, and whether several may be at
    once, of TOOLS that have been read. Raises ApiError 400."""
    tools = asked.get("tools", [])
    seen = check_names(
        (tool["function"]["name"], f"tools[{number}].function.name")
        for number, tool in enumerate(tools)
    )
    return tools, _choice(asked.get("tool_choice"), seen), asked.get("parallel_tool_calls", True)


def _response_format(asked: Mapping[str, Any]) -> list[Format]:
    given = asked.get("response_format", {"type": "text"})
    if given["type"] == "text":
        return []
    if given["type"] == "json_object":
        return [Format("json_object")]
    inner, field = given["json_schema"], "response_format.json_schema.schema"
    return [Format("json_schema", inner["schema"], inner.get("strict", False), field)]


def _vllm(asked: Mapping[str, Any], prefix: str, where: str = "") -> list[Format]:
    """The formats under vLLM's names, which have no strict: what cannot be kept is ignored."""
    found = []
    for name, kind in KINDS.items():
        value, field = asked.get(prefix + name), where + prefix + name
        if value is not None:
            if name == "json":
                value = _schema(value, field)
            if name == "choice":
                value = list(dict.fromkeys(value))
            found.append(Format(kind, value, field=field))
    return found


def _schema(value: Any, field: str) -> Any:
    """A schema, which vLLM also takes as JSON text."""
    if not isinstance(value, str):
        return value
    measure_schema([value], field)  # a longer one would be parsed for seconds, to be refused
    try:
        schema = InnerJson().parse(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise wrong(field, value, SCHEMA_OR_TEXT.allowed)
    measure_schema(schema, field)  # what follows recurses
    try:
        return SCHEMA.read(schema)
    except Refused as refused:
        raise refused.within(field).error() from None


def _choice(given: Any, names: set[str]) -> ToolChoice:
    if given is None or given in ("none", "auto"):
        return ToolChoice(given or "auto") if names else ToolChoice("none")
    if not names:
        raise bad_request("'tool_choice' asks for a call, but there are no 'tools'.", "tool_choice")
    if given == "required":
        return ToolChoice("required")
    name = given["function"]["name"]
    if name not in names:
        raise bad_request(
            f"'tool_choice' names {show(name)}, which is not in 'tools'.",
            "tool_choice",
        )
    return ToolChoice("named", name)
